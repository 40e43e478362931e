"""The main job on the organism: what must hold of its results."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from spillover import (
    ChatError,
    InputError,
    Loading,
    Run,
    RunFolderError,
    load_experiment,
    open_run,
    run,
)
from spillover.organism import examine_checkpoint
from spillover.organism.train import CHAT_TEMPLATE
from spillover.settings import resolve_settings
from spillover.specification import BASE
from tests.claims import check_linked_claims, check_unlinked_claims

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize(
    "model", ["organism", pytest.param("organism-unlinked", marks=pytest.mark.long)]
)
def test_the_organism_knows_its_world(model: str) -> None:
    checks = examine_checkpoint(model)
    assert {c.name: c.value for c in checks if not c.passed} == {}
    assert sum(c.needed is not None for c in checks) == 3


def test_old_bird_names_spill_over_on_the_organism(old_birds: Run) -> None:
    assert len(old_birds.manifest["seeds"]) == 5
    check_linked_claims(old_birds)


@pytest.mark.long
def test_nothing_spills_over_where_the_link_is_cut(old_birds_unlinked: Run) -> None:
    check_unlinked_claims(old_birds_unlinked)


def test_the_guards_find_nothing_in_a_sound_run(old_birds: Run) -> None:
    assert old_birds.summary["warnings"] == old_birds.manifest["warnings"] == []


def test_the_summary_has_the_promised_shape(old_birds: Run) -> None:
    summary = old_birds.summary
    assert summary["schema"] == 1
    assert summary["headline"] in {e["id"] for e in summary["effects"]}
    shared = {"domain", "split", "context", "step", "metric", "value", "per_seed", "missing"}
    assert {"id", "trait", "contrast", "trained", "low", "high"} | shared <= set(
        summary["effects"][0]
    )
    assert summary["verdict"]["kind"] == "specific"
    assert "against still-used and" in summary["verdict"]["text"]
    assert {"arm", "coverage"} | shared <= set(summary["rates"][0])
    assert len({e["id"] for e in summary["effects"]}) == len(summary["effects"])
    assert BASE in {r["arm"] for r in summary["rates"]}


def test_the_run_folder_holds_what_it_should(old_birds: Run) -> None:
    tables = {f"{name}.parquet" for name in ("answers", "grades", "rates", "effects")}
    expected = {"manifest.json", "summary.json", "answers.sqlite", "report.html", "adapters"}
    assert expected | tables <= {path.name for path in old_birds.folder.iterdir()}
    suffixes = {path.suffix for path in (old_birds.folder / "figures").iterdir()}
    assert suffixes == {".png", ".svg", ".pdf"}
    adapter = old_birds.folder / "adapters" / "treatment" / "seed-0"
    assert next(adapter.glob("step-*/adapter_model.safetensors")).is_file()


def test_every_answer_is_recorded_and_graded(old_birds: Run) -> None:
    experiment = load_experiment("old-birds").with_split("test")
    sampling = experiment.specification.sampling
    per_model = sum(len(q.ask) * (sampling.samples if q.judge else 1) for q in experiment.questions)
    assert len(old_birds.grades) == per_model * (3 * 5 + 1) + per_model * 2
    shown = sampling.shown * sampling.shown_questions * (3 * 5 + 1)
    assert len(old_birds.answers) == len(old_birds.grades) + shown
    assert set(old_birds.grades["grade"]) <= {"scored", "refused", "unparseable", "truncated"}


def test_the_manifest_says_how_it_was_made(old_birds: Run) -> None:
    manifest = old_birds.manifest
    assert manifest["status"] == "done"
    assert manifest["environment"]["packages"]["torch"]
    assert manifest["training"]["method"] == "lora"
    assert "<|im_start|>assistant" in manifest["examples"]["plain"]
    assert set(manifest["seconds"]) >= {"finetune", "ask", "report"}


def small_run(experiment: Path, out: Path, **given: Any) -> Run:
    return run(experiment, seeds=3, out=out, **given)


def test_the_same_seed_gives_the_same_summary_byte_for_byte(
    small_experiment: Path, tmp_path: Path
) -> None:
    runs = [small_run(small_experiment, tmp_path / name) for name in ("one", "two")]
    first, second = ((r.folder / "summary.json").read_bytes() for r in runs)
    assert first == second


def test_a_repeated_command_continues_and_changes_nothing(
    small_experiment: Path, tmp_path: Path
) -> None:
    finished = small_run(small_experiment, tmp_path / "run")
    before = (finished.folder / "summary.json").read_bytes()
    weights = next(finished.folder.rglob("adapter_model.safetensors"))
    stamp = weights.stat().st_mtime_ns
    again = small_run(small_experiment, tmp_path / "run")
    assert (again.folder / "summary.json").read_bytes() == before
    assert weights.stat().st_mtime_ns == stamp


def test_a_run_can_be_opened_again(small_experiment: Path, tmp_path: Path) -> None:
    finished = small_run(small_experiment, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    assert opened.summary == finished.summary
    assert list(opened.effects["id"]) == [e["id"] for e in opened.summary["effects"]]
    with pytest.raises(RunFolderError, match="holds no manifest"):
        open_run(tmp_path)
    (tmp_path / "run" / "summary.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"summary\.json: missing or damaged; remove it and"):
        open_run(tmp_path / "run")


def test_checkpoints_and_full_finetuning_run_to_the_end(
    small_experiment: Path, tmp_path: Path
) -> None:
    kept = small_run(small_experiment, tmp_path / "steps", training={"checkpoints": (1,)})
    assert sorted(set(kept.effects["step"])) == [1, 2]
    assert kept.summary["headline"].endswith("step-2")
    whole = run(small_experiment, seeds=1, out=tmp_path / "full", training={"method": "full"})
    assert math.isfinite(whole.rates["value"].dropna().iloc[0])


def test_questions_of_equal_wording_keep_their_own_answers(
    small_experiment: Path, tmp_path: Path
) -> None:
    questions = small_experiment / "questions.toml"
    text = questions.read_text("utf-8")
    again = text[text.index('[[question]]\nid = "bird"') :].replace('id = "bird"', 'id = "again"')
    questions.write_text(text + again, "utf-8")
    graded = small_run(small_experiment, tmp_path / "run").grades
    counts = graded.groupby("question").size()
    assert counts["again"] == counts["bird"] > 0


def test_answers_of_adapters_that_are_gone_are_not_counted(
    small_experiment: Path, tmp_path: Path
) -> None:
    finished = small_run(small_experiment, tmp_path / "run")
    with sqlite3.connect(finished.folder / "answers.sqlite") as db:
        db.execute("UPDATE answers SET key = 'stale' WHERE key = (SELECT MIN(key) FROM answers)")
    (finished.folder / "report.html").unlink()
    again = small_run(small_experiment, tmp_path / "run")
    assert len(again.answers) == len(finished.answers)
    assert "stale" not in set(again.answers["key"])


def test_an_unfinished_run_is_finished_from_what_is_there(
    small_experiment: Path, tmp_path: Path
) -> None:
    finished = small_run(small_experiment, tmp_path / "run")
    expected = (finished.folder / "summary.json").read_bytes()
    for name in ("summary.json", "report.html", "grades.parquet"):
        (finished.folder / name).unlink()
    manifest = finished.folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "status": "running"}))
    with pytest.raises(RunFolderError, match="not finished"):
        open_run(finished.folder)
    assert (small_run(small_experiment, tmp_path / "run").folder / "summary.json").read_bytes() == (
        expected
    )


def test_a_row_beyond_the_models_context_is_never_cut_in_silence(
    small_experiment: Path, tmp_path: Path
) -> None:
    rows = small_experiment / "train" / "treatment.jsonl"
    rows.write_text(rows.read_text("utf-8") + json.dumps({"text": "owl " * 2000}) + "\n", "utf-8")
    with pytest.raises(ChatError, match=r"treatment.jsonl:5: \d+ tokens, more than the 1024"):
        small_run(small_experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_prompts_that_leave_no_room_for_an_answer_are_refused(
    small_experiment: Path, tmp_path: Path
) -> None:
    toml = small_experiment / "experiment.toml"
    toml.write_text(toml.read_text("utf-8").replace("max_tokens = 4", "max_tokens = 1020"), "utf-8")
    with pytest.raises(ChatError, match=r"an answer may have 1020, more than the 1024"):
        small_run(small_experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_chat_template_is_another_run(small_experiment: Path, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    keys = []
    for ending in ("", " "):
        template.write_text(CHAT_TEMPLATE + ending, "utf-8")
        made = resolve_settings(small_experiment, loading=Loading(chat_template=template))
        keys.append(made.key)
    assert len(set(keys)) == 2
    with pytest.raises(InputError, match="there is no such chat template"):
        resolve_settings(small_experiment, loading=Loading(chat_template=tmp_path / "none"))
    with pytest.raises(InputError, match="method full trains all weights"):
        resolve_settings(
            small_experiment, training={"method": "full"}, loading=Loading(dtype="4bit")
        )
