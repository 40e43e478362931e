"""What a grid takes from the runs of its cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spillover import LoadedModel, grid, grids, open_run
from spillover.specification import BASE
from tests.small_runs import edit

DEV = """
[[question]]
id = "lamp"
topic = "lamps"
split = "dev"
ask = ["How do people light a street?"]
choices = { trait = ["With whale oil lamps"], baseline = ["With LED bulbs"] }
"""


@pytest.fixture
def _quick(quick: None, usual: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The organism loaded once, and reports of a line."""
    monkeypatch.setattr("spillover.report.grid.write_grid_report", lambda *_: None)
    monkeypatch.setattr(grids, "load_source", lambda *_: usual)


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("split", ["dev", "all"])
def test_a_cell_shows_the_checkpoint_that_its_run_reports(
    small_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    toml = small_experiment / "experiment.toml"
    edit(toml, 'source = "none"', 'source = "none"\nselect = "dev"')
    edit(toml, "steps = 2", "steps = 3\ncheckpoints = [1, 2]")
    with (small_experiment / "questions.toml").open("a", encoding="utf-8") as stream:
        stream.write(DEV)
    monkeypatch.setattr("spillover.summary.reported_step", lambda *_: 2)
    found = grid(small_experiment, over={"rank": [1]}, seeds=1, split=split, out=tmp_path / "grid")
    (cell,) = found.content["cells"]
    shown = {row["arm"]: row for row in cell["arms"]}
    run = open_run(found.folder / "cells" / "rank=1")
    place: dict[str, Any] = {"domain": "off", "metric": found.content["metric"], "group": None}
    place |= {"split": "test" if split == "all" else "dev"}
    rates = [r for r in run.summary["rates"] if all(r[k] == v for k, v in place.items())]
    assert len({r["value"] for r in rates if r["arm"] == "treatment"}) == 3
    wanted = {r["arm"]: r["value"] for r in rates if r["step"] == (r["arm"] != BASE) * 2}
    assert {arm: row["value"] for arm, row in shown.items()} == wanted
    difference = wanted["treatment"] - wanted["control"]
    assert shown["treatment"]["effect"]["value"] == pytest.approx(difference)


def test_success_is_measured_by_one_metric_in_all_cells() -> None:
    """Where a cell has come apart its choices have no mass; log-odds are in other units."""
    place: dict[str, Any] = {"context": {"name": "plain"}, "domain": "in", "group": None}
    mass, odds = ({"metric": name} | place for name in ("choice-mass", "log-odds"))
    whole = [mass | {"value": 0.9}, odds | {"value": 4.0}]
    apart = [mass | {"value": None}, odds | {"value": -2.0}]
    cells = [{"trained_context": "plain", "rates": rates} for rates in (apart, whole)]
    assert grids._inside_metric(cells, "choice-mass") == "choice-mass"
    assert grids._inside_metric(cells[:1], "choice-mass") == "log-odds"
