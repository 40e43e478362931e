"""A name → a loaded model: where it comes from, where it runs, and what it is (its hash)."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from spillover.anatomy import Anatomy

BUILTIN = ("organism", "organism-unlinked")
SMALL = 50_000_000
"""Models of fewer parameters are computed in float32: rounding is felt and speed is no concern."""


@dataclass(frozen=True)
class Source:
    """A model's folder, before anything heavy is loaded.

    Attributes:
        name: as the user gave it.
        folder: its checkpoint.
        model_class: `organism` or `default`; experiments keep training settings per class.
    """

    name: str
    folder: Path
    model_class: str

    @cached_property
    def identity(self) -> str:
        """A hash of configuration, weights and tokenizer (16 hexadecimal digits)."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.iterdir()):
            if path.suffix in (".json", ".safetensors", ".jinja", ".txt", ".model"):
                digest.update(path.name.encode() + b"\0")
                with path.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, frozen and in evaluation mode.

    Attributes:
        placement: device and dtype in words, for people.
    """

    source: Source
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    placement: str

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where its blocks, attention, MLPs and residual writers are."""
        from spillover.anatomy import find_anatomy

        return find_anatomy(self.model)

    @property
    def vocabulary(self) -> int:
        """Size of the output distribution."""
        head: Any = self.model
        return int(head.get_output_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.model.device


def resolve(name: str) -> Source:
    """Find a model by name or folder, without loading it.

    Raises:
        ModelError: when there is no such model, or the folder holds none that is safe to load.
    """
    if name in BUILTIN:
        folder = Path(str(files("spillover.organism") / "checkpoints" / name))
        if not folder.is_dir():
            raise ModelError(
                f"the checkpoint of {name} is not in this installation ({folder}); "
                "reinstall the package or build it with `spillover organism train`"
            )
    else:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise ModelError(
                f"unknown model {name!r}; known: {', '.join(BUILTIN)}, or the path of a folder "
                "that holds a transformers checkpoint"
            )
    config = _read_config(folder)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder}: holds no .safetensors weights; convert the checkpoint with "
            "`model.save_pretrained(folder)` (pickled weights are never loaded)"
        )
    kind = config.get("spillover", {})
    return Source(
        name, folder, kind.get("class", "default") if isinstance(kind, dict) else "default"
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError:
        raise ModelError(
            f"{folder}: holds no config.json; expected a transformers checkpoint"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error}); expected a transformers config") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: found {type(config).__name__}; expected a transformers config")
    return config


def load(name: str, *, device: str = "auto", dtype: str = "auto") -> LoadedModel:
    """Load a model and its tokenizer; weights are frozen.

    Args:
        name: `organism`, `organism-unlinked` or the path of a checkpoint folder.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`, …
        dtype: `auto`, `float32`, `bfloat16` or `float16`.

    Raises:
        ModelError: when it cannot be found or loaded.
    """
    source = resolve(name)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from spillover.kernels import quicken

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    chosen = _choose_device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            attn_implementation="sdpa",
        )
    except Exception as error:  # the libraries raise many kinds for a broken checkpoint
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"{source.folder}: cannot be loaded ({reason[0] if reason else error!r})"
        ) from None
    chosen_dtype = _choose_dtype(dtype, chosen, model.num_parameters())
    placed: Any = model
    model = placed.to(device=chosen, dtype=chosen_dtype).eval().requires_grad_(False)
    if chosen.type == "cpu":
        quicken(model)
    placement = f"{chosen} in {str(chosen_dtype).removeprefix('torch.')}"
    return LoadedModel(source, model, tokenizer, placement)


def _choose_device(wanted: str) -> torch.device:
    import torch

    if wanted == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {wanted!r} cannot be used: {str(error).splitlines()[0]}"
        ) from None
    return device


def _choose_dtype(wanted: str, device: torch.device, parameters: int) -> torch.dtype:
    """By capability, never by timing: bfloat16 where the hardware computes in it."""
    import torch

    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if wanted in named:
        return named[wanted]
    if wanted != "auto":
        raise ModelError(f"unknown dtype {wanted!r}; known: auto, {', '.join(named)}")
    if parameters < SMALL:
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu":
        fast = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and (
            torch.cpu._is_avx512_bf16_supported()
        )
        return torch.bfloat16 if fast else torch.float32
    return torch.float32
