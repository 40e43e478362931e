"""The models that are measured: those of spillover, and Llama shapes with random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from spillover.anatomy import find_anatomy
from spillover.models import LoadedModel, Loading, load, resolve
from spillover.models.hardware import choose_device, choose_dtype
from spillover.models.loading import load_chat

TRIAL = "llama-tiny"
"""For trying the scripts out without a GPU."""
LLAMA = {"vocab_size": 128_256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {
        **LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "llama-8b": {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    TRIAL: {
        **LLAMA,
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
}
"""Llama shapes with random weights; they read with the organism's tokenizer."""


def build(name: str, dtype: str = "auto") -> LoadedModel:
    """A model by name, or one of `SHAPES`: built on its device, the same weights every time."""
    if name not in SHAPES:
        return load(name, dtype=dtype)
    source = replace(resolve("organism"), name=name, model_class="default")
    model = _random(name, choose_dtype(dtype, choose_device("auto"), 10**9))
    placement = f"{model.device} in {str(model.dtype).removeprefix('torch.')}"
    return LoadedModel(source, model, load_chat(source, Loading()), placement, Loading(dtype=dtype))


def _random(name: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[name], bos_token_id=None, eos_token_id=2, pad_token_id=0)
    with choose_device("auto"):
        make: Any = AutoModelForCausalLM.from_config
        made = make(config, dtype=dtype, attn_implementation="sdpa")
    return made.eval().requires_grad_(False)


def plain(loaded: LoadedModel, dtype: torch.dtype) -> Any:
    """The same model as a script without spillover has it: transformers and sdpa."""
    from transformers import AutoModelForCausalLM

    if loaded.source.name in SHAPES:
        return _random(loaded.source.name, dtype)
    made: Any = AutoModelForCausalLM.from_pretrained(
        loaded.source.folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    return made.to(loaded.device).eval().requires_grad_(False)


def sizes(loaded: LoadedModel) -> dict[str, int]:
    """Weights that multiply: of the blocks' linear layers, and of the output layer."""
    names = [name for block in find_anatomy(loaded.model).blocks for name in block.linears]
    layers: list[Any] = [loaded.model.get_submodule(name) for name in names]
    head: Any = loaded.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return {"blocks": sum(x.weight.numel() for x in layers), "head": head.weight.numel()}
