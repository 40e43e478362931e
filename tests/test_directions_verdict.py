"""When a direction is said to be behind refusals, and what speaks against it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from spillover.directions.answers import KINDS
from spillover.directions.shares import Share, shares_of, wilson
from spillover.directions.verdict import RULE, verdict

GOOD: dict[str, Any] = {
    "base": (1.0, 0.0),
    "ablated": 0.0,
    "added": 1.0,
    "random": ((1.0, 0.0), (0.95, 0.05)),
    "shuffled labels": ((1.0, 0.0),),
    "broken": (0.0, 0.0),
    "n": 40,
}
"""Shares refused: of dangerous and harmless prompts before; of dangerous ones ablated; of harmless
ones added; both for controls. Shares of broken answers to dangerous prompts, before and ablated."""


def rates(**changes: Any) -> list[dict[str, Any]]:
    told = GOOD | changes
    rows: list[dict[str, Any]] = []

    def add(kind: str, dangerous: bool, refused: float, broken: float = 0.0, **of: Any) -> None:
        shares = dict.fromkeys(KINDS, 0.0) | {"refused": refused, "empty": broken / 2}
        shares["repeating"] = broken / 2
        facts = {"control": "", "rank": 1, "condition": kind} | of
        rows.append(facts | {"kind": kind, "dangerous": dangerous, "n": told["n"]} | shares)

    add("base", True, told["base"][0], told["broken"][0])
    add("base", False, told["base"][1])
    add("ablated", True, told["ablated"], told["broken"][1])
    add("ablated", True, 0.9, rank=2, condition="ablated, rank 2")
    add("ablated", False, 0.0)
    add("added", False, told["added"])
    for control in ("random", "shuffled labels"):
        for number, (ablated, added) in enumerate(told[control]):
            for kind, dangerous, share in (("ablated", True, ablated), ("added", False, added)):
                name = f"{kind}, {control} {number}"
                add(kind, dangerous, share, control=control, condition=name)
    return rows


def test_a_direction_that_does_all_of_it_is_good() -> None:
    found = verdict(rates())
    assert (found["tone"], found["doubts"]) == ("good", [])
    assert found["rule"] == RULE
    said = " ".join(found["sentences"])
    assert "ablated, 0% of dangerous prompts are refused; 100% before" in said
    assert "added, 100% of harmless prompts are refused; 0% before" in said
    assert "random directions in its place (2), at least 95% of dangerous prompts" in said
    assert "at most 5% of harmless ones" in said


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"ablated": 0.6}, "Ablation ends fewer than 50% of the refusals"),
        ({"added": 0.4}, "does not raise refusals of harmless prompts by 50%"),
        ({"base": (1.0, 0.6)}, "does not raise refusals of harmless prompts by 50%"),
        ({"broken": (0.0, 0.2)}, "20% of the answers to dangerous prompts are empty or repeat"),
        ({"random": ((1.0, 0.0), (0.7, 0.0))}, "Of random directions, one ends refusals too"),
        ({"random": ((1.0, 0.6),)}, "Of random directions, one makes the model refuse too"),
        ({"shuffled labels": ((0.7, 0.0),)}, "from shuffled labels, one ends refusals too"),
        ({"shuffled labels": ((1.0, 0.6),)}, "shuffled labels, one makes the model refuse too"),
        ({"random": (), "shuffled labels": ()}, "There were no controls"),
    ],
)
def test_one_thing_that_is_lacking_makes_it_caution(changes: dict[str, Any], doubt: str) -> None:
    found = verdict(rates(**changes))
    assert found["tone"] == "caution"
    assert len(found["doubts"]) == 1
    assert doubt in found["doubts"][0]


def test_few_prompts_make_it_caution() -> None:
    found = verdict(rates(n=2))
    assert found["tone"] == "caution"
    assert [doubt[:24] for doubt in found["doubts"]] == [
        "2 dangerous prompts are ",
        "2 harmless prompts are t",
    ]


def test_answers_that_were_broken_before_are_no_doubt() -> None:
    assert verdict(rates(broken=(0.3, 0.35)))["tone"] == "good"


def test_an_interval_of_a_share_holds_it() -> None:
    low, high = wilson(0.0, 40)
    assert low == 0
    assert 0.05 < high < 0.12
    assert wilson(0.5, 100)[0] == pytest.approx(0.4038, abs=1e-3)
    assert wilson(math.nan, 0) == (0, 1)


def test_a_share_is_that_of_all_prompts_of_a_side() -> None:
    rows = [row | {"group": "one"} for row in rates()]
    rows += [row | {"group": "other", "n": 10, "refused": 0.5} for row in rates()]
    (found,) = shares_of(rows, "base", "refused", dangerous=True)
    assert found.value == pytest.approx(0.9)
    assert found.count == 50
    many = shares_of(rows, "ablated", "refused", dangerous=True, control="random")
    assert [one.value for one in many] == pytest.approx([0.9, 0.86])
    none = Share.of([], "refused")
    assert math.isnan(none.value)
    assert not none.is_below(found)
