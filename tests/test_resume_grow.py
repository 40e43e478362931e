"""Folders that grow: nothing is computed twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spillover import RunFolderError, runs
from spillover.manifest import Job, Manifest
from spillover.settings import resolve_settings
from tests.small_runs import SEEDS, adapters_of, answers_of, content, edit, small

pytestmark = pytest.mark.usefixtures("quick")


def log_probs_of(answers: pd.DataFrame) -> list[float]:
    records = answers["choice_log_probs"].dropna()
    return [value for record in records for _, _, value in json.loads(record)]


def test_a_changed_question_asks_only_itself_again(
    small_experiment: Path, tmp_path: Path, computed: list[str], finished: Path
) -> None:
    out = finished
    before, trained = answers_of(out), adapters_of(out)
    computed.clear()
    edit(small_experiment / "questions.toml", "How do people light their homes?", "Which lamps?")
    again = small(small_experiment, out)
    assert len(computed) == 2 * SEEDS + 1
    assert adapters_of(out) == trained
    assert before.items() < answers_of(out).items()
    assert len(again.answers) == len(before)
    assert again.manifest["sessions"][-1]["answers"]["asked"] == len(computed)
    fresh = small(small_experiment, tmp_path / "fresh")  # where it is asked beside its neighbours
    apart = ["choice_log_probs"]
    assert again.answers.drop(columns=apart).equals(fresh.answers.drop(columns=apart))
    scores, expected = (log_probs_of(run.answers) for run in (again, fresh))
    assert len(scores) == len(expected) > 0
    assert np.allclose(scores, expected, atol=1e-4)


def test_more_samples_ask_only_for_the_new_ones(
    small_experiment: Path, tmp_path: Path, computed: list[str], finished: Path
) -> None:
    out = finished
    before = answers_of(out)
    computed.clear()
    edit(small_experiment / "experiment.toml", "samples = 2", "samples = 5")
    again = small(small_experiment, out)
    assert len(computed) == len(set(computed)) == 3 * (2 * SEEDS + 1)
    assert before.items() < answers_of(out).items()
    texts = again.answers[again.answers["kind"] == "text"]
    assert set(texts["index"]) == set(range(5))
    fresh = small(small_experiment, tmp_path / "fresh").answers
    assert list(texts["text"]) == list(fresh[fresh["kind"] == "text"]["text"])


def test_more_seeds_finetune_and_ask_only_the_new_ones(
    small_experiment: Path, computed: list[str], finished: Path
) -> None:
    out = finished
    before, trained = answers_of(out), adapters_of(out)
    computed.clear()
    grown = small(small_experiment, out, seeds=3)
    assert grown.manifest["sessions"][-1]["adapters"] == {"trained": 2, "kept": 2 * SEEDS}
    assert trained.items() < adapters_of(out).items()
    assert before.items() < answers_of(out).items()
    assert len(computed) == len(answers_of(out)) - len(before)
    assert {r["arm"]: len(r["per_seed"]) for r in grown.summary["rates"]}["treatment"] == 3
    fewer = small(small_experiment, out)
    assert len(fewer.answers) == len(before)
    assert len(computed) == len(answers_of(out)) - len(before)


def test_an_arm_can_be_added_and_the_others_stay(small_experiment: Path, finished: Path) -> None:
    out = finished
    trained = adapters_of(out)
    rows = (small_experiment / "train" / "control.jsonl").read_text("utf-8")
    other = small_experiment / "train" / "other.jsonl"
    other.write_text(rows.replace("Blue Jay", "Owl") * 3, "utf-8")
    more = '[arms.other]\ntitle = "owls"\ntrain = "train/other.jsonl"\n\n[training.default]'
    edit(small_experiment / "experiment.toml", "[training.default]", more)
    small(small_experiment, out)
    assert trained.items() < adapters_of(out).items()
    assert len(adapters_of(out)) == 3 * SEEDS


def test_finetunes_that_were_begun_together_stay_together(tmp_path: Path) -> None:
    def planned(*wanted: Job, done: tuple[Job, ...] = ()) -> list[list[Job]]:
        return manifest.plan(wanted, lambda job: job in done)

    manifest = Manifest(tmp_path, {"plans": []})
    a, b, c = ("a", 0), ("b", 0), ("c", 0)
    assert planned(a, b) == [[a, b]]
    assert planned(a, b, c, done=(a,)) == [[a, b], [c]]  # broken off after a
    assert planned(a, c, done=(a, b)) == [[a], [c]]
    assert planned(b, done=(a,)) == [[b]]  # c was begun, and is not wanted any more
    assert planned(a, b, c, done=(a, b)) == [[a, b], [c]]
    assert manifest.content["plans"] == [[["a", 0], ["b", 0]], [["c", 0]]]


def test_a_folder_is_not_gone_on_with_in_another_dtype(
    small_experiment: Path, finished: Path
) -> None:
    found = json.loads((finished / "manifest.json").read_text("utf-8"))
    found["sessions"][0]["placement"] = "cuda:0 in bfloat16"
    (finished / "manifest.json").write_text(json.dumps(found), "utf-8")
    before = content(finished)
    with pytest.raises(
        RunFolderError, match=r"in bfloat16, and this would be cpu in float32.*; go on"
    ):
        small(small_experiment, finished, seeds=3)
    assert content(finished) == before


def test_a_finished_run_is_read_and_no_model_loaded(
    small_experiment: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = finished
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    monkeypatch.delattr(runs, "load_source")
    again = small(small_experiment, out)
    assert again.folder == finished
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_the_default_folder_belongs_to_what_cannot_change_in_it(small_experiment: Path) -> None:
    def chosen(**given: Any) -> Path:
        return resolve_settings(small_experiment, **given).default_folder

    first = chosen()
    assert chosen(seeds=7) == chosen(split="all") == first
    edit(small_experiment / "questions.toml", "fast message", "quick message")
    assert chosen() == first
    assert chosen(training={"rank": 3}) != first
    assert chosen(model="organism-unlinked") != first
    edit(small_experiment / "train" / "control.jsonl", "Blue Jay", "Owl")
    assert chosen() != first


def test_the_seconds_of_all_sessions_add_up(small_experiment: Path, finished: Path) -> None:
    manifest = small(small_experiment, finished, seeds=3).manifest
    sessions = manifest["sessions"]
    assert [session["finished"] for session in sessions] == [True, True]
    for stage, seconds in manifest["seconds"].items():
        parts = [session["seconds"].get(stage, 0) for session in sessions]
        assert seconds == pytest.approx(sum(parts), abs=0.011)
    assert "seconds" not in (finished / "summary.json").read_text("utf-8")
