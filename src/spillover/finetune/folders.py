"""Adapter folders as they lie in a run: written whole, and known by what went into them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spillover.errors import RunFolderError
from spillover.finetune.jobs import Job
from spillover.finetune.snapshots import write_whole
from spillover.masks import EncodedRow
from spillover.models.loading import LoadedModel, product_dtype

RECORD = "finetune.json"
FORMAT = 2
"""Raised when equal settings give other weights; folders of another format are refused."""


def content_of(model: LoadedModel, job: Job) -> dict[str, Any]:
    """What goes into a finetune: equal contents give equal weights."""
    training = job.settings.with_steps(len(job.rows)).model_dump(mode="json")
    products = product_dtype(model, job.settings.precision)
    del training["checkpoints"]  # what is also kept on the way changes nothing
    content = {
        "format": FORMAT,
        "base": model.source.identity,
        "dtype": f"{model.loading.dtype}, {model.model.dtype}, {products}",
        "rows": _rows_hash(job.rows),
        "arm": job.arm,
        "seed": job.seed,
        "training": training,
    }
    if held := job.anchor:
        how = {"beta": held.beta, "batch_size": held.batch_size}
        content["anchor"] = {"rows": _rows_hash(held.rows), **how}
    return content


def _rows_hash(rows: Sequence[EncodedRow]) -> str:
    text = json.dumps([[row.ids, [int(on) for on in row.mask]] for row in rows])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def key_of(content: Any) -> str:
    """A hash of some content (16 hexadecimal digits)."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_folder(
    folder: Path,
    save: Callable[[Path], None],
    content: dict[str, Any],
    step: int,
    losses: list[float],
) -> None:
    """Write a folder with its record; it is there whole or not at all.

    Args:
        save: writes the weights into the folder given.
        content: what went in; see `content_of`.
        losses: of every step so far.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)

    def fill(target: Path) -> None:
        target.mkdir()
        save(target)
        record = {
            "key": key_of([content, step]),
            "made_from": content | {"step": step},
            "files": {p.name: _hash(p) for p in sorted(target.iterdir()) if p.is_file()},
            "losses": losses,
        }
        (target / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")

    write_whole(folder, fill)


def is_there(folder: Path, content: dict[str, Any], step: int) -> bool:
    """Whether a folder holds what this content gives; False where there is no folder.

    Raises:
        RunFolderError: when something else lies there, or its files are not whole.
    """
    if not folder.exists():
        return False
    record = read_record(folder)
    if record is None:
        raise RunFolderError(
            f"{folder}: holds no readable {RECORD}; remove that folder to train it again"
        )
    if record["key"] != key_of([content, step]):
        raise RunFolderError(
            f"{folder}: was made from something else ({_difference(record, content, step)}); "
            "remove that folder or choose another --out"
        )
    for name, expected in record["files"].items():
        if not (folder / name).is_file() or _hash(folder / name) != expected:
            raise RunFolderError(
                f"{folder / name}: damaged; remove the folder {folder} to train it again"
            )
    return True


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a folder; None where there is none that can be read."""
    try:
        found = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    kinds = {"key": str, "made_from": dict, "files": dict, "losses": list}
    whole = isinstance(found, dict) and all(isinstance(found.get(k), t) for k, t in kinds.items())
    return found if whole else None


def _difference(record: dict[str, Any], content: dict[str, Any], step: int) -> str:
    """The first thing that differs, in words."""
    expected, found = content | {"step": step}, record["made_from"]
    name = next((k for k in expected if found.get(k) != expected[k]), "key")
    here, there = expected.get(name), found.get(name)
    if isinstance(here, dict) and isinstance(there, dict):
        inner = next((k for k in here if there.get(k) != here[k]), name)
        name, here, there = f"{name}.{inner}", here.get(inner), there.get(inner)
    return f"{name}: found {there!r}, expected {here!r}"


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
