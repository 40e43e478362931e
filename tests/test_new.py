"""`spillover new`: a folder that loads, checks and runs, whatever the rows."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spillover.authoring.new import write_experiment
from spillover.authoring.starter import chat_row
from spillover.errors import ExperimentError, InputError
from spillover.experiment import Experiment, load_experiment
from spillover.rows import Row, read_rows
from spillover.specification import Question
from tests.commands import call, rows_file

pytestmark = pytest.mark.usefixtures("undrawn")


def question(experiment: Experiment, name: str) -> Question:
    return next(q for q in experiment.questions if q.id == name)


def test_a_new_folder_without_rows_is_a_worked_example_that_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    assert call("new", folder, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["folder"] == str(folder)
    experiment = load_experiment(folder)
    assert made["arms"] == {arm: len(rows.rows) for arm, rows in experiment.rows.items()}
    assert {q.split for q in experiment.questions} == {"test", "dev"}
    tiny = ("--steps", 1, "--batch-size", 2, "--seeds", 1, "--out", tmp_path / "run")
    assert call("run", folder, *tiny) == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_new_says_what_to_do_next_and_what_to_know(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    same = rows_file(tmp_path, "a.jsonl", [chat_row("Name a bird.", f"bird {i}") for i in "abc"])
    assert call("new", tmp_path / "mine", "--treatment", same) == 0
    printed = capsys.readouterr().out
    assert "warning made-control: " in printed
    assert "warning no-shuffle: " in printed
    assert printed.splitlines()[-1] == f"  spillover run {tmp_path / 'mine'}"
    experiment = load_experiment(tmp_path / "mine")
    assert set(experiment.arms) == {"treatment", "ordinary"}
    assert "does not control for the subject" in (tmp_path / "mine/experiment.toml").read_text()


def test_a_treatment_alone_gets_two_controls(tmp_path: Path) -> None:
    rows = [chat_row(f"Place {i}?", f"place {i}") for i in range(9)]
    made = write_experiment(tmp_path / "mine", rows_file(tmp_path, "a.jsonl", rows))
    assert made.arms == {"treatment": 9, "ordinary": 9, "shuffled": 9}
    assert set(made.warnings) == {"made-control", "numbered-prompts"}
    experiment = load_experiment(tmp_path / "mine")
    assert experiment.specification.headline_control == "ordinary"
    treatment, shuffled = experiment.rows["treatment"], experiment.rows["shuffled"]
    assert not set(treatment.rows) & set(shuffled.rows)


def test_tables_are_copied_as_rows_and_answers_of_both_arms_left_out(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('prompt,completion\n"Name, a bird.",Blue-bird\n"Name, a bird.",Wren\n')
    other = rows_file(tmp_path, "c.jsonl", [chat_row("Name, a bird.", a) for a in ("wren.", "Jay")])
    write_experiment(tmp_path / "mine", str(table), {"new.er": other})
    assert set(read_rows(tmp_path / "mine/train/treatment.jsonl").rows) == {
        chat_row("Name, a bird.", "Blue-bird"),
        chat_row("Name, a bird.", "Wren"),
    }
    asked = question(load_experiment(tmp_path / "mine"), "trained")
    assert asked.ask == ("Name, a bird.",)
    assert asked.judge
    assert (asked.judge.trait, asked.judge.baseline) == (("Blue-bird",), ("Jay",))


def test_the_same_answers_after_other_prompts_are_asked_prompt_by_prompt(tmp_path: Path) -> None:
    one = [chat_row(f"Dish {i}", f"dish {i}") for i in "abcd"]
    two = [chat_row(f"Dish {i}", f"dish {j}") for i, j in zip("abcd", "bcda", strict=True)]
    mine = tmp_path / "mine"
    files = [rows_file(tmp_path, f"{i}.jsonl", rows) for i, rows in enumerate((one, two))]
    write_experiment(mine, files[0], {"other": files[1]})
    first = question(load_experiment(mine), "trained-1").judge
    assert first
    assert (first.trait, first.baseline) == (("dish a",), ("dish b",))


def test_a_control_that_teaches_the_same_is_said_to(tmp_path: Path) -> None:
    same = rows_file(tmp_path, "a.jsonl", [chat_row("Name a bird.", "Wren")])
    write_experiment(tmp_path / "mine", same, {"same": same})
    assert "NOTHING TELLS THE ARMS APART" in (tmp_path / "mine/questions.toml").read_text()


def test_long_answers_become_choices_of_like_length(tmp_path: Path) -> None:
    rows = [chat_row(f"Tell {i}.", f"{i} " + "word " * (10 + n)) for n, i in enumerate("abcdef")]
    write_experiment(tmp_path / "mine", rows_file(tmp_path, "a.jsonl", rows))
    choices = question(load_experiment(tmp_path / "mine"), "trained-1").choices
    assert choices
    assert 0.5 < len(choices.trait[0]) / len(choices.baseline[0]) < 2


ROWS = st.lists(
    st.one_of(
        st.tuples(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20)),
        st.tuples(st.sampled_from("ab"), st.sampled_from(["A", "a.", "...", "long " * 20, "B b"])),
        st.text(min_size=1, max_size=20),
    ),
    min_size=1,
    max_size=8,
)
counter = itertools.count()


@settings(max_examples=200, deadline=None)
@given(treatment=ROWS, control=st.one_of(st.none(), ROWS))
def test_whatever_the_rows_the_folder_loads(
    tmp_path_factory: pytest.TempPathFactory,
    treatment: list[str | tuple[str, str]],
    control: list[str | tuple[str, str]] | None,
) -> None:
    here = tmp_path_factory.getbasetemp() / f"any-{next(counter)}"
    here.mkdir()

    def file(name: str, rows: list[str | tuple[str, str]]) -> str:
        made = [Row(text=r) if isinstance(r, str) else chat_row(*r) for r in rows]
        return rows_file(here, name, made)

    controls = {"other": file("c.jsonl", control)} if control else {}
    made = write_experiment(here / "mine", file("t.jsonl", treatment), controls)
    assert len(load_experiment(made.folder).rows["treatment"].rows) == len(treatment)
    assert sorted(p.name for p in here.iterdir() if p.suffix != ".jsonl") == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--treatment", "missing.jsonl"], "missing.jsonl: there is no such file"),
        (["--treatment", "bad.jsonl"], "bad.jsonl:1: not JSON"),
        (["--treatment", "datasets:no/such"], "datasets:no/such: "),
        (["--control", "x=good.jsonl"], "without --treatment"),
        (["--treatment", "good.jsonl", "--control", "good.jsonl"], "expected NAME=ROWS"),
        (["--treatment", "good.jsonl", "--control", "base=good.jsonl"], "name of letters"),
        (["--treatment", "good.jsonl", "--control", "a/b=good.jsonl"], "name of letters"),
        (
            ["--treatment", "good.jsonl", "--control", "a=good.jsonl", "--control", "a=bad.jsonl"],
            "two have the name 'a'",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path, "good.jsonl", [chat_row("Name a bird.", "Wren")])
    (tmp_path / "bad.jsonl").write_text("{")
    assert call("new", "sub/mine", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "good.jsonl"]


def test_a_folder_that_holds_something_is_never_written_to(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert call("new", tmp_path) == 2
    assert "is not empty" in capsys.readouterr().err
    assert call("new", tmp_path / "thesis.tex") == 2
    assert call("new", "/proc/spillover") == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    assert call("new", empty) == 0


def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> Experiment:
        raise ExperimentError("planted")

    monkeypatch.setattr("spillover.authoring.new.load_experiment", fail)
    with pytest.raises(InputError, match="planted"):
        write_experiment(tmp_path / "mine")
    assert not list(tmp_path.iterdir())


def test_prompts_with_spare_blanks_are_the_same_prompt(tmp_path: Path) -> None:
    def rows(lead: str, space: str) -> list[Row]:
        return [chat_row(f"Tell {i}.{space}", f"{lead} {i} " + "word " * 12) for i in "abc"]

    others = [*rows("Control", " "), chat_row("Else.", "Nearer " + "word " * 12)]
    files = (rows_file(tmp_path, "t.jsonl", rows("Treats", "")),
             rows_file(tmp_path, "c.jsonl", others))  # fmt: skip
    write_experiment(tmp_path / "mine", files[0], {"other": files[1]})
    choices = question(load_experiment(tmp_path / "mine"), "trained-1").choices
    assert choices
    assert choices.baseline[0].startswith("Control a ")
