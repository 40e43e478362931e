"""Mediations of a whole suite, and options of the command that do not go together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spillover import InputError, Mediation
from spillover.mediation import suite as together
from spillover.mediation.table import markdown
from spillover.suites import MEDIATION, table_in
from tests.commands import call
from tests.test_mediation_table import ROW


def suite_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> list[tuple[str, dict[str, Any]]]:
    """A suite whose runs are mediated at once, but for those with a word in their name.

    What each was called with is noted.
    """
    for name in ("birds-organism", "cities-organism", "birds-organism-unlinked"):
        (folder / "runs" / name).mkdir(parents=True)
    calls: list[tuple[str, dict[str, Any]]] = []

    def mediated(run: Path, **given: Any) -> Mediation:
        calls.append((run.name, given))
        if refused in run.name:
            raise InputError(f"{run}: its headline effect is +0.002")
        made = {"experiment": run.name, "rows": [ROW], "contexts": None}
        return Mediation(run, made)

    monkeypatch.setattr(together, "open_run", lambda place: place)
    monkeypatch.setattr(together, "mediate", mediated)
    return calls


def test_the_mediations_of_a_suite_come_into_one_table_of_a_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = suite_of(tmp_path, monkeypatch, "unlinked")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- mediation -->\n<!-- /mediation -->\n", "utf-8")
    given = ("--no-remedies", "--prompts", "p.jsonl", "--inoculation", "Say so.")
    assert call("mediate", "--suite", tmp_path, "--readme", readme, *given) == 0
    said = capsys.readouterr()
    assert said.out.strip().splitlines()[-1] == f"Table: {tmp_path / together.TABLE}"
    unlinked = tmp_path / "runs" / "birds-organism-unlinked"
    why = f"{unlinked}: its headline effect is +0.002"
    assert f"left out: {why}" in said.err.splitlines()
    how = {"prompts": Path("p.jsonl"), "inoculation": "Say so.", "remedies": False}
    assert [options for _, options in calls] == [how] * 3
    kept = json.loads((tmp_path / together.RESULT).read_text("utf-8"))
    made = together.table_of(kept)
    assert [one["experiment"] for one in kept["mediations"]] == [
        "birds-organism",
        "cities-organism",
    ]
    assert kept["left_out"] == [{"run": unlinked.name, "why": why}]
    assert table_in(readme.read_text("utf-8"), MEDIATION) == made
    long = markdown(kept["mediations"])
    assert (tmp_path / together.TABLE).read_text("utf-8") == f"{made}\n\n{long}\n"


def test_a_suite_without_a_run_that_can_be_mediated_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite_of(tmp_path, monkeypatch, "organism")
    assert call("mediate", "--suite", tmp_path) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "none of its 3 runs can be mediated; the first: " in said
    assert not (tmp_path / together.RESULT).exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--suite", "many", "--experiment", "old-birds"), "--experiment goes with one run"),
        (("--suite", "many", "--open"), "--open goes with one run"),
        (("one", "--readme", "README.md"), "--readme goes with --suite FOLDER"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    given: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("mediate", *given) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_a_folder_that_is_no_suite_and_no_folder_at_all_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("mediate", "--suite", tmp_path) == 2
    assert "holds no suite" in capsys.readouterr().err
    assert call("mediate") == 2
    assert "one finished run, or --suite" in capsys.readouterr().err
    assert call("mediate", tmp_path) == 2
    assert "holds no manifest.json" in capsys.readouterr().err
