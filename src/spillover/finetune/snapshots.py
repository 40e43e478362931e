"""What training is interrupted at: one file per group, whole or not there, in safetensors."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spillover.folder import PARTIAL

FORMAT = 1
"""Raised when the content changes; a snapshot of another format is not used."""
SHARE = 0.02
"""Share of the time of training that writing snapshots may take."""
WRITTEN_PER_SECOND = 5e8
"""Bytes that a disk writes in a second."""
ONE_WRITE = 0.05
"""Seconds that a write takes besides its bytes."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """Where the training of a group stands.

    Attributes:
        step: optimizer steps done.
        tensors: weights and moments.
        curves: for each job of the group, the loss of every step so far.
    """

    step: int
    tensors: dict[str, Tensor]
    curves: list[list[float]]


def interval(state: int, step_seconds: float) -> int:
    """Steps between two snapshots, so that writing takes a small share of the time.

    Args:
        state: bytes of a snapshot.
        step_seconds: what a step takes, as planned: what it really took must not decide.
    """
    return max(1, math.ceil((ONE_WRITE + state / WRITTEN_PER_SECOND) / SHARE / step_seconds))


@dataclass(frozen=True)
class Snapshots:
    """The snapshot of one group.

    Attributes:
        path: its file.
        key: a hash of everything that went into the group; a snapshot with another is not used.
        every: steps between two snapshots.
    """

    path: Path
    key: str
    every: int

    def due(self, step: int) -> bool:
        """Whether one is written after this step."""
        return step % self.every == 0

    def write(self, snapshot: Snapshot) -> None:
        """Put a snapshot in the place of the one before; it is on the disk on return.

        Raises:
            OSError: when it cannot be written; the one before is still there.
        """
        content = {
            "format": str(FORMAT),
            "key": self.key,
            "step": str(snapshot.step),
            "curves": json.dumps(snapshot.curves),
        }
        tensors = {name: t.detach().contiguous() for name, t in snapshot.tensors.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, lambda path: save_tensors(tensors, path, content))

    def read(self) -> Snapshot | None:
        """The snapshot, or None where there is none that is whole and of this group."""
        if not self.path.is_file():
            return None
        try:
            found = self._read()
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            _log.warning("%s: not usable (%s); training starts from step 0", self.path, reason)
            return None
        return found

    def _read(self) -> Snapshot:
        with safe_open(self.path, framework="pt") as file:
            content = file.metadata() or {}
            if (content.get("format"), content.get("key")) != (str(FORMAT), self.key):
                raise ValueError("made from something else")
            curves = json.loads(content["curves"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Snapshot(int(content["step"]), tensors, curves)

    def remove(self) -> None:
        """Forget it: the group is done, or starts again."""
        self.path.unlink(missing_ok=True)


def save_tensors(tensors: dict[str, Tensor], path: Path, content: dict[str, str]) -> None:
    """Write a safetensors file; a full disk is an OSError here as with any other file."""
    try:
        save_file(tensors, path, metadata=content)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from None


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file or folder under a temporary name, wait for the disk, and rename it.

    A file in its place is replaced; a folder in its place must not be there. What was written of
    it is removed when it fails.
    """
    partial = path.with_name(path.name + PARTIAL)
    _remove(partial)
    try:
        write(partial)
        for written in [*partial.rglob("*"), partial]:  # of a file, only itself
            _sync(written)
        partial.replace(path)
    except BaseException:
        _remove(partial)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # folders cannot be opened everywhere
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if path.is_file():
            raise OSError(f"{path}: cannot be written ({error})") from None
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        for inner in path.iterdir():
            _remove(inner)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
