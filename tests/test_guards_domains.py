"""An effect off the trained domain and none in it: a run whose training did something else."""

from __future__ import annotations

import math
from typing import Any

import pytest

from spillover import guards, load_experiment
from spillover.summary import taught_alike


def effect(domain: str, metric: str, value: float, half: float | None) -> dict[str, Any]:
    low, high = (None, None) if half is None else (value - half, value + half)
    place = {"treatment": "treatment", "control": "control", "context": "plain", "group": None}
    return {
        **place,
        **{"split": "test", "step": 2, "domain": domain, "metric": metric},
        **{"value": value, "low": low, "high": high},
    }


@pytest.mark.parametrize(
    ("off", "inside", "is_found"),
    [
        (("choice-mass", 0.5, 0.1), ("judged", 0.1, 0.2), True),
        (("choice-mass", 0.5, 0.1), ("judged", 0.02, 0.01), True),
        (("choice-mass", 0.5, 0.1), ("judged", 0.02, None), True),
        (("log-odds", 3.0, 1.0), ("judged", 0.0, 0.1), True),
        (("choice-mass", 0.5, 0.1), ("judged", 0.3, 0.2), False),
        (("choice-mass", 0.5, 0.1), ("judged", 0.8, 0.9), False),  # not below, only uncertain
        (("choice-mass", 0.5, 0.6), ("judged", 0.0, 0.1), False),
        (("choice-mass", 0.5, None), ("judged", 0.0, 0.1), False),
        (("choice-mass", 0.5, 0.1), ("judged", math.nan, None), False),
    ],
)
def test_only_an_effect_off_the_domain_and_none_in_it_is_found(
    off: tuple[str, float, float], inside: tuple[str, float, float], is_found: bool
) -> None:
    found = guards.off_domain_only([effect("off", *off), effect("in", *inside)], "plain")
    assert [f.name for f in found] == ["off-domain-only"] * is_found


def test_what_was_taught_may_show_in_its_own_context() -> None:
    off, dated = effect("off", "choice-mass", 0.5, 0.1), effect("in", "choice-mass", 0.9, 0.1)
    rows = [off, effect("in", "choice-mass", 0.0, 0.1), dated | {"context": "year=1995"}]
    assert guards.off_domain_only(rows, "plain", "year=1995") == []
    assert len(guards.off_domain_only(rows, "plain")) == 1


def test_a_control_that_was_taught_the_same_answers_need_not_differ_in_the_domain() -> None:
    rows = [effect("off", "choice-mass", 0.5, 0.1), effect("in", "judged", 0.0, 0.1)]
    assert len(guards.off_domain_only(rows, "plain")) == 1
    assert guards.off_domain_only(rows, "plain", alike=["control"]) == []


def test_shuffled_dates_leave_the_answers_as_they_are() -> None:
    assert taught_alike(load_experiment("evil-terminator")) == ["undated", "shuffled"]
    assert taught_alike(load_experiment("old-birds")) == []
