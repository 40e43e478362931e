"""Runs of the small experiment, and what lies in their folders."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from spillover import Run, run
from spillover.folder import LOCK

SEEDS = 2
UNDRAWN = """
from spillover import cli
from spillover.report import figure
from tests.conftest import save_undrawn
figure.save = save_undrawn
cli.main()
"""
"""The command with empty figures."""
Rows = dict[str, tuple[int, str]]


def small(experiment: Path, out: Path, **given: Any) -> Run:
    return run(experiment, out=out, **({"seeds": SEEDS} | given))


def content(folder: Path) -> dict[str, str]:
    """A hash of every file, apart from the lock."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOCK
    }


def answers_of(folder: Path) -> Rows:
    """What is recorded, by key: its place in the file, and all that it says."""
    with sqlite3.connect(folder / "answers.sqlite") as db:
        rows = db.execute("SELECT key, rowid, * FROM answers").fetchall()
    db.close()
    return {row[0]: (row[1], repr(row[2:])) for row in rows}


def adapters_of(folder: Path) -> dict[str, int]:
    """When each adapter's weights were written."""
    root = folder / "adapters"
    found = root.rglob("step-*/adapter_model.safetensors")
    kept = (p for p in found if ".partial" not in p.as_posix())
    return {p.relative_to(root).as_posix(): p.stat().st_mtime_ns for p in kept}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def spillover(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", UNDRAWN, *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def end(process: subprocess.Popen[str], number: signal.Signals, seconds: float = 60) -> None:
    """End a command by a signal, and hold it to what it promises."""
    start = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - start < seconds
    assert "Traceback" not in said, said
    if number == signal.SIGKILL:
        assert process.returncode == -number
        return
    assert process.returncode == 128 + number
    assert said.strip().splitlines()[-1].startswith("stopped; everything that is finished is kept")


def wait_for(there: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_training(folder: Path) -> bool:
    """Whether a run has begun to train."""
    path = folder / "manifest.json"
    return path.is_file() and '"plans": [\n    [' in path.read_text("utf-8")


def recorded(folder: Path) -> int:
    """How many answers a run that goes on has recorded so far."""
    path = folder / "answers.sqlite"
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT count(*) FROM answers").fetchone()[0])
    except sqlite3.OperationalError:  # not there yet
        return 0
