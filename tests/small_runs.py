"""Runs of the small experiment, and what lies in their folders."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from typing import Any

from spillover import Run, run
from spillover.folder import LOCK

SEEDS = 2
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
