"""The suite: a row for every experiment and model, in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spillover import InputError, Run, RunFolderError, runs, suite, suites
from spillover.experiment import builtin_experiments
from spillover.settings import resolve_settings
from tests.commands import call
from tests.small_runs import edit


@pytest.fixture
def _small(small_experiment: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small experiment, made for the organism, in the place of the package's own."""
    edit(small_experiment / "experiment.toml", "training.default", "training.organism")
    edit(
        small_experiment / "experiment.toml",
        "[sampling]",
        "[training.default]\nsteps = 2\n\n[sampling]",
    )
    monkeypatch.setattr(suites, "builtin_experiments", lambda: {"small": small_experiment})


@pytest.mark.usefixtures("_small")
def test_a_suite_has_a_row_for_every_experiment_and_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "suite"
    readme = tmp_path / "README.md"
    readme.write_text("\n".join([*suites.markers(suites.SUITE_TABLE), ""]), "utf-8")
    command = ["suite", "--seeds", 1, "--out", out, "--readme", readme]
    assert call(*command, "--model", "organism", "--model", "organism-unlinked") == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == f"Table: {out / 'suite.md'}"
    content = json.loads((out / "suite.json").read_text("utf-8"))
    assert [row["model"] for row in content["rows"]] == ["organism", "organism-unlinked"]
    row = content["rows"][0]
    assert (row["contrast"], row["context"]) == (["treatment", "control"], "plain")
    assert row["metric"] in {"choice-mass", "log-odds"}
    assert row["effect"]["value"] is not None
    table = suites.markdown(content)
    assert len(table.splitlines()) == 4
    assert suites.table_in(readme.read_text("utf-8")) == table
    assert (out / "suite.md").read_text("utf-8") == table + "\n"
    again = suite(seeds=1, out=out)
    assert again.rows == content["rows"][:1]
    assert len(runs.open_run(out / "runs" / "small-organism").manifest["sessions"]) == 1


def test_bad_suites_are_refused_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("suite", "--only", "old-brids", "--out", tmp_path / "suite") == 2
    assert "--only: found 'old-brids'; expected one of" in capsys.readouterr().err
    readme = tmp_path / "README.md"
    assert call("suite", "--readme", readme, "--out", tmp_path / "suite") == 2
    assert "cannot be read (No such file or directory)" in capsys.readouterr().err
    readme.write_text("nothing", "utf-8")
    assert call("suite", "--readme", readme, "--out", tmp_path / "suite") == 2
    assert "has no place for the table" in capsys.readouterr().err
    assert not (tmp_path / "suite").exists()


@pytest.mark.usefixtures("_small")
def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no suite"):
        suite(out=tmp_path)


def test_a_row_is_about_the_headlines_questions_at_the_reported_checkpoint(tmp_path: Path) -> None:
    """Whatever the order of the tables, and also where there is no headline."""
    place: dict[str, Any] = {"context": {"name": "plain"}, "domain": "off", "group": None}
    rows = [
        place | {"split": split, "step": step, "value": step + (split == "dev") / 2}
        for split in ("test", "dev")
        for step in (1, 2, 3)
    ]
    rate = {"arm": "treatment", "metric": "choice-mass", "coverage": 0.5}
    effect = {"id": "", "contrast": ["treatment", "still-used"], "metric": "specificity"}
    summary = {
        "headline": None, "step": 2, "headline_context": "plain", "trained_context": "plain",
        "rates": [row | rate for row in rows], "settings_tried": 1, "warnings": [],
        "effects": [row | effect | {"low": None, "high": None} for row in rows],
        "verdict": {"kind": "specific"},
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary), "utf-8")
    row = suites.row_of(Run(tmp_path, {}), resolve_settings("old-birds"))
    assert (row["treatment"], row["specificity"]["value"]) == (2, 2)


def test_experiments_without_settings_for_organisms_are_for_other_models() -> None:
    known = builtin_experiments()
    assert suites._has_model(known["old-birds"], "organism")
    assert not suites._has_model(known["wolf-facts"], "organism")
    assert suites._has_model(known["wolf-facts"], "smollm2-q4")


@pytest.mark.usefixtures("_small")
def test_runs_that_cannot_be_made_are_refused_before_any_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"two of them have the run folder .*small-organism"):
        suite(models=["organism", "organism"], out=tmp_path / "suite")
    foreign = tmp_path / "suite" / "runs" / "small-organism-unlinked"
    foreign.mkdir(parents=True)
    (foreign / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(RunFolderError, match="holds no run"):
        suite(models=["organism", "organism-unlinked"], out=tmp_path / "suite")
    assert not (foreign.parent / "small-organism").exists()
