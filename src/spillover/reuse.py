"""What may go on in a folder: is it this run's, and is it whole? Nothing is written here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.errors import RunFolderError, check_writable
from spillover.folder import PARTIAL, is_unused
from spillover.settings import SCHEMA, file_hash

if TYPE_CHECKING:
    from spillover.settings import RunSettings

MANIFEST, SUMMARY, REPORT, ANSWERS = (
    "manifest.json",
    "summary.json",
    "report.html",
    "answers.sqlite",
)
TABLES = ("answers.parquet", "grades.parquet", "rates.parquet", "effects.parquet")
ADAPTERS = "adapters"
Content = dict[str, Any]
ANOTHER = "choose another folder with --out"


def read_manifest(folder: Path) -> Content | None:
    """The content of a folder's manifest; None where there is none.

    Raises:
        RunFolderError: when it is damaged, or of another version.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read ({error.strerror}); {ANOTHER}") from None
    except (ValueError, RecursionError):
        raise RunFolderError(
            f"{path}: damaged (not JSON); put it back from a copy, remove the folder, or {ANOTHER}"
        ) from None
    parts = ("adapters", "files", "environment", "inputs")
    if not isinstance(found, dict) or not all(isinstance(found.get(p, {}), dict) for p in parts):
        raise RunFolderError(f"{path}: not a run's manifest; {ANOTHER}")
    return found


def check_folder(folder: Path, settings: RunSettings) -> Content | None:
    """Make sure that a run may use this folder, before anything is computed.

    Returns:
        the manifest of the run that is there; None for a new or unused folder.

    Raises:
        RunFolderError: when it cannot be written, or holds something else.
    """
    check_writable(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        if is_unused(folder):
            return None
        raise RunFolderError(
            f"{folder}: is not empty and holds no run; choose an empty or new folder with --out"
        )
    version = manifest.get("schema")
    if version != SCHEMA or not isinstance(manifest.get("inputs"), dict):
        raise RunFolderError(
            f"{folder}: holds no run of this version (found schema {version!r}, expected "
            f"{SCHEMA}); {ANOTHER}"
        )
    differs = difference(manifest["inputs"], settings.inputs, trained_arms(folder))
    if differs:
        raise RunFolderError(
            f"{folder}: holds another run: {differs}; change it back, or {ANOTHER}"
        )
    return manifest


def trained_arms(folder: Path) -> set[str]:
    """Arms of which something is trained in a folder, finished or not."""
    return {path.parent.name for path in (folder / ADAPTERS).glob("*/seed-*")}


def difference(found: Content, wanted: Content, trained: set[str]) -> str | None:
    """In words, what another run in the folder was made of; None where both can be one.

    Args:
        found: the inputs in the folder; see `RunSettings.inputs`.
        trained: arms of which something is trained there.
    """
    if found.get("experiment") != wanted["experiment"]:
        return f"its experiment is {found.get('experiment')!r}, not {wanted['experiment']!r}"
    model, mine = found.get("model") or {}, wanted["model"]
    if model.get("identity") != mine["identity"]:
        same = model.get("name") == mine["name"]
        return f"its model is {model.get('name')}, " + (
            "whose files have changed since" if same else f"not {mine['name']}"
        )
    rows = found.get("rows") or {}
    for arm in sorted(trained & wanted["rows"].keys()):
        if rows.get(arm) != wanted["rows"][arm]:
            return f"arm {arm} has other training rows"
    changed = _changed("", found.get("loading"), wanted["loading"])
    if changed is None and trained:
        changed = _changed("training setting ", found.get("training"), wanted["training"])
    return changed


def _changed(what: str, found: Any, wanted: Content) -> str | None:
    found = found if isinstance(found, dict) else {}
    for key, value in wanted.items():
        if key not in found or found[key] != value:
            return f"{what}{key} was {found.get(key)!r}, and is {value!r}"
    return None


def is_finished(folder: Path, manifest: Content | None, settings: RunSettings) -> bool:
    """Whether a folder holds the finished run of exactly these settings, nothing of it missing.

    Raises:
        RunFolderError: when one of its files is damaged.
    """
    if manifest is None or manifest.get("status") != "done" or manifest.get("key") != settings.key:
        return False
    listed = [*manifest.get("files", {}), *(f"{ADAPTERS}/{a}" for a in manifest["adapters"])]
    if not all((folder / name).exists() for name in (*listed, ANSWERS)):
        return False
    check_whole(folder, manifest)
    return True


def check_whole(folder: Path, manifest: Content) -> None:
    """Look for damage in what a run has finished.

    Raises:
        RunFolderError: naming the first damaged file, and how to mend it.
    """
    from spillover.store import check_answers_file

    for place in sorted((folder / ADAPTERS).glob("*/seed-*/step-*")):
        if place.is_dir() and not place.name.endswith(PARTIAL):
            known = manifest.get("adapters", {})
            _check_adapter(place, known.get(place.relative_to(folder / ADAPTERS).as_posix()))
    check_answers_file(folder / ANSWERS)
    files = manifest.get("files", {})
    for name in (*TABLES, SUMMARY, *(name for name in files if name not in (*TABLES, SUMMARY))):
        path = folder / name
        if path.is_file() and not _is_sound(path, files.get(name)):
            raise RunFolderError(
                f"{path}: damaged, or changed by something else; remove it and repeat the command: "
                "it is made again"
            )


def check_results(folder: Path, manifest: Content) -> None:
    """Make sure that what a finished run is read from is there.

    Raises:
        RunFolderError: naming the first file that is not.
    """
    for name in (SUMMARY, *manifest.get("files", {})):
        path = folder / name
        if not path.is_file() or (name == SUMMARY and _json(path) is None):
            raise RunFolderError(
                f"{path}: missing or damaged; remove it and repeat the run's command: it is made "
                "again"
            )


def _is_sound(path: Path, recorded: str | None) -> bool:
    """Whether a file is as it was written, by its hash where that is known."""
    if recorded is not None:
        return file_hash(path) == recorded
    if path.suffix == ".parquet":
        with path.open("rb") as stream:
            begins = stream.read(4)
            stream.seek(-min(4, path.stat().st_size), 2)
            return begins == stream.read() == b"PAR1" and path.stat().st_size > 12
    return path.suffix != ".json" or _json(path) is not None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _check_adapter(folder: Path, recorded: str | None) -> None:
    """Make sure that a trained adapter or checkpoint is as it was written."""
    weights = sorted(folder.glob("*.safetensors"))
    broken = [path for path in sorted(folder.glob("*.json")) if _json(path) is None]
    broken += [path for path in weights if not _is_safetensors(path)]
    lost = not weights or not any(folder.glob("*config.json"))
    if broken or lost or recorded not in (None, weights_hash(folder)):
        what = broken[0] if broken else folder
        reason = "lacks files" if lost and not broken else "damaged"
        raise RunFolderError(
            f"{what}: {reason}; remove the folder {folder} and repeat the command: it is trained "
            "again"
        )


def _is_safetensors(path: Path) -> bool:
    """Whether a file is as long as its header says."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        size = path.stat().st_size
        if not 2 <= length <= size - 8:
            return False
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return False
    return size == 8 + length + max(ends, default=0)


def weights_hash(folder: Path) -> str:
    """A hash of the weights in a folder (16 hexadecimal digits)."""
    weights = sorted(folder.glob("*.safetensors"))
    if len(weights) == 1:
        return file_hash(weights[0])
    listed = "".join(file_hash(path) for path in weights)
    return hashlib.sha256(listed.encode()).hexdigest()[:16]
