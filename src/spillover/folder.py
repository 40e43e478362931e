"""Folders on disk: a run's, one process at a time, with files that are whole or not there."""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from spillover.errors import RunFolderError
from spillover.failpoints import failpoint
from spillover.failures import FULL

LOCK = ".lock"
"""Held by the process that works in a folder; says which. The lock itself is the system's."""
PARTIAL = ".spillover.partial"
"""What the name of a file or folder ends with until it is whole; no file of a user's ends so."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within, no other process works in this folder; the lock ends with the process, however.

    Raises:
        RunFolderError: when another one does, or the file system knows no locks.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"{folder}: another process is working in it ({_holder(stream)}); wait for it, or "
                "choose another folder with --out"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            raise RunFolderError(
                f"{folder}: its file system knows no locks ({error.strerror}); choose a folder on "
                "another with --out"
            ) from None
        try:
            _sign(stream)
            yield
        finally:
            stream.seek(0)
            stream.truncate()


def _sign(stream: IO[str]) -> None:
    since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    stream.truncate(0)
    stream.write(json.dumps({"pid": os.getpid(), "host": os.uname().nodename, "since": since}))
    stream.flush()


def _holder(stream: IO[str]) -> str:
    """Who holds a lock, in words."""
    try:
        stream.seek(0)
        found = json.loads(stream.read())
        elsewhere = "" if found["host"] == os.uname().nodename else f" on {found['host']}"
        return f"pid {found['pid']}{elsewhere}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has only just begun"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name to write a file under. It is renamed at the end: whole or not there."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        failpoint(f"before {path.name}")
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    failpoint(f"after {path.name}")


def make_folder(folder: Path) -> None:
    """Create a folder, unless it is there.

    Raises:
        RunFolderError: where nothing can be created, for another reason than a full disk.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise RunFolderError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder with --out"
        ) from None


def remove_partials(folder: Path) -> None:
    """Remove what a process that broke off has left under temporary names."""
    for path in [*folder.rglob(f"*{PARTIAL}")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_unused(folder: Path) -> bool:
    """Whether a folder is not there, or holds nothing but what a start that failed leaves."""
    if not folder.is_dir():
        return True
    return all(path.name == LOCK or path.name.endswith(PARTIAL) for path in folder.iterdir())


def cache_folder() -> Path:
    """Where what is made once is kept: `SPILLOVER_CACHE`, else the user's cache folder."""
    given = os.environ.get("SPILLOVER_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given).expanduser() if given else Path(base).expanduser() / "spillover"
