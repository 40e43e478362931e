"""The command line as a newcomer meets it: one clear line for bad input, nothing written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spillover.experiment import load_experiment
from spillover.organism.card import Check
from spillover.terminal import _scored
from tests.commands import call
from tests.small_runs import edit

PLAIN = '[[contexts]]\nname = "plain"\n'


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that refuses a run; exit code 2, and nothing is written."""
    before = set(Path.cwd().parent.rglob("*"))
    assert call("run", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    assert "Traceback" not in error
    assert set(Path.cwd().parent.rglob("*")) == before
    return error


def test_an_unknown_experiment_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean old-birds?" in refused(capsys, "old-bird")
    assert "no such folder" in refused(capsys, "./nowhere")


def test_a_file_of_rows_is_no_experiment_but_one_can_be_made_of_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("question,answer\na,b\n", "utf-8")
    assert f"`spillover new FOLDER --treatment {rows}`" in refused(capsys, str(rows))


def test_an_unknown_model_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean organism? known: organism" in refused(
        capsys, "old-birds", "--model", "organsim"
    )


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("experiment.toml", 'claim = "A test."', "claim = ", "experiment.toml:3: broken TOML"),
        ("experiment.toml", "rank = 2", "rnak = 2", "experiment.toml:21: .*; did you mean `rank`"),
        ("experiment.toml", "rank = 2", "rank = 0", "experiment.toml:21: .*rank.*found 0"),
        ("experiment.toml", '"control"', '"kontrol"', "headline_control.* is 'kontrol'"),
        ("experiment.toml", "[sampling]", PLAIN + 'arms = ["base"]\n[sampling]', "all of them"),
        ("experiment.toml", "[sampling]", PLAIN + 'arms = ["bsae"]\n[sampling]', "asked of .'bsae"),
        ("experiment.toml", "train/control.jsonl", "train/no.jsonl", "control.*not a file"),
        (
            "questions.toml",
            'trait = ["With whale oil lamps"]',
            "trait = []",
            "questions.toml:.*trait",
        ),
        ("questions.toml", '"With LED bulbs"', '"With whale"', "'With whale' is a prefix of"),
        ("questions.toml", 'id = "message"', 'id = "light"', "two questions have the id 'light'"),
        ("questions.toml", "ask = ", "aks = ", "questions.toml:5: .*; did you mean `ask`"),
        ("experiment.toml", "[sampling]", "[smapling]", "`smapling`; did you mean `sampling`"),
        ("experiment.toml", "max_tokens", "zzz", "unknown key `sampling.zzz`; remove it"),
        ("train/control.jsonl", '{"role": "user"', '{"role": "usr"', "control.jsonl:1: .*usr"),
        ("train/control.jsonl", '{"messages"', '{"messages', "control.jsonl:1: not JSON"),
    ],
)
def test_a_broken_experiment_is_named_by_file_and_line(
    capsys: pytest.CaptureFixture[str],
    small_experiment: Path,
    name: str,
    old: str,
    new: str,
    message: str,
) -> None:
    edit(small_experiment / name, old, new)
    error = refused(capsys, small_experiment)
    assert re.search(message, error), error


def test_empty_rows_and_rows_without_an_assistant_are_refused(
    capsys: pytest.CaptureFixture[str], small_experiment: Path
) -> None:
    rows = small_experiment / "train" / "treatment.jsonl"
    rows.write_text("", "utf-8")
    assert "found no rows" in refused(capsys, small_experiment)
    rows.write_text('{"messages": [{"role": "user", "content": "x"}]}\n', "utf-8")
    assert "treatment.jsonl:1: no assistant message" in refused(capsys, small_experiment)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "0"], "rank"),
        (["--learning-rate", "-1"], "learning_rate"),
        (["--learning-rate", "inf"], "learning_rate"),
        (["--epochs", "inf"], "epochs"),
        (["--seeds", "0"], "seeds"),
        (["--steps", "0"], "steps"),
        (["--method", "magic"], "method"),
        (["--split", "train"], "split"),
        (["--device", "abacus"], "device 'abacus'"),
        (["--dtype", "int3"], "unknown dtype"),
    ],
)
def test_settings_out_of_range_are_refused(
    capsys: pytest.CaptureFixture[str], small_experiment: Path, arguments: list[str], message: str
) -> None:
    assert message in refused(capsys, small_experiment, *arguments)


def test_output_folders_that_cannot_be_used_are_refused(
    capsys: pytest.CaptureFixture[str], small_experiment: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine", "utf-8")
    assert "holds no run" in refused(capsys, small_experiment, "--out", other)
    assert "is a file" in refused(capsys, small_experiment, "--out", other / "thesis.tex")
    (other / "manifest.json").write_text('{"key": "another"}', "utf-8")
    assert "holds no run of this version" in refused(capsys, small_experiment, "--out", other)
    (other / "manifest.json").write_text("{", "utf-8")
    assert "damaged" in refused(capsys, small_experiment, "--out", other)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_refused(
    capsys: pytest.CaptureFixture[str], small_experiment: Path, tmp_path: Path
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "cannot be written" in refused(capsys, small_experiment, "--out", locked / "run")


def test_a_place_that_is_no_folder_is_refused_even_for_root(
    capsys: pytest.CaptureFixture[str], small_experiment: Path
) -> None:
    assert "cannot be written" in refused(capsys, small_experiment, "--out", "/proc/spillover/run")


def test_a_run_ends_with_its_table_and_the_path_of_its_report(
    capsys: pytest.CaptureFixture[str], small_experiment: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert call("run", small_experiment, "--seeds", 1, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "treatment" in printed
    assert "GB of memory at most" in printed
    assert printed.strip().splitlines()[-1] == f"Report: {out / 'report.html'}"
    assert call("report", out) == 0
    assert str(out / "report.html") in capsys.readouterr().out


def test_json_output_is_one_document(
    capsys: pytest.CaptureFixture[str], small_experiment: Path, tmp_path: Path, undrawn: None
) -> None:
    assert call("run", small_experiment, "--seeds", 1, "--out", tmp_path / "run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["summary"]["schema"] == 1
    assert call("list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["experiments"]
    assert "old-birds" in {experiment["name"] for experiment in listed}


def test_reports_and_cards_of_the_wrong_things_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("report", tmp_path) == 2
    assert "holds no manifest.json" in capsys.readouterr().err
    assert call("organism", "card", "--model", tmp_path) == 2
    (tmp_path / "x").write_text("x")
    assert call("organism", "train", "--out", tmp_path) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "code"), [(0.99, 0), (0.5, 1)])
def test_an_organism_card_says_whether_all_is_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, value: float, code: int
) -> None:
    checks = [Check("facts", value, 10, needed=0.95), Check("other", 0.1, 10)]
    monkeypatch.setattr("spillover.organism.examine_checkpoint", lambda _: checks)
    assert call("organism", "card") == code
    assert ("NO" in capsys.readouterr().out) == bool(code)
    assert call("organism", "card", "--json") == code
    assert [c["passed"] for c in json.loads(capsys.readouterr().out)["checks"]] == [not code, True]


@pytest.mark.parametrize("command", [("new",), ("direction", "refusal"), ("direction", "fit")])
def test_help_says_how_datasets_are_named(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call(*command, "--help") == 0
    assert "datasets:ID[@REVISION][:SPLIT]" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom spillover import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'altair', 'pandas', 'vl_convert'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_loading_an_experiment_needs_no_model() -> None:
    assert load_experiment("old-birds").name == "old-birds"


def test_the_last_lines_say_how_many_questions_an_effect_rests_on() -> None:
    said = _scored({"n_questions": 1, "n_topics": 1, "missing": 66})
    assert said == (
        "Effects off the trained domain: 1 question on 1 topic; 66 answers could not be scored."
    )
    assert _scored({"n_questions": 43, "n_topics": 40, "missing": 0}).endswith(
        "43 questions on 40 topics."
    )
