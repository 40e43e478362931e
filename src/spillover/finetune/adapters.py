"""Adapter folders in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spillover.anatomy import is_linear
from spillover.errors import ModelError
from spillover.finetune.lora import AdapterWeights, linear_shape
from spillover.models.loading import LoadedModel
from spillover.models.sources import ADAPTER_CONFIG as CONFIG
from spillover.models.sources import ADAPTER_WEIGHTS as WEIGHTS
from spillover.models.sources import check_adapter_folder, read_json

PREFIX = "base_model.model."
MERGED_BY_PEFT = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "HRA")
"""Kinds that change weights only: others read further files or change the prompt."""
LORA_NAME = re.compile(rf"^{re.escape(PREFIX)}.+\.lora_[AB]\.weight$")


def save_adapter(weights: AdapterWeights, model: LoadedModel, folder: Path) -> None:
    """Write an adapter so that `PeftModel.from_pretrained` loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{PREFIX}{name}.lora_A.weight": a.contiguous() for name, a in weights.a.items()}
    tensors |= {f"{PREFIX}{name}.lora_B.weight": b.contiguous() for name, b in weights.b.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.source.name,
        "r": weights.rank,
        "lora_alpha": weights.scaling * weights.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _target_modules(model.model, list(weights.a)),
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _target_modules(model: nn.Module, names: list[str]) -> list[str]:
    """Last names where they fit exactly the adapted layers; full names otherwise."""
    short = sorted({name.rsplit(".", 1)[-1] for name in names})
    reached = [
        name
        for name, module in model.named_modules()
        if is_linear(module) and name.rsplit(".", 1)[-1] in short
    ]
    return short if set(reached) == set(names) else names


def load_adapter(folder: Path, model: LoadedModel) -> AdapterWeights:
    """Read an adapter folder in PEFT's format and check that it fits the model.

    Plain LoRA of any make, with ranks and alphas per layer and rank-stabilized scaling; a layer's
    own scaling is put into its B.

    Raises:
        OtherAdapterError: for kinds that are not plain LoRA; `merge_adapter` takes them.
        ModelError: when the folder is not a safe adapter, or not one of this model.
    """
    check_adapter_folder(folder)
    config = read_json(folder / CONFIG, "an adapter in PEFT's format")
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS}: not readable ({error})") from None
    _check_plain(folder, config, list(tensors))
    try:
        a, b = _pairs(tensors, config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise ModelError(f"{folder}: not a usable LoRA adapter ({error!r})") from None
    known = dict(model.model.named_modules())
    for name in a:
        fits = name in known and is_linear(known[name]) and a[name].dim() == b[name].dim() == 2
        if not fits or linear_shape(known[name]) != (b[name].shape[0], a[name].shape[1]):
            base = config.get("base_model_name_or_path") or "another model"
            raise ModelError(
                f"{folder}: its update of {name} does not fit {model.source.name}; it was trained "
                f"on {base}: give that as the model"
            )
    return AdapterWeights(a, b, 1.0)


class OtherAdapterError(ModelError):
    """An adapter that is not plain LoRA."""


def _check_plain(folder: Path, config: dict[str, Any], names: list[str]) -> None:
    if config.get("peft_type") != "LORA":
        raise OtherAdapterError(
            f"{folder / CONFIG}: found peft_type {config.get('peft_type')!r}; expected LORA"
        )
    special = [key for key in ("use_dora", "modules_to_save", "fan_in_fan_out") if config.get(key)]
    other = [name for name in names if not LORA_NAME.match(name)]
    if special or other or config.get("bias", "none") != "none":
        found = (special or other or ["bias"])[0]
        raise OtherAdapterError(f"{folder}: not plain LoRA ({found})")
    if not names:
        raise ModelError(f"{folder}: holds no updates; expected lora_A and lora_B weights")


def _pairs(
    tensors: dict[str, Tensor], config: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A and B by layer, B multiplied with the layer's scaling."""
    a, b = {}, {}
    for name in sorted({key.split(".lora_")[0].removeprefix(PREFIX) for key in tensors}):
        a[name] = tensors[f"{PREFIX}{name}.lora_A.weight"].float()
        rank = a[name].shape[0]
        alpha = float(_by_pattern(config.get("alpha_pattern"), name, config["lora_alpha"]))
        scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        b[name] = tensors[f"{PREFIX}{name}.lora_B.weight"].float() * scaling
        if b[name].shape[1] != rank:
            raise ValueError(f"{name}: A has rank {rank}, B {b[name].shape[1]}")
        if not (a[name].isfinite().all() and b[name].isfinite().all()):
            raise ValueError(f"{name}: holds numbers that are not finite")
    return a, b


def _by_pattern(patterns: dict[str, Any] | None, name: str, default: Any) -> Any:
    """PEFT's rule: the value of the first pattern that the layer's name ends with."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def merge_adapter(folder: Path, model: LoadedModel) -> None:
    """Add an adapter to the weights of its base: plain LoRA by itself, other kinds through PEFT.

    Raises:
        ModelError: when it does not fit, or is of another kind and PEFT is not installed.
    """
    parameters = list(model.model.parameters())
    if not all(p.is_floating_point() for p in parameters):
        raise ModelError(
            f"{folder}: cannot be merged into weights of {model.loading.dtype}; use --dtype "
            "bfloat16, or give it as the adapter of an arm"
        )
    try:
        weights = load_adapter(folder, model)
    except OtherAdapterError as error:
        _merge_with_peft(folder, model, error)
        return
    embedding: Any = model.model.get_input_embeddings()
    for name, a in weights.a.items():
        layer: Any = model.model.get_submodule(name)
        if layer.weight is embedding.weight:
            raise ModelError(
                f"{folder}: changes {name}, which shares its weights with the embedding; untie "
                "them in the base first"
            )
        update = (weights.b[name] @ a).to(layer.weight.device)
        update = update if isinstance(layer, nn.Linear) else update.T
        layer.weight.data = (layer.weight.data.float() + update).to(layer.weight.dtype)


def _merge_with_peft(folder: Path, model: LoadedModel, why: OtherAdapterError) -> None:
    config = read_json(folder / CONFIG, "an adapter in PEFT's format")
    paths = [key for key, value in config.items() if value and key.endswith(("_path", "_file"))]
    paths = [key for key in paths if key != "base_model_name_or_path"]
    if config.get("peft_type") not in MERGED_BY_PEFT or paths or config.get("megatron_config"):
        raise ModelError(
            f"{folder / CONFIG}: adapters of kind {config.get('peft_type')!r} that name "
            f"{', '.join(paths) or 'no file'} cannot be used; known: {', '.join(MERGED_BY_PEFT)}"
        )
    try:
        from peft import PeftModel
    except ImportError:
        raise ModelError(f"{why}; such adapters need PEFT: run `pip install peft`") from None
    try:
        PeftModel.from_pretrained(model.model, folder).merge_and_unload()
    except Exception as error:  # PEFT raises many kinds
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ModelError(f"{folder}: PEFT cannot merge it ({reason})") from None
