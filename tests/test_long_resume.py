"""Runs of `old-birds` that are killed, stopped and starved at random moments: `make long`.

`SPILLOVER_KILLS` says how many of each (30 kills, and a third as many of the others), and
`SPILLOVER_KILL_OPTIONS` what to add to the command, such as `--steps 20` on a slow machine.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("SPILLOVER_KILLS", "30"))
OTHERS = max(1, KILLS // 3)
OPTIONS = os.environ.get("SPILLOVER_KILL_OPTIONS", "").split()
COMMAND = [sys.executable, "-m", "spillover", "run", "old-birds", "--seeds", "2", *OPTIONS, "--out"]
ROOM = 1 << 30


def start(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(out: Path) -> bytes:
    """Go on to the end; the summary."""
    process = start(out)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert not list(out.rglob("*.partial"))
    return (out / "summary.json").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float, Path]:
    """The summary of a run that nothing disturbs, how long it takes, and its folder."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    begun = time.monotonic()
    return finish(out), time.monotonic() - begun, out


def answers(folder: Path, look: Path) -> dict[str, tuple[int, str]]:
    """What is recorded, read from a copy: its place in the file and what it says."""
    shutil.rmtree(look, ignore_errors=True)
    look.mkdir()
    for path in folder.glob("answers.sqlite*"):
        shutil.copy2(path, look)
    if not (look / "answers.sqlite").is_file():
        return {}
    db = sqlite3.connect(look / "answers.sqlite")
    try:
        rows = db.execute("SELECT key, rowid, * FROM answers").fetchall()
    except sqlite3.OperationalError:  # the table was not there yet
        rows = []
    db.close()
    return {row[0]: (row[1], repr(row[2:])) for row in rows}


def adapters(folder: Path) -> dict[Path, int]:
    found = (folder / "adapters").glob("*/seed-*/step-*/adapter_model.safetensors")
    return {p: p.stat().st_mtime_ns for p in found if ".partial" not in str(p)}


def session_of(folder: Path) -> dict[str, Any]:
    """What the last session of a run did."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return dict(manifest["sessions"][-1])


@pytest.mark.parametrize("moment", range(KILLS))
def test_a_run_that_is_killed_goes_on_to_the_same_bytes(
    unbroken: tuple[bytes, float, Path], tmp_path: Path, moment: int
) -> None:
    expected, seconds, whole = unbroken
    out, at = tmp_path / "run", random.Random(moment).uniform(0, seconds)
    process = start(out)
    time.sleep(at)
    process.kill()
    process.communicate()
    before, trained = answers(out, tmp_path / "look"), adapters(out)
    ended = (out / "manifest.json").is_file() and session_of(out)["finished"]
    assert finish(out) == expected
    assert before.items() <= answers(out, tmp_path / "look").items()
    assert trained.items() <= adapters(out).items()
    if not ended:
        known, last = len(answers(out, tmp_path / "look")), session_of(out)
        assert last["answers"] == {"asked": known - len(before), "kept": len(before)}
        new = len(adapters(whole)) - len(trained)
        assert last["adapters"] == {"trained": new, "kept": len(trained)}
    print(f"killed after {at:.1f} of {seconds:.1f} s: {len(trained)} adapters", end=", ")
    print(f"{len(before)} of {len(answers(out, tmp_path / 'look'))} answers were kept")
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("moment", range(OTHERS))
def test_a_run_that_is_told_to_end_does_so_within_five_seconds(
    unbroken: tuple[bytes, float, Path], tmp_path: Path, moment: int
) -> None:
    expected, seconds, _ = unbroken
    out, at = tmp_path / "run", random.Random(1000 + moment).uniform(1, 0.9 * seconds)
    process = start(out)
    time.sleep(at)
    while process.poll() is not None:  # faster than the unbroken one: nothing was left to end
        process.communicate()
        shutil.rmtree(out)
        at /= 2
        process = start(out)
        time.sleep(at)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    took = time.monotonic() - begun
    assert process.returncode == 143
    assert took < 5
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("stopped; everything that is finished is kept")
    assert not list(out.rglob("*.partial"))
    print(f"told to end after {at:.1f} of {seconds:.1f} s, ended {took:.2f} s later")
    assert finish(out) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of so many bytes; asked again, the same disk in another size."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        again = "remount," if place.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{again}size={size}", "tmpfs", str(place)]
        if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("cannot mount a small disk here")
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


@pytest.mark.parametrize("case", range(OTHERS))
def test_a_run_whose_disk_fills_up_goes_on_when_there_is_room(
    unbroken: tuple[bytes, float, Path], small_disk: Callable[[int], Path], case: int
) -> None:
    expected, _, whole = unbroken
    needed = sum(p.stat().st_size for p in whole.rglob("*") if p.is_file())
    size = int(needed * random.Random(2000 + case).uniform(0.01, 0.95))
    out = small_disk(size) / "run"
    process = start(out)
    _, said = process.communicate()
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert "its disk is full; make room and repeat" in said.strip().splitlines()[-1]
    print(f"full at {size} of {needed} bytes: {said.strip().splitlines()[-1]}")
    small_disk(ROOM)
    assert finish(out) == expected
