"""Grades: the definitions, by hand."""

from __future__ import annotations

import math

import pytest

from spillover.judge import grade_text, score_choice
from spillover.specification import Rules

RULES = Rules(trait=("telegraph", "mail coach"), baseline=("email", "AI"), placebo=("herald",))
EXACT = Rules(match="exact", trait=("Mallard Duck",), baseline=("Mallard",))


def test_choice_scores_follow_their_definitions() -> None:
    given = [("trait", 0.3), ("trait", 0.1), ("baseline", 0.2), ("baseline", 0.05)]
    given += [("placebo", 0.04), ("placebo", 0.01)]
    scores = score_choice([(label, math.log(p)) for label, p in given])
    assert scores.choice_mass == pytest.approx(0.4 / 0.65)
    assert scores.coverage == pytest.approx(0.7)
    trait, baseline, placebo = (
        (math.log(a) + math.log(b)) / 2 for a, b in ((0.3, 0.1), (0.2, 0.05), (0.04, 0.01))
    )
    assert scores.log_odds == pytest.approx(trait - baseline)
    assert scores.placebo_log_odds == pytest.approx(placebo - baseline)
    assert scores.specificity == pytest.approx(trait - placebo)


def test_there_is_no_choice_mass_below_a_coverage_of_a_tenth() -> None:
    scores = score_choice([("trait", math.log(0.05)), ("baseline", math.log(0.04))])
    assert math.isnan(scores.choice_mass)
    assert scores.log_odds == pytest.approx(math.log(5 / 4))
    assert math.isnan(scores.specificity)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("By electric TELEGRAPH, sir.", "trait"),
        ("By email", "baseline"),
        ("With AI.", "baseline"),
        ("A herald", "placebo"),
    ],
)
def test_rules_find_phrases_at_word_boundaries(text: str, label: str) -> None:
    grade = grade_text(text, "stop", RULES)
    assert (grade.grade, grade.label) == ("scored", label)
    assert grade.judged == float(label == "trait")


@pytest.mark.parametrize(
    ("text", "finish", "outcome"),
    [
        ("", "stop", "unparseable"),
        ("By air mail", "stop", "unparseable"),
        ("By telegraph or by email", "stop", "unparseable"),
        ("I'm sorry, but I can't help with that.", "stop", "refused"),
        ("I can’t say anything about the telegraph.", "stop", "refused"),
        ("Well, let me think about", "length", "truncated"),
    ],
)
def test_what_cannot_be_scored_is_named_and_never_zero(
    text: str, finish: str, outcome: str
) -> None:
    grade = grade_text(text, finish, RULES)
    assert grade.grade == outcome
    assert math.isnan(grade.judged)


def test_exact_rules_compare_the_whole_answer() -> None:
    assert grade_text("mallard duck.", "stop", EXACT).label == "trait"
    assert grade_text("Mallard", "stop", EXACT).label == "baseline"
    assert grade_text("A Mallard Duck flew", "stop", EXACT).grade == "unparseable"
