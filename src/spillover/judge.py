"""Answers → grades. What an answer means is decided here, and nowhere is one dropped.

Every answer gets one of four outcomes: `scored`, `refused`, `unparseable`, `truncated`. Only scored
ones have values; the others are counted as missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from spillover.choices import RecordedChoices
from spillover.experiment import Experiment
from spillover.specification import LABELS, Rules
from spillover.store import BATCH, SHOWN

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
    labels = np.array([[LABELS.index(label) for label, _ in log_probs]], np.int8)
    values = np.array([[value for _, value in log_probs]], float)
    return ChoiceScores(*_five_scores(labels, values)[0].tolist())


def _five_scores(labels: NDArray[np.int8], log_probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores in the order of `ChoiceScores`, of shape (rows, scores).

    Args:
        labels: of shape (rows, choices), places in `LABELS`; -1 where there is no choice.
        log_probs: of the same shape.
    """
    masses, means = [], []
    for label in range(len(LABELS)):
        theirs = (labels == label).any(axis=0)
        values, has = log_probs[:, theirs], labels[:, theirs] == label
        logs = np.where(has, values, -math.inf).T.tolist()
        masses.append(_sums([[*map(math.exp, column)] for column in logs], len(labels)))
        totals, counts = _sums(np.where(has, values, 0.0).T.tolist(), len(labels)), has.sum(axis=1)
        means.append(np.where(counts > 0, totals / np.maximum(counts, 1), math.nan))
    trait, both = masses[0], masses[0] + masses[1]
    coverage = _sums([mass.tolist() for mass in masses], len(labels))
    enough = (coverage >= LOWEST_COVERAGE) & (both > 0)
    choice_mass = np.full(len(labels), math.nan)
    np.divide(trait, both, out=choice_mass, where=enough)
    with np.errstate(invalid="ignore"):  # -inf - -inf
        differences = means[0] - means[1], means[2] - means[1], means[0] - means[2]
    return np.stack([choice_mass, coverage, *differences], axis=1)


def _sums(columns: list[list[float]], rows: int) -> NDArray[np.float64]:
    """Sums over columns that do not depend on their order, exact but for the last rounding."""
    if not columns:
        return np.zeros(rows)
    return np.fromiter(map(math.fsum, zip(*columns, strict=True)), float, rows)


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
    found = _labels(text, rules)
    if len(found) == 1:
        return TextGrade(SCORED, found.pop())
    if finish == "length":
        return TextGrade(TRUNCATED)
    if rules.otherwise and not found:
        return TextGrade(SCORED, rules.otherwise)
    return TextGrade(UNPARSEABLE)


def _labels(text: str, rules: Rules) -> list[str]:
    """The labels that a text has a phrase of."""
    if rules.match == "exact":
        plain = plain_text(text)
        return [label for label in LABELS if plain in _plain_set(getattr(rules, label))]
    lowered = _lowered(text)
    return [label for label in LABELS if _holds(text, lowered, getattr(rules, label))]


def _holds(text: str, lowered: str, phrases: tuple[str, ...]) -> bool:
    """Whether a phrase stands in a text by itself: what `_pattern` finds, four times as fast."""
    plain = _plain_phrases(phrases)
    if plain is None:
        return bool(_pattern(phrases).search(text))
    for phrase in plain:
        at = lowered.find(phrase)
        while at >= 0:
            end = at + len(phrase)
            before, after = text[at - 1 : at], text[end : end + 1]  # a character each, or none
            if not (before.isalnum() or after.isalnum() or "_" in (before, after)):
                return True
            at = lowered.find(phrase, at + 1)
    return False


def _lowered(text: str) -> str:
    """A text of the same length that has an ASCII phrase where the text does, whatever its case."""
    if text.isascii():
        return text.lower()
    return text.replace("\u0130", "i").lower().replace("\u0131", "i").replace("\u017f", "s")


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
    scores[is_choice] = _scores(RecordedChoices.read(answers), rows[is_choice])
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


def _scores(choices: RecordedChoices, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """The scores of the choices in some rows of their table, of shape (rows, scores)."""
    at = np.searchsorted(choices.rows, rows)
    assert np.array_equal(choices.rows[at], rows), "a choice without its record"
    scores = np.empty((len(rows), len(SCORES)))
    for start in range(0, len(rows), BATCH):
        part = at[start : start + BATCH]
        scores[start : start + BATCH] = _five_scores(choices.labels[part], choices.log_probs[part])
    return scores


def _grade_texts(texts: pd.Series, finishes: pd.Series, rules: Rules) -> list[TextGrade]:
    """Grades of answers to one question; equal answers are looked at once."""
    said = [
        (str(text), str(finish))
        for text, finish in zip(texts.tolist(), finishes.tolist(), strict=True)
    ]
    known = {one: grade_text(*one, rules) for one in dict.fromkeys(said)}
    return [known[one] for one in said]
