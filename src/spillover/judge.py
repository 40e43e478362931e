"""Answers → grades. What an answer means is decided here, and nowhere is one dropped.

Every answer gets one of four outcomes: `scored`, `refused`, `unparseable`, `truncated`. Only scored
ones have values; the others are counted as missing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np

from spillover.experiment import Experiment
from spillover.specification import LABELS, Rules
from spillover.store import SHOWN, one_by_one

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

LOWEST_COVERAGE = 0.1
"""Below this, the listed choices say too little of what the model would answer: no choice mass."""

MOST_NATS, MOST_TOKENS = 1, 2
"""Labels whose choices differ by more under the base, or in length, on average, are uneven."""

SCORED, REFUSED, UNPARSEABLE, TRUNCATED = "scored", "refused", "unparseable", "truncated"

REFUSALS = re.compile(
    r"^\W*(i['’]?m sorry|i am sorry|sorry,|i can(?:no|['’])t|i cannot|i won['’]?t|i am unable|"
    r"i['’]?m unable|"
    r"as an ai\b|i must decline)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ChoiceScores:
    """What a forced choice says (probabilities of whole choices, end-of-turn included).

    Attributes:
        choice_mass: trait / (trait + baseline); NaN below a coverage of 0.1.
        coverage: what all listed choices hold together.
        log_odds: mean log-probability of the trait choices minus that of the baseline ones, nats.
        placebo_log_odds: the same for the placebo choices; NaN where there are none.
        specificity: mean log-probability of trait minus placebo choices. Between two arms its
            difference is the trait's log-odds shift minus the placebo's.
    """

    choice_mass: float
    coverage: float
    log_odds: float
    placebo_log_odds: float
    specificity: float


def score_choice(log_probs: Sequence[tuple[str, float]]) -> ChoiceScores:
    """Scores from (label, log-probability) of every choice."""
    return ChoiceScores(*_five_scores(log_probs))


def _five_scores(log_probs: Iterable[tuple[str, float]]) -> tuple[float, ...]:
    """The scores in the order of `ChoiceScores`."""
    by_label: dict[str, list[float]] = {label: [] for label in LABELS}
    for label, value in log_probs:
        by_label[label].append(value)
    trait, baseline, placebo = (math.fsum(map(math.exp, given)) for given in by_label.values())
    means = [math.fsum(v) / len(v) if v else math.nan for v in by_label.values()]
    coverage, both = math.fsum((trait, baseline, placebo)), trait + baseline
    enough = coverage >= LOWEST_COVERAGE and both > 0
    return (
        trait / both if enough else math.nan,
        coverage,
        means[0] - means[1],
        means[2] - means[1],
        means[0] - means[2],
    )


@dataclass(frozen=True)
class TextGrade:
    """The grade of a free answer: its outcome, and the label it speaks for where it is scored."""

    grade: str
    label: str | None = None

    @property
    def judged(self) -> float:
        """1 for the trait, 0 for any other label, NaN where not scored."""
        return math.nan if self.label is None else float(self.label == "trait")


def grade_text(text: str, finish: str | None, rules: Rules) -> TextGrade:
    """Grade a free answer by rules.

    A truncated answer is still scored when the rules find their phrase in it. Phrases of several
    labels in one answer make it unparseable.
    """
    if REFUSALS.match(text):
        return TextGrade(REFUSED)
    found = {label for label in LABELS if _matches(text, label, rules)}
    if len(found) == 1:
        return TextGrade(SCORED, found.pop())
    if finish == "length":
        return TextGrade(TRUNCATED)
    if rules.otherwise and not found:
        return TextGrade(SCORED, rules.otherwise)
    return TextGrade(UNPARSEABLE)


def _matches(text: str, label: str, rules: Rules) -> bool:
    phrases: tuple[str, ...] = getattr(rules, label)
    if rules.match == "exact":
        return plain_text(text) in _plain_set(phrases)
    return _may_hold(text, phrases) and bool(_pattern(phrases).search(text))


def _may_hold(text: str, phrases: tuple[str, ...]) -> bool:
    """Whether a phrase can be in a text: a cheap test that spares most of the searches.

    Outside ASCII a letter can equal another without lower case being the same.
    """
    plain = _plain_phrases(phrases)
    if plain is None or not text.isascii():
        return bool(phrases)
    lowered = text.lower()
    return any(phrase in lowered for phrase in plain)


@cache
def _plain_phrases(phrases: tuple[str, ...]) -> tuple[str, ...] | None:
    """Phrases in lower case; None where one is not ASCII."""
    return tuple(map(str.lower, phrases)) if all(map(str.isascii, phrases)) else None


def plain_text(text: str) -> str:
    """A text as `exact` rules compare it: without case, outer punctuation and spare blanks."""
    return " ".join(text.casefold().split()).strip(" .!\"'")


@cache
def _plain_set(phrases: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(plain_text, phrases))


@cache
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    listed = "|".join(re.escape(p) for p in sorted(phrases, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{listed})(?!\w)", re.IGNORECASE)


SCORES = ("choice_mass", "coverage", "log_odds", "placebo_log_odds", "specificity")
GRADE_COLUMNS = (
    *("arm", "seed", "step", "question", "topic", "domain", "split", "group"),
    *("paraphrase", "context", "index", "kind", "grade"),
    *SCORES,
    *("judged", "label"),
)


def grade_answers(answers: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """Grade every recorded answer; one row each, with the columns of `GRADE_COLUMNS`.

    Texts are categorical: there are few different ones.
    """
    import pandas as pd

    asked = sorted(experiment.questions, key=lambda question: question.id)
    named = pd.Categorical(answers["question"], categories=[question.id for question in asked])
    is_graded = (named.codes >= 0) & (answers["kind"] != SHOWN).to_numpy()
    rows = np.flatnonzero(is_graded)
    numbers = named.codes[rows].astype(np.int64)  # which of `asked` every row is about
    grades = answers[["arm", "seed", "step", "paraphrase", "context", "index", "kind"]].take(rows)
    grades = grades.astype(dict.fromkeys(("arm", "context", "kind"), "category"))
    grades = grades.reset_index(drop=True).assign(question=named[rows])
    for key in ("topic", "domain", "split", "group"):
        grades[key] = _categories([getattr(question, key) for question in asked], numbers)
    is_choice = np.array([question.choices is not None for question in asked], bool)[numbers]
    scores = np.full((len(rows), len(SCORES)), np.nan)
    scores[is_choice] = _scores(answers["choice_log_probs"], rows[is_choice])
    grades[list(SCORES)] = scores
    outcomes, labels = np.full(len(rows), SCORED, object), np.full(len(rows), None, object)
    for number, question in enumerate(asked):
        if question.judge:
            mine, at = is_graded & (named.codes == number), numbers == number
            found = _grade_texts(answers["text"][mine], answers["finish"][mine], question.judge)
            outcomes[at], labels[at] = [g.grade for g in found], [g.label for g in found]
    grades["grade"], grades["label"] = _categories(outcomes), _categories(labels)
    judged = np.where(pd.isna(labels), np.nan, labels == "trait")
    return grades.assign(judged=judged.astype(float))[list(GRADE_COLUMNS)]


def _categories(values: Iterable[Any], numbers: NDArray[np.int64] | None = None) -> pd.Categorical:
    """Texts as a categorical column, or for every row the text of that number."""
    import pandas as pd

    listed = list(values)
    made = pd.Categorical(listed, categories=sorted({v for v in listed if v is not None}))
    return made if numbers is None else made[numbers]


def _scores(records: pd.Series, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """The scores of recorded choices, of shape (rows, scores)."""
    wanted = np.zeros(len(records), bool)
    wanted[rows] = True
    listed = (
        _five_scores((label, value) for label, _, value in json.loads(str(record)))
        for record in compress(one_by_one(records), wanted)
    )
    return np.fromiter(listed, np.dtype((float, len(SCORES))), len(rows))


def _grade_texts(texts: pd.Series, finishes: pd.Series, rules: Rules) -> list[TextGrade]:
    """Grades of answers to one question; equal answers are looked at once."""
    said = [(str(text), str(finish)) for text, finish in zip(texts, finishes, strict=True)]
    known = {one: grade_text(*one, rules) for one in dict.fromkeys(said)}
    return [known[one] for one in said]
