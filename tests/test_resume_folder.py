"""Folders that are foreign, damaged, in use or full: one line says what to do."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from spillover import InputError, RunError, RunFolderError, stages
from spillover import folder as folders
from spillover.failures import failures_in_words
from spillover.folder import PARTIAL, locked, whole
from tests.commands import call
from tests.small_runs import SEEDS, content, edit, small

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (("train/control.jsonl", "Blue Jay", "Owl"), {}, "arm control has other training rows"),
        (("experiment.toml", "rank = 2", "rank = 3"), {}, "training setting rank was 2, and is 3"),
        (None, {"training": {"steps": 3}}, "training setting steps was 2, and is 3"),
        (None, {"model": "organism-unlinked"}, "its model is organism, not organism-unlinked"),
    ],
)
def test_a_folder_of_another_run_is_refused_and_left_alone(
    small_experiment: Path,
    change: tuple[str, str, str] | None,
    given: dict[str, Any],
    message: str,
    finished: Path,
) -> None:
    out = finished
    before = content(out)
    if change:
        edit(small_experiment / change[0], *change[1:])
    with pytest.raises(RunFolderError, match=message) as refused:
        small(small_experiment, out, **given)
    assert len(str(refused.value).splitlines()) == 1
    assert "--out" in str(refused.value)
    assert content(out) == before


def test_a_folder_of_another_experiment_is_refused(
    small_experiment: Path, tmp_path: Path, finished: Path
) -> None:
    other = shutil.copytree(small_experiment, tmp_path / "other")
    with pytest.raises(RunFolderError, match="its experiment is 'small', not 'other'"):
        small(other, finished)


def test_files_of_a_users_own_are_neither_swept_up_nor_taken_for_ours(
    small_experiment: Path, finished: Path, tmp_path: Path
) -> None:
    mine = [finished / "notes.partial", finished / "adapters" / "notes.partial"]
    left = [finished / f"summary.json{PARTIAL}", finished / "adapters" / f"step-9{PARTIAL}"]
    for path in (*mine, *left):
        path.write_text("x", "utf-8")
    small(small_experiment, finished, seeds=3)
    assert [path.exists() for path in (*mine, *left)] == [True, True, False, False]
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.partial").write_text("x", "utf-8")
    with pytest.raises(RunFolderError, match="is not empty and holds no run"):
        small(small_experiment, other)


WEIGHTS = "adapters/treatment/seed-1/step-2/adapter_model.safetensors"
CONFIG = "adapters/treatment/seed-1/step-2/adapter_config.json"


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    found = bytearray(path.read_bytes())
    found[len(found) * 3 // 4] ^= 1
    path.write_bytes(found)


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize(
    ("name", "harm", "mending"),
    [
        ("manifest.json", truncated, None),
        ("answers.sqlite", truncated, "answers.sqlite"),
        (WEIGHTS, truncated, "adapters/treatment/seed-1/step-2"),
        (WEIGHTS, flipped, "adapters/treatment/seed-1/step-2"),
        (WEIGHTS, Path.unlink, "adapters/treatment/seed-1/step-2"),
        (CONFIG, truncated, "adapters/treatment/seed-1/step-2"),
        ("grades.parquet", truncated, "grades.parquet"),
        ("summary.json", truncated, "summary.json"),
    ],
)
def test_damage_is_named_and_left_alone_and_can_be_mended_as_told(
    capsys: pytest.CaptureFixture[str],
    small_experiment: Path,
    finished: Path,
    name: str,
    harm: Callable[[Path], None],
    mending: str | None,
    done: bool,
) -> None:
    out, expected = finished, json.loads((finished / "summary.json").read_text("utf-8"))
    if not done:
        (out / "report.html").unlink()
        found = json.loads((out / "manifest.json").read_text("utf-8"))
        del found["files"]
        (out / "manifest.json").write_text(json.dumps(found | {"status": "running"}), "utf-8")
    harm(out / name)
    before = content(out)
    assert call("run", small_experiment, "--seeds", SEEDS, "--out", out) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(out / (mending or name)) in line
    assert "remove" in line
    assert content(out) == before
    if mending:
        place = out / mending
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        assert small(small_experiment, out).summary == expected


def test_a_second_process_says_who_is_there_and_leaves(
    capsys: pytest.CaptureFixture[str], small_experiment: Path, finished: Path
) -> None:
    out = finished
    before = content(out)
    with locked(out):
        assert call("run", small_experiment, "--seeds", 3, "--out", out) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"pid {os.getpid()}, since 20" in line
        assert content(out) == before
        with pytest.raises(InputError, match="another process is working in it"):
            small(small_experiment, out, seeds=3)
    small(small_experiment, out, seeds=3)


@pytest.mark.parametrize("begun", [False, True])
def test_two_that_start_at_once_in_a_new_folder_do_not_meet(
    small_experiment: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    out, check = finished.with_name("new"), stages.check_rows
    held: list[Any] = []

    def slow(*given: Any) -> Any:
        found = check(*given)
        out.mkdir()
        held.append(locked(out))
        held[0].__enter__()  # the other one was faster
        if begun:
            shutil.copy(finished / "manifest.json", out)
        return found

    monkeypatch.setattr(stages, "check_rows", slow)
    with pytest.raises(RunFolderError, match="another process is working in it"):
        small(small_experiment, out)
    left = {path.name for path in out.iterdir()}
    assert left == {folders.LOCK} | ({"manifest.json"} if begun else set())
    held[0].__exit__(None, None, None)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on dev"),
        sqlite3.OperationalError("database or disk is full"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28"),
    ],
)
def test_a_full_disk_is_said_in_a_line_whichever_library_meets_it(
    small_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(stages, "ask_all", fails)
    with pytest.raises(RunError, match=r"run: its disk is full; make room and repeat") as failed:
        small(small_experiment, tmp_path / "run")
    assert len(str(failed.value).splitlines()) == 1


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of so many bytes."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("cannot mount a small disk here")
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def test_a_disk_that_fills_up_stops_a_run_which_goes_on_when_there_is_room(
    capsys: pytest.CaptureFixture[str],
    small_experiment: Path,
    finished: Path,
    full_disk: Callable[[int], Path],
) -> None:
    expected = (finished / "summary.json").read_bytes()
    disk = full_disk(40_960)
    failed, size = 0, 40_960
    while True:
        capsys.readouterr()
        code = call("run", small_experiment, "--seeds", SEEDS, "--out", disk / "run")
        if code == 0:
            break
        said = capsys.readouterr().err.strip()
        assert code == 1
        assert "its disk is full; make room and repeat" in said
        assert len(said.splitlines()) == 1, said
        assert not list(disk.rglob("*.partial"))
        failed, size = failed + 1, int(1.4 * size) // 4096 * 4096
        options = f"remount,size={size}"
        subprocess.run(["mount", "-o", options, str(disk)], check=True, capture_output=True)
    assert failed > 5
    assert (disk / "run" / "summary.json").read_bytes() == expected


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_text("before", "utf-8")

    def write() -> None:
        with whole(path) as partial:
            partial.write_text("half", "utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text("utf-8") == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["table"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_running_out_of_memory_is_said_in_a_line(error: Exception, tmp_path: Path) -> None:
    said = pytest.raises(RunError, match=r"out of memory .* use a smaller")
    with said, failures_in_words(tmp_path):
        raise error
