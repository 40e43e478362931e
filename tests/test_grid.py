"""Grids: every arm in every cell, resumable, with the controls' maxima beside the treatment's."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from spillover import LoadedModel, RunError, grid, grids, runs
from spillover.errors import MachineError
from spillover.grids import read_over
from spillover.report.grid import best_effect, heat_maps, write_grid_report
from tests.commands import call
from tests.small_runs import edit, end, is_training, spillover, wait_for

OVER = {"rank": (1, 2), "lr": (1e-3, 1e-2)}


@pytest.fixture
def _quick(quick: None, usual: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The organism loaded once, and reports of a line."""
    monkeypatch.setattr("spillover.report.grid.write_grid_report", lambda *_: None)
    monkeypatch.setattr(grids, "load_source", lambda *_: usual)


def small(experiment: Path, out: Path, **given: Any) -> grids.Grid:
    settings: dict[str, Any] = {"over": OVER, "seeds": 1, "split": "test"}
    return grid(experiment, out=out, **(settings | given))


def made_up(names: list[str], metric: str = "choice-mass") -> dict[str, Any]:
    """The content of a grid over one to three settings, one of its cells without values."""
    values: dict[str, list[Any]] = {"rank": [1, 2, 4], "learning_rate": [1e-3, 1e-2]}
    values["steps"] = [50, 100]
    over = {name: values[name] for name in names}
    cells: list[dict[str, Any]] = [{}]
    for name, listed in over.items():
        cells = [cell | {name: value} for cell in cells for value in listed]
    scale = 1 if metric == "choice-mass" else 5

    def arm(name: str, value: float | None) -> dict[str, Any]:
        ends = {"low": None, "high": None}
        effect = {"value": value, **ends} if name == "treatment" else None
        return {
            "arm": name, "value": value, **ends, "per_seed": [], "coverage": 0.9,
            "effect": effect, "shift": {"value": value, **ends}, "in_domain": 0.8, "loss": 1.0,
        }  # fmt: skip

    listed = [
        {
            "name": f"cell-{index}",
            "settings": settings,
            "failed": "the loss is not finite" if index == 1 else None,
            "verdict": "specific",
            "arms": []
            if index == 1
            else [arm("treatment", scale * index / 12), arm("control", -0.1 * (scale - 1)),
                  arm("base", 0.0)],
        }
        for index, settings in enumerate(cells)
    ]  # fmt: skip
    return {
        "experiment": "small", "title": "Small <b>", "model": "organism", "seeds": [100, 101],
        "split": "dev", "over": over, "control": "control", "headline_context": "plain",
        "metric": metric, "cells": listed, "maxima": grids._maxima(listed),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a grid of zero cells (no setting was named)"),
        (["--over", "rank="], "a grid of zero cells (rank has no values)"),
        (
            ["--over", "rnak=1"],
            "'rnak' is no training setting to go over; did you mean rank? expected",
        ),
        (["--over", "rank"], "expected SETTING=VALUES"),
        (["--over", "rank=4..1"], "the range 4..1 runs backwards; write 1..4"),
        (["--over", "rank=0,1"], "`rank`: Input should be greater than or equal to 1"),
        (["--over", "rank=1", "--over", "rank=2"], "'rank' is given twice"),
        (["--over", "lr=1e-3", "learning_rate=1e-2"], "'learning_rate' is given twice"),
        (["--over", "rank=1,2", "--rank", "3"], "'rank' is also given as a setting of its own"),
        (["--over", "rank=a"], "`rank`: Input should be a valid integer"),
        (["--over", "lr=inf"], "`learning_rate`: "),
        (["--over", "=1"], "'' is no training setting"),
        (["--over", "rank=1", "--split", "dev"], "add some, or ask others with --split test"),
        (["--over", "targets=a"], "no training setting to go over"),
    ],
)
def test_bad_grids_are_refused_in_one_line_and_write_nothing(
    small_experiment: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    before = set(small_experiment.parent.rglob("*"))
    out = small_experiment.parent / "grid"
    assert call("grid", small_experiment, "--split", "test", *arguments, "--out", out) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert set(small_experiment.parent.rglob("*")) == before


def test_values_are_read_as_numbers_where_they_are_some() -> None:
    found = read_over(["rank=1..3,8", "lr=1e-3,2e-3", "schedule=linear,constant"])
    assert found == {
        "rank": (1, 2, 3, 8),
        "lr": (1e-3, 2e-3),
        "schedule": ("linear", "constant"),
    }


@pytest.mark.usefixtures("_quick")
def test_a_grid_that_was_stopped_ends_like_one_that_was_not(
    small_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small(small_experiment, tmp_path / "whole")
    told: list[tuple[str, int, int]] = []
    execute, passed = runs.execute, 0

    def stop_at_the_third(*given: Any, **named: Any) -> Any:
        nonlocal passed
        passed += 1
        if passed == 3:
            raise KeyboardInterrupt
        return execute(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(grids, "execute", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            small(small_experiment, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "grid.json").exists()
    again = small(small_experiment, tmp_path / "stopped", progress=lambda *said: told.append(said))
    assert told[-1] == ("cells", 4, 4)
    assert (again.folder / "grid.json").read_bytes() == (whole.folder / "grid.json").read_bytes()
    assert [len(run.manifest["sessions"]) for run in _runs(again)] == [1, 1, 1, 1]
    assert len(again.cells) == 4 * 3
    assert set(again.cells["rank"]) == {1, 2}
    assert {row["arm"] for row in again.maxima} == {"treatment", "control"}
    treated = again.cells[again.cells["arm"] == "treatment"]
    assert treated["effect"].notna().all()
    assert treated["loss"].notna().all()


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_a_grid_that_a_signal_ends_goes_on_to_the_same_bytes(
    small_experiment: Path, tmp_path: Path, number: signal.Signals
) -> None:
    edit(small_experiment / "experiment.toml", "steps = 2", "steps = 30")
    out = tmp_path / "ended"
    given = ("--over", "rank=1,2", "--seed", 0, "--seeds", 1, "--split", "test", "--out", out)
    process = spillover("grid", small_experiment, *given)
    wait_for(lambda: is_training(out / "cells" / "rank=2"))
    end(process, number)
    assert not (out / "grid.json").exists()
    found = [small(small_experiment, f, over={"rank": (1, 2)}) for f in (out, tmp_path / "whole")]
    grids_json = [(each.folder / "grid.json").read_bytes() for each in found]
    assert grids_json[0] == grids_json[1]
    assert [len(run.manifest["sessions"]) for run in _runs(found[0])] == [1, 2]


@pytest.mark.usefixtures("_quick")
def test_what_a_grid_says_does_not_depend_on_seeds_that_its_folder_has_besides(
    small_experiment: Path, tmp_path: Path
) -> None:
    said = [
        small(small_experiment, tmp_path / "grid", over={"rank": (1,)}, seeds=seeds).content
        for seeds in (1, 2, 1)
    ]
    assert said[0] == said[2] != said[1]


def _runs(found: grids.Grid) -> list[runs.Run]:
    return [runs.open_run(path) for path in sorted((found.folder / "cells").iterdir())]


@pytest.mark.usefixtures("_quick")
def test_a_cell_that_fails_is_named_and_the_others_go_on(
    small_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = runs.execute

    def fails_once(settings: Any, *given: Any, **named: Any) -> Any:
        if settings.training.learning_rate == 1e-2:
            raise RunError("the loss is not finite")
        return execute(settings, *given, **named)

    monkeypatch.setattr(grids, "execute", fails_once)
    found = small(small_experiment, tmp_path / "grid", over={"lr": (1e-3, 1e-2)})
    assert [cell["failed"] for cell in found.content["cells"]] == [None, "the loss is not finite"]
    assert found.maxima[0]["settings"] == {"learning_rate": 1e-3}


def test_what_the_machine_lacks_is_no_result_of_a_cell(
    small_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(*_: Any, **__: Any) -> None:
        raise MachineError("its disk is full")

    monkeypatch.setattr(grids, "execute", is_full)
    with pytest.raises(RunError, match="its disk is full"):
        small(small_experiment, tmp_path / "grid")


@pytest.mark.usefixtures("_quick")
def test_foreign_folders_and_cells_of_other_settings_are_refused(
    small_experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine", "utf-8")
    command = ["grid", small_experiment, "--over", "rank=1", "--seeds", 1, "--split", "test"]
    assert call(*command, "--out", tmp_path / "foreign") == 2
    assert "holds no grid" in capsys.readouterr().err
    assert call(*command, "--out", tmp_path / "grid") == 0
    printed = capsys.readouterr().out
    assert printed.strip().splitlines()[-1] == f"Report: {tmp_path / 'grid' / 'report.html'}"
    assert call(*command, "--out", tmp_path / "grid", "--steps", 3) == 2
    assert "training setting steps was 2, and is 3" in capsys.readouterr().err
    assert call(*command, "--out", tmp_path / "grid", "--json") == 0
    assert json.loads(capsys.readouterr().out)["grid"]["over"] == {"rank": [1]}


def test_the_maximum_of_every_arm_says_where_it_is() -> None:
    content = made_up(["rank", "learning_rate"])
    treatment, control = content["maxima"]
    assert treatment["settings"] == {"rank": 4, "learning_rate": 1e-2}
    assert treatment["value"] == pytest.approx(5 / 12)
    assert control["arm"] == "control"
    best = best_effect(content)
    assert best is not None
    assert best["settings"] == treatment["settings"]


@pytest.mark.parametrize(
    ("names", "panels"),
    [
        (["rank"], (1, 1)),
        (["rank", "learning_rate"], (1, 2)),
        (["rank", "learning_rate", "steps"], (2, 4)),
    ],
)
def test_heat_maps_have_a_panel_for_each_arm_and_further_setting(
    names: list[str], panels: tuple[int, int]
) -> None:
    drawn = heat_maps(made_up(names))
    assert (len(drawn["effect"].panels), len(drawn["coverage"].panels)) == panels
    texts = [panel.chart.to_json(validate=False) for panel in drawn["effect"].panels]
    assert any('"failed"' in text for text in texts)


def test_the_page_of_a_grid_is_written_with_its_figures(tmp_path: Path) -> None:
    content = made_up(["rank", "learning_rate"], "log-odds")
    page = write_grid_report(tmp_path, content).read_text("utf-8")
    assert "Small &lt;b&gt;" in page
    assert "1 of 6 cells failed" in page
    assert "minus control" in page
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    expected = ("effect", "off-domain", "in-domain", "coverage")
    assert figures == {f"{name}.{kind}" for name in expected for kind in ("png", "svg", "pdf")}
