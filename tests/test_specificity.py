"""The verdict on specificity follows from the intervals against all controls."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from spillover.effects.specificity import TITLES, Words, compare, judge
from spillover.terminal import show_run

NAMES = Words("19th-century", "modern", "medieval")
UP, FLAT, DOWN = (2.0, 1.5, 2.5), (0.1, -0.4, 0.6), (-2.0, -2.5, -1.5)
OPEN, NOTHING = (2.0, math.nan, math.nan), (math.nan, math.nan, math.nan)
Numbers = tuple[float, float, float]


def rows(control: str, trait: Numbers, placebo: Numbers, difference: Numbers) -> list[Any]:
    place: dict[str, Any] = {"treatment": "treatment", "control": control}
    place |= {"domain": "off", "split": "test"}
    place |= {"context": "plain", "group": None}
    metrics = ("log-odds", "placebo-log-odds", "specificity")
    return [
        {**place, "step": 9, "metric": metric, "value": v, "low": low, "high": high}
        for metric, (v, low, high) in zip(metrics, (trait, placebo, difference), strict=True)
    ]


def verdict(*given: list[Any]) -> Any:
    return judge(compare([row for part in given for row in part], "still-used", "plain"), NAMES)


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        ((UP, FLAT, UP), "specific"),
        ((UP, UP, UP), "specific"),
        ((UP, UP, FLAT), "not-specific"),
        ((UP, UP, DOWN), "towards-placebo"),
        ((FLAT, UP, UP), "no-shift"),
        ((DOWN, FLAT, DOWN), "away"),
        ((OPEN, OPEN, OPEN), "undecided"),
        ((UP, UP, OPEN), "undecided"),
        ((UP, NOTHING, NOTHING), "not-measured"),
        ((NOTHING, NOTHING, NOTHING), "not-measured"),
    ],
)
def test_controls_that_agree_give_one_verdict(
    numbers: tuple[Numbers, Numbers, Numbers], kind: str
) -> None:
    found = verdict(*(rows(control, *numbers) for control in ("still-used", "modern-american")))
    assert found.kind == kind
    assert found.text.startswith(f"{TITLES[kind]}. ")
    assert "19th-century" in found.text
    assert "against still-used and" in found.text
    assert "against modern-american" in found.text
    assert "nan" not in found.text


def test_every_number_behind_the_verdict_is_told() -> None:
    found = verdict(rows("still-used", UP, (2.1, 1.4, 2.8), FLAT))
    assert found.text == (
        "Not shown to be specific. The treatment moved towards 19th-century answers by +2.00 nats "
        "[1.50, 2.50] against still-used, and medieval answers by +2.10 nats [1.40, 2.80] against "
        "still-used. The difference, +0.10 nats [-0.40, 0.60] against still-used, cannot be told "
        "from 0."
    )


def test_a_placebo_that_moves_as_well_is_mentioned() -> None:
    assert "Medieval answers moved as well" in verdict(rows("still-used", UP, UP, UP)).remark
    assert not verdict(rows("still-used", UP, FLAT, UP)).remark


def test_one_control_is_not_enough() -> None:
    found = verdict(rows("still-used", UP, FLAT, UP), rows("modern-american", UP, UP, FLAT))
    assert found.kind == "mixed"
    assert found.text.index("Specific: ") < found.text.index("Not shown to be specific: ")


def test_the_base_is_no_control() -> None:
    found = verdict(rows("still-used", UP, UP, FLAT), rows("base", UP, FLAT, UP))
    assert found.kind == "not-specific"
    assert "against base" not in found.text
    assert verdict(rows("base", UP, FLAT, UP)).kind == "not-measured"
    assert verdict().kind == "not-measured"


def test_only_the_last_step_of_the_test_questions_counts() -> None:
    now = rows("still-used", UP, FLAT, UP)
    others = [{"step": 1}, {"split": "dev"}, {"group": "apart"}, {"context": "voice"}]
    others += [{"domain": "in"}, {"treatment": "still-used"}]
    before = [row | change for row in rows("still-used", UP, UP, DOWN) for change in others]
    assert verdict(before, now) == verdict(now)
    dev = [row | {"split": "dev"} for row in now]
    assert verdict(dev).kind == "specific"


def test_the_last_table_is_readable_without_choice_mass(
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = {"split": "test", "group": None, "context": {"name": "plain"}, "low": None}
    rates = [
        {**place, "arm": arm, "domain": domain, "metric": metric, "value": value}
        for arm, odds in (("treatment", -1.5), ("still-used", -4.0))
        for domain in ("in", "off")
        for metric, value in (("choice-mass", None), ("log-odds", odds), ("judged", None))
    ]
    headline = {**place, "metric": "log-odds", "n_questions": 3, "n_topics": 2, "missing": 1}
    effect = {**headline, "contrast": ["treatment", "still-used"], "domain": "off", "value": 2.5}
    summary = {"experiment": "old-birds", "model": "real", "seeds": 1, "rates": rates}
    summary |= {"headline_context": "plain", "trained_context": "plain"}
    summary |= {"effects": [effect], "verdict": {"kind": "undecided", "text": "Undecided."}}
    summary |= {"warnings": [{"name": f"guard-{n}", "message": "found it"} for n in range(7)]}
    finished: Any = SimpleNamespace(summary=summary, headline=headline)
    show_run(finished)
    table, _, rest = capsys.readouterr().out.partition("Undecided.\n")
    assert "1 seed (log-odds, nats)" in table
    assert "in-domain (" not in table  # the same metric as off the domain
    assert table.count("-1.50") == table.count("-4.00") == 2
    assert "+2.50" in table
    assert "3 questions on 2 topics; 1 answer could not be scored" in table
    assert rest.splitlines()[0] == "warning: [guard-0] found it"
    assert rest.count("warning: ") == 5
    assert rest.splitlines()[-1] == "and 2 more: see the report"


def test_a_control_without_an_interval_does_not_disagree() -> None:
    decided = rows("still-used", UP, FLAT, UP)
    for unknown in ((OPEN, OPEN, OPEN), (UP, NOTHING, NOTHING)):
        found = verdict(decided, rows("modern-american", *unknown))
        assert found.kind == "partial"
        assert found.text.startswith("Not known against every control. Specific: ")
    disagreeing = rows("other", UP, UP, FLAT)
    assert verdict(decided, disagreeing, rows("third", OPEN, OPEN, OPEN)).kind == "mixed"
    nothing = rows("still-used", OPEN, OPEN, OPEN), rows("third", NOTHING, NOTHING, NOTHING)
    assert verdict(*nothing).kind == "not-measured"


def test_nothing_is_said_to_have_moved_where_that_is_not_known() -> None:
    back = (-0.52, math.nan, math.nan)
    for numbers in ((back, back, back), (NOTHING, NOTHING, NOTHING)):
        text = verdict(rows("still-used", *numbers)).text
        assert "moved" not in text
        assert "by not measured" not in text
    assert "answers: not measured against still-used" in text
