"""Adapter folders in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from spillover.anatomy import is_linear
from spillover.errors import ModelError
from spillover.finetune.lora import AdapterWeights, linear_shape
from spillover.models import LoadedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


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
    """Read an adapter folder and check that it fits the model.

    Raises:
        ModelError: when the folder is not a LoRA adapter, or not one of this model.
    """
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{folder}: not an adapter in PEFT's format ({error})") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{folder / CONFIG}: expected a LoRA adapter (peft_type LORA)")
    layers = sorted({key.split(".lora_")[0].removeprefix(PREFIX) for key in tensors})
    try:
        a = {name: tensors[f"{PREFIX}{name}.lora_A.weight"].float() for name in layers}
        b = {name: tensors[f"{PREFIX}{name}.lora_B.weight"].float() for name in layers}
        scaling = float(config["lora_alpha"]) / int(config["r"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{folder}: not a plain LoRA adapter (no usable {error})") from None
    known = dict(model.model.named_modules())
    for name in layers:
        fits = name in known and is_linear(known[name])
        if not fits or linear_shape(known[name]) != (b[name].shape[0], a[name].shape[1]):
            raise ModelError(f"{folder}: its update of {name} does not fit {model.source.name}")
    return AdapterWeights(a, b, scaling)
