"""What a machine runs out of, said in one line; what was finished stays."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spillover.errors import MachineError, SpilloverError

FULL = (errno.ENOSPC, errno.EDQUOT)
SAYS_FULL = ("no space left", "disk is full", "quota exceeded", "os error 28)", "os error 122)")
FAILED_WRITE = ("disk I/O error",)  # SQLite does not say why
NEARLY_NOTHING = 1 << 20
"""Free bytes below which a write that failed for no given reason failed for lack of room."""
KEPT = "what is finished is kept"


@contextmanager
def failures_in_words(folder: Path) -> Iterator[None]:
    """Within, running out of memory or room, or what the system refuses, is a `MachineError`."""
    try:
        yield
    except SpilloverError:
        raise
    except Exception as error:
        said = _in_words(error, folder)
        if said is None:
            raise
        raise MachineError(said) from None


def _in_words(error: Exception, folder: Path) -> str | None:
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    if is_full(error, folder):
        return f"{folder}: its disk is full; make room and repeat the command to go on: {KEPT}"
    if _out_of_memory(error):
        return (
            f"out of memory ({reason}); use a smaller --batch-size or model, or --dtype 4bit; "
            f"{KEPT}"
        )
    if isinstance(error, sqlite3.Error | OSError) or type(error).__name__ == "SafetensorError":
        return f"{folder}: cannot be written or read ({reason}); repeat the command to go on"
    return None


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error, of whatever library, says that a disk has no room left."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    said = str(error)
    if any(words in said.casefold() for words in SAYS_FULL):
        return True
    return any(words in said for words in FAILED_WRITE) and _free(folder) < NEARLY_NOTHING


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    return (
        isinstance(error, MemoryError)
        or "DefaultCPUAllocator" in str(error)  # a RuntimeError like any other
        or (torch is not None and isinstance(error, torch.OutOfMemoryError))
    )
