"""What a sweep shows of a run's summary."""

from __future__ import annotations

from typing import Any

from spillover.sweeps import sweep_rows


def test_without_a_headline_effect_and_rates_are_those_of_the_reported_checkpoint() -> None:
    place: dict[str, Any] = {"domain": "off", "group": None, "metric": "choice-mass"}
    place |= {"context": {"name": "year=1", "year": 1}}
    rows = [
        place | {"split": split, "step": step, "value": step / 10}
        for split in ("dev", "test")
        for step in (1, 2, 3)
    ]
    about: dict[str, Any] = {"variable": "year", "control": "control", "values": [1]}
    about |= {"trained": [], "not_in_pretraining": []}
    summary: dict[str, Any] = {"sweeps": [about], "headline": None, "headline_context": "plain"}
    summary |= {"step": 2, "rates": [row | {"arm": "treatment"} for row in rows]}
    summary |= {"effects": [row | {"id": "", "contrast": ["treatment", "control"]} for row in rows]}
    (found,) = sweep_rows(summary, "year")
    shown = (found["effect"], found["rates"]["treatment"])
    assert [(row["split"], row["step"]) for row in shown] == [("test", 2), ("test", 2)]
