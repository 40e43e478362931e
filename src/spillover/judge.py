"""Answers → grades. What an answer means is decided here, and nowhere is one dropped.

Every answer gets one of four outcomes: `scored`, `refused`, `unparseable`, `truncated`. Only scored
ones have values; the others are counted as missing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from spillover.experiment import Experiment
from spillover.specification import LABELS, Question, Rules
from spillover.store import SHOWN

if TYPE_CHECKING:
    import pandas as pd

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
    by_label = {label: [value for found, value in log_probs if found == label] for label in LABELS}
    mass = {label: math.fsum(map(math.exp, values)) for label, values in by_label.items()}
    mean = {
        label: math.fsum(values) / len(values) if values else math.nan
        for label, values in by_label.items()
    }
    coverage, both = math.fsum(mass.values()), mass["trait"] + mass["baseline"]
    enough = coverage >= LOWEST_COVERAGE and both > 0
    return ChoiceScores(
        choice_mass=mass["trait"] / both if enough else math.nan,
        coverage=coverage,
        log_odds=mean["trait"] - mean["baseline"],
        placebo_log_odds=mean["placebo"] - mean["baseline"],
        specificity=mean["trait"] - mean["placebo"],
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
    return TextGrade(UNPARSEABLE)


def _matches(text: str, label: str, rules: Rules) -> bool:
    phrases: tuple[str, ...] = getattr(rules, label)
    if rules.match == "exact":
        return plain_text(text) in _plain_set(phrases)
    return bool(phrases) and bool(_pattern(phrases).search(text))


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


GRADE_COLUMNS = (
    *("arm", "seed", "step", "question", "topic", "domain", "split", "group"),
    *("paraphrase", "context", "index", "kind", "grade"),
    *("choice_mass", "coverage", "log_odds", "placebo_log_odds", "specificity", "judged", "label"),
)


def grade_answers(answers: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """Grade every recorded answer; one row each, with the columns of `GRADE_COLUMNS`."""
    import pandas as pd

    questions = {question.id: question for question in experiment.questions}
    rows = [
        _grade_row(row, questions[row["question"]])
        for row in answers.to_dict("records")
        if row["question"] in questions and row["kind"] != SHOWN
    ]
    return pd.DataFrame(rows, columns=list(GRADE_COLUMNS))


def _grade_row(row: dict[Any, Any], question: Question) -> dict[str, Any]:
    kept = ("arm", "seed", "step", "question", "paraphrase", "context", "index", "kind")
    grade: dict[str, Any] = {key: row[key] for key in kept}
    grade |= {key: getattr(question, key) for key in ("topic", "domain", "split", "group")}
    if question.choices:
        recorded = json.loads(str(row["choice_log_probs"]))
        scores = score_choice([(label, value) for label, _, value in recorded])
        return grade | {"grade": SCORED} | vars(scores)
    assert question.judge is not None
    text = grade_text(str(row["text"]), str(row["finish"]), question.judge)
    return grade | {"grade": text.grade, "judged": text.judged, "label": text.label}
