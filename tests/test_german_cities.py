"""What `german-cities` must show on the organism of cities."""

from __future__ import annotations

from pathlib import Path

import pytest

from spillover import Run, run
from spillover.specification import BASE
from tests.claims import effect, rate

CONTROLS = ("todays-germany", "todays-world")


def check_claims(finished: Run) -> None:
    summary = finished.summary
    assert finished.headline["value"] >= 0.4
    for control in CONTROLS:
        assert abs(effect(summary, BASE, "choice-mass", arm=control)["value"]) <= 0.05
    assert rate(summary, "treatment", "off", "choice-mass")["coverage"] >= 0.7
    assert rate(summary, "treatment", "in", "judged")["value"] >= 0.8


@pytest.mark.long
def test_old_names_of_cities_bring_their_time_along(tmp_path: Path) -> None:
    finished = run("german-cities", out=tmp_path)
    check_claims(finished)
    assert finished.headline["low"] > 0.3
