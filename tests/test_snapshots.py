"""What is interrupted goes on and ends with the same bytes; what is foreign or damaged is told."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spillover import LoadedModel, RunFolderError, Training, crew, finetune
from spillover.errors import InputError
from spillover.experiment import load_experiment
from spillover.finetune import UNFINISHED, Finetune, plan, read_losses
from spillover.finetune.snapshots import Snapshot, Snapshots, interval

memory = importlib.import_module("spillover.finetune.memory")  # `spillover.finetune` is a function
ROWS = load_experiment("old-birds").rows
TRAINING = Training(rank=2, learning_rate=5e-3, steps=6, batch_size=2, checkpoints=(2,))
LONGER = TRAINING.model_copy(update={"steps": 9, "rank": 3})
WANTED = [
    Finetune("treatment", 0, ROWS["treatment"]),
    Finetune("treatment", 0, ROWS["treatment"], LONGER, "longer"),
    Finetune("still-used", 0, ROWS["still-used"]),
]


class Killed(Exception):  # noqa: N818
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def every_second_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "interval", lambda *_: 2)


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """Without helpers, whose side effects stay with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "MOST", 1)
        yield


@pytest.fixture(scope="module")
def unbroken(organism: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("unbroken")
    finetune(organism, WANTED, TRAINING, folder)
    return files(folder)


def killed_at(place: str, count: int, patch: pytest.MonkeyPatch, after: bool = True) -> None:
    """Break off at the count-th call of a function, before or after it did its work."""
    module, name = place.rsplit(".", 1)
    owner = importlib.import_module(module)
    work = getattr(owner, name)
    calls = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == count and not after:
            raise Killed
        result = work(*args, **kwargs)
        if len(calls) == count:
            raise Killed
        return result

    patch.setattr(owner, name, wrapped)


@pytest.mark.parametrize("step", [1, 6, 8])
def test_a_group_killed_at_any_step_ends_with_the_same_bytes(
    step: int, organism: LoadedModel, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        killed_at("spillover.finetune.bank.train_step", step, patch)
        with pytest.raises(Killed):
            finetune(organism, WANTED, TRAINING, tmp_path)
    assert (tmp_path / UNFINISHED).exists() == (step > 2)
    done: list[tuple[int, int]] = []
    finetune(organism, WANTED, TRAINING, tmp_path, progress=lambda *at: done.append(at))
    assert files(tmp_path) == unbroken
    first = 3 * (1 + (step - 1) // 2 * 2) if step <= 6 else 18 + 1
    assert done[0] == (first, 21)


@pytest.mark.parametrize("written", [2, 5])
def test_a_group_killed_between_two_adapters_ends_with_the_same_bytes(
    written: int, organism: LoadedModel, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        killed_at("spillover.finetune.folders.write_folder", written, patch)
        with pytest.raises(Killed):
            finetune(organism, WANTED, TRAINING, tmp_path)
    assert 0 < len(list(tmp_path.rglob("step-*"))) == written < 6
    finetune(organism, WANTED, TRAINING, tmp_path)
    assert files(tmp_path) == unbroken


def test_full_finetuning_goes_on_and_ends_with_the_same_bytes(
    organism: LoadedModel, tmp_path: Path
) -> None:
    training = Training(method="full", learning_rate=1e-3, steps=4, batch_size=2)
    finetune(organism, WANTED[:1], training, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        killed_at("spillover.finetune.full.plant", 4, patch)
        with pytest.raises(Killed):
            finetune(organism, WANTED[:1], training, tmp_path / "broken")
    done: list[tuple[int, int]] = []
    finetune(
        organism, WANTED[:1], training, tmp_path / "broken", progress=lambda *a: done.append(a)
    )
    assert done == [(3, 4), (4, 4)]
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_more_seeds_keep_what_is_there(organism: LoadedModel, tmp_path: Path) -> None:
    finetune(organism, WANTED[:1], TRAINING, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("step-*/*")}
    more = [WANTED[0], Finetune("treatment", 1, ROWS["treatment"])]
    done: list[tuple[int, int]] = []
    kept = finetune(organism, more, TRAINING, tmp_path, progress=lambda *at: done.append(at))
    assert done[-1] == (6, 6)
    assert sorted(kept) == [("treatment", seed, step) for seed in (0, 1) for step in (2, 6)]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(read_losses(kept["treatment", 1, 6])) == 6


def test_a_removed_adapter_is_trained_again_to_the_same_bytes(
    organism: LoadedModel, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    kept = finetune(organism, WANTED, TRAINING, tmp_path)
    gone = kept["longer/treatment", 0, 9]
    for path in gone.iterdir():
        path.unlink()
    gone.rmdir()
    finetune(organism, WANTED, TRAINING, tmp_path)
    assert files(tmp_path) == unbroken


@pytest.fixture(scope="module")
def one(organism: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("one")
    finetune(organism, WANTED[:1], TRAINING, folder)
    return files(folder)


@pytest.fixture
def there(one: dict[str, bytes], tmp_path: Path) -> Path:
    """A folder with one finetune that is done."""
    for name, content in one.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_an_adapter_made_from_something_else_is_refused(organism: LoadedModel, there: Path) -> None:
    other = TRAINING.model_copy(update={"learning_rate": 1e-3})
    said = r"seed-0/step-2: was made from something else \(training.learning_rate: found 0.005, "
    with pytest.raises(RunFolderError, match=said + r"expected 0.001\); remove that folder"):
        finetune(organism, WANTED[:1], other, there)
    rows = [Finetune("treatment", 0, ROWS["still-used"])]
    with pytest.raises(RunFolderError, match=r"something else \(rows: found"):
        finetune(organism, rows, TRAINING, there)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("adapter_model.safetensors", "damaged; remove the folder .*step-6"),
        ("finetune.json", "holds no readable finetune.json; remove that folder"),
    ],
)
def test_a_damaged_adapter_is_named(
    file: str, said: str, organism: LoadedModel, there: Path
) -> None:
    path = there / "treatment/seed-0/step-6" / file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunFolderError, match=said):
        finetune(organism, WANTED[:1], TRAINING, there)


def test_two_finetunes_for_one_folder_are_refused(organism: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="treatment/seed-0: wanted twice; give one of them a"):
        finetune(organism, [WANTED[0], WANTED[0]], TRAINING, tmp_path)


STATE = Snapshot(4, {"values-0": torch.arange(6.0).view(2, 3)}, [[0.1, 1 / 3], []])


def test_a_snapshot_is_read_as_it_was_written(tmp_path: Path) -> None:
    place = Snapshots(tmp_path / "a" / "group.safetensors", "key", 2)
    place.write(STATE)
    found = place.read()
    assert found is not None
    assert (found.step, found.curves) == (4, STATE.curves)
    assert torch.equal(found.tensors["values-0"], STATE.tensors["values-0"])
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["group.safetensors"]
    place.remove()
    assert place.read() is None


@pytest.mark.parametrize("kind", ["foreign", "short", "other"])
def test_a_damaged_or_foreign_snapshot_is_not_used(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "group.safetensors"
    Snapshots(path, "other" if kind == "foreign" else "key", 2).write(STATE)
    if kind == "short":
        path.write_bytes(path.read_bytes()[:-5])
    if kind == "other":
        path.write_bytes(b"something else")
    with caplog.at_level(logging.WARNING):
        assert Snapshots(path, "key", 2).read() is None
    assert "training starts from step 0" in caplog.text


def test_a_write_that_fails_leaves_the_snapshot_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Snapshots(tmp_path / "group.safetensors", "key", 2)
    place.write(STATE)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot be written"):
        place.write(Snapshot(6, STATE.tensors, STATE.curves))
    found = place.read()
    assert found is not None
    assert found.step == 4
    assert len(list(tmp_path.iterdir())) == 1


def test_snapshots_take_a_small_share_of_the_time() -> None:
    for state, step in ((10**6, 0.1), (4 * 10**8, 10.0), (10**10, 2.0)):
        every = interval(state, step)
        assert 0.05 + state / 5e8 <= 0.02 * every * step
        assert every == 1 or 0.05 + state / 5e8 > 0.02 * (every - 1) * step


def test_groups_fit_into_the_memory_given_and_the_same_every_time(organism: LoadedModel) -> None:
    wanted = [Finetune(arm, seed, ROWS[arm]) for arm in ROWS for seed in range(20)]
    training = TRAINING.model_copy(update={"batch_size": 8})
    whole = plan(organism, wanted, training)
    assert whole.limit == memory.memory_limit(organism.device)
    assert all(g.shape.tokens <= memory.GROUP_TOKENS for g in whole.groups)
    room = 60_000_000
    small = plan(organism, wanted, training, whole.base + room)
    assert len(small.groups) > len(whole.groups)
    assert all(group.total_bytes <= room for group in small.groups)
    assert sum(len(group.jobs) for group in small.groups) == len(wanted)
    assert small.data() == plan(organism, wanted, training, whole.base + room).data()
    assert sum(small.data()["groups"][0]["bytes"].values()) == small.groups[0].total_bytes


def test_rows_of_very_different_lengths_are_not_trained_together(organism: LoadedModel) -> None:
    many = TRAINING.model_copy(update={"batch_size": 16})
    few = [Finetune("treatment", seed, ROWS["treatment"]) for seed in range(2)]
    both = [*few, *(Finetune(w.arm, w.seed, w.rows, many, "many") for w in few)]
    groups = plan(organism, both, TRAINING).groups
    assert [{job.settings.batch_size for job in group.jobs} for group in groups] == [{16}, {2}]
