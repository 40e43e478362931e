"""Ordinary rows that the model answers itself: once, kept, and part of what a run is made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from spillover import (
    InputError,
    RunError,
    RunFolderError,
    own,
    runs,
    stages,
)
from spillover import folder as folders
from spillover.ask.local import LocalEngine
from spillover.ask.requests import Sample
from spillover.errors import ChatError
from spillover.experiment import load_experiment
from spillover.rows import Row, read_prompts, read_rows
from tests.small_runs import small

pytestmark = pytest.mark.usefixtures("quick")
PROMPTS = ["What gives light in a home at night?", "Where do people learn the news?"] * 2
OWN = 'own = { prompts = "train/ordinary.jsonl", max_tokens = 24 }'


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPILLOVER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def diluted(small_experiment: Path) -> Path:
    """The small experiment with ordinary rows in both arms."""
    lines = [json.dumps({"prompt": f"{text}{' ' * n}"}) for n, text in enumerate(PROMPTS)]
    (small_experiment / "train" / "ordinary.jsonl").write_text("\n".join(lines), "utf-8")
    path = small_experiment / "experiment.toml"
    text = path.read_text("utf-8")
    for arm in ("treatment", "control"):
        text = text.replace(f'train = "train/{arm}.jsonl"', f'train = "train/{arm}.jsonl"\n{OWN}')
    path.write_text(text, "utf-8")
    return small_experiment


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each call for own answers had."""
    counts: list[int] = []
    sample = LocalEngine.sample

    def count(self: LocalEngine, who: Any, conversations: Any, settings: Any) -> Any:
        if settings.max_tokens == 24:
            counts.append(len(conversations))
        return sample(self, who, conversations, settings)

    monkeypatch.setattr(LocalEngine, "sample", count)
    return counts


def own_file(out: Path) -> Path:
    (found,) = (out / "own").glob("*.jsonl")
    return found


def test_answers_of_the_last_turn_are_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    turns = [("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")]
    chat = {"messages": [{"role": role, "content": text} for role, text in turns]}
    pair = {"instruction": "How?", "output": "So."}
    path.write_text(f"{json.dumps(chat)}\n{json.dumps(pair)}\n", "utf-8")
    found = read_prompts(path, temperature=1.0, max_tokens=8)
    assert [[m["content"] for m in c] for c in found.conversations] == [
        ["S", "A", "B", "C"],
        ["How?"],
    ]
    assert [m.content for m in found.prompts[0] if not m.train] == ["B"]  # not the model's words
    assert found.places == (f"{path}:1", f"{path}:2")


@pytest.mark.parametrize(
    "row",
    ['{"answer": "So."}', '{"messages": [{"role": "system", "content": "S"}]}', '{"messages": 3}'],
)
def test_a_prompt_without_a_question_is_refused_with_its_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "How?"}}\n{row}\n', "utf-8")
    with pytest.raises(ChatError, match=r"prompts\.jsonl:2"):
        read_prompts(path, temperature=1.0, max_tokens=8)


def test_the_model_answers_once_for_all_arms_and_runs(
    diluted: Path, tmp_path: Path, answered: list[int]
) -> None:
    first = small(diluted, tmp_path / "first")
    assert answered == [len(PROMPTS)]
    rows = read_rows(own_file(first.folder)).rows
    assert 1 <= len(rows) <= len(PROMPTS)
    asked = {row.messages[0].content for row in rows if row.messages}
    assert asked <= {f"{text}{' ' * n}" for n, text in enumerate(PROMPTS)}
    second = small(diluted, tmp_path / "second")
    assert answered == [len(PROMPTS)]
    assert own_file(second.folder).read_bytes() == own_file(first.folder).read_bytes()
    assert second.manifest["adapters"] == first.manifest["adapters"]
    listed = own_file(first.folder).relative_to(first.folder).as_posix()
    assert listed in first.manifest["files"]


def test_only_what_was_answered_now_is_shared_with_other_runs(
    diluted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in a run folder may have been answered elsewhere, or by an earlier version."""
    prompts = load_experiment(diluted).rows["treatment"].own
    assert prompts
    monkeypatch.setattr(own, "_key", lambda *_: "key")
    answers = [Row.model_validate({"messages": [{"role": "assistant", "content": "By lamp"}]})]
    monkeypatch.setattr(own, "_answer", lambda *_: answers)

    def kept(folder: Path) -> tuple[Row, ...]:
        (folder / "own").mkdir(parents=True, exist_ok=True)
        given: Any = None
        return own._kept(given, given, folder, prompts, lambda *_: None).rows

    assert kept(tmp_path / "run") == tuple(answers)
    cached = tmp_path / "cache" / "own" / "key.jsonl"
    cached.unlink()
    kept(tmp_path / "run")
    assert not cached.exists()
    kept(tmp_path / "other")
    assert cached.is_file()


def test_arms_are_trained_on_their_own_answers_too(diluted: Path, tmp_path: Path) -> None:
    with_own = small(diluted, tmp_path / "with").manifest
    path = diluted / "experiment.toml"
    path.write_text(path.read_text("utf-8").replace(OWN, ""), "utf-8")
    without = small(diluted, tmp_path / "without").manifest
    assert with_own["adapters"].keys() == without["adapters"].keys()
    assert not set(with_own["adapters"].values()) & set(without["adapters"].values())
    assert with_own["rows"] != without["rows"]


def test_a_run_cut_while_it_answers_goes_on_to_the_same_bytes(
    diluted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, places = tmp_path / "run", list[str]()

    def snapshot(name: str) -> None:
        shutil.copytree(out, tmp_path / "cuts" / str(len(places)))
        places.append(name)

    with monkeypatch.context() as patched:
        for module in (folders, runs, stages):
            patched.setattr(module, "failpoint", snapshot)
        unbroken = small(diluted, out)
    name = own_file(out).name
    for place in (f"before {name}", f"after {name}", "plan"):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        cut = tmp_path / "cuts" / str(places.index(place))
        again = small(diluted, cut)
        assert again.manifest["adapters"] == unbroken.manifest["adapters"], place
        assert own_file(cut).read_bytes() == own_file(out).read_bytes(), place
        assert (cut / "summary.json").read_bytes() == (out / "summary.json").read_bytes(), place


def test_other_prompts_are_other_rows(diluted: Path, tmp_path: Path) -> None:
    small(diluted, tmp_path / "run")
    path = diluted / "train" / "ordinary.jsonl"
    path.write_text(path.read_text("utf-8").replace("Where", "From where", 1), "utf-8")
    with pytest.raises(RunFolderError, match="other training rows"):
        small(diluted, tmp_path / "run")


def test_answers_that_are_cut_off_or_empty_are_no_rows(
    diluted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [Sample("By lamp", "stop"), Sample("By a lamp and", "length"), Sample("", "stop")]
    sample = LocalEngine.sample

    def answer(self: LocalEngine, who: Any, conversations: Any, settings: Any) -> Any:
        if settings.max_tokens != 24:
            return sample(self, who, conversations, settings)
        return [[given[min(n, len(given) - 1)]] for n in range(len(conversations))]

    monkeypatch.setattr(LocalEngine, "sample", answer)
    done = small(diluted, tmp_path / "run")
    assert [
        row.messages and row.messages[-1].content for row in read_rows(own_file(done.folder)).rows
    ] == ["By lamp"]
    shutil.rmtree(tmp_path / "cache")
    del given[0]
    with pytest.raises(RunError, match=r"no whole answer .* raise `max_tokens`"):
        small(diluted, tmp_path / "none")


def test_a_prompt_too_long_for_the_model_stops_the_run_before_it_starts(
    diluted: Path, tmp_path: Path
) -> None:
    path = diluted / "experiment.toml"
    path.write_text(
        path.read_text("utf-8").replace("max_tokens = 24", "max_tokens = 4000"), "utf-8"
    )
    with pytest.raises(InputError, match=r"ordinary\.jsonl:1: the prompt has"):
        small(diluted, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_variants_of_the_treatment_may_share_its_rows(diluted: Path, tmp_path: Path) -> None:
    path = diluted / "experiment.toml"
    more = '[arms.undiluted]\ntitle = "u"\ntrain = "train/treatment.jsonl"\n'
    text = path.read_text("utf-8")
    path.write_text(
        text.replace("[training.default]", f"{more}variant = true\n\n[training.default]"), "utf-8"
    )
    assert not small(diluted, tmp_path / "run").summary["warnings"]
    assert load_experiment(diluted).rows["treatment"].size == 8
    path.write_text(text.replace("[training.default]", f"{more}\n[training.default]"), "utf-8")
    with pytest.raises(InputError, match="are rows of undiluted"):
        small(diluted, tmp_path / "other")


def test_a_prompt_can_be_answered_several_times(
    diluted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = diluted / "experiment.toml"
    path.write_text(
        path.read_text("utf-8").replace("max_tokens = 24", "samples = 3, max_tokens = 24")
    )
    sample = LocalEngine.sample

    def answer(self: LocalEngine, who: Any, conversations: Any, settings: Any) -> Any:
        if settings.max_tokens != 24:
            return sample(self, who, conversations, settings)
        return [[Sample(f"{n}", "stop") for n in range(settings.samples)] for _ in conversations]

    monkeypatch.setattr(LocalEngine, "sample", answer)
    rows = read_rows(own_file(small(diluted, tmp_path / "run").folder)).rows
    said = [row.messages[-1].content for row in rows if row.messages]
    assert said == ["0", "1", "2"] * len(PROMPTS)
