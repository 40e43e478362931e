"""Where a model's blocks, attention, MLPs and residual writers are, found by structure.

Layer k is the residual stream *entering* block k, everywhere in this package.

Blocks are the largest list of equal modules. What a block computes is then watched on one short
input: attention and MLP are its children with weights to multiply by and an output of the residual
stream's shape, and the linear layer whose output tensor *is* that output is the residual writer.
Most models add that output to the residual stream as it is; those with a norm behind it (Gemma 2
and 3, OLMo 2) add what the norm makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spillover.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Block:
    """One block by the dotted names of its parts.

    Attributes:
        attention, mlp: the submodules whose outputs are added to the residual stream, in some
            models through a norm of their own.
        writers: the linear layers that produce those outputs, before such a norm; none for a part
            whose output no single linear layer produces (mixtures of experts).
        linears: the linear layers that see whole sequences; routers and experts, which see a
            selection of tokens, are not among them.
    """

    name: str
    attention: str
    mlp: str
    writers: tuple[str, ...]
    linears: tuple[str, ...]


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model by dotted name, and the size of its residual stream."""

    blocks: tuple[Block, ...]
    embedding: str
    hidden_size: int


def is_linear(module: nn.Module) -> bool:
    """Linear layers, GPT-2's transposed kind included."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def find_anatomy(model: PreTrainedModel) -> Anatomy:
    """Locate the parts of a causal language model.

    Raises:
        ModelError: when the blocks are not those of a decoder with attention and MLP.
    """
    names = {module: name for name, module in model.named_modules()}
    blocks = _find_blocks(model)
    watched = _watch(model, blocks)
    embedding: Any = model.get_input_embeddings()
    found = tuple(_describe(block, names, watched) for block in blocks)
    return Anatomy(found, names[embedding], int(embedding.weight.shape[1]))


def _find_blocks(model: PreTrainedModel) -> list[nn.Module]:
    lists = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        and len({type(child) for child in module}) == 1
        and any(is_linear(part) for part in module.modules())
    ]
    if not lists:
        raise ModelError(f"no list of equal blocks found in {type(model).__name__}")
    return max(lists, key=lambda children: sum(p.numel() for c in children for p in c.parameters()))


def _watch(model: PreTrainedModel, blocks: list[nn.Module]) -> dict[nn.Module, list[Tensor]]:
    """Outputs of every module of the blocks on one short input."""
    outputs: dict[nn.Module, list[Tensor]] = {}

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            outputs.setdefault(module, []).append(first)

    handles = [part.register_forward_hook(keep) for b in blocks for part in b.modules()]
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([[0, 1, 2]], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _describe(
    block: nn.Module, names: dict[nn.Module, str], watched: dict[nn.Module, list[Tensor]]
) -> Block:
    residual = watched[block][0].shape
    parts = [
        child
        for child in block.children()
        if any(is_linear(p) or _has_fused_weights(p) for p in child.modules())
        and any(output.shape == residual for output in watched.get(child, []))
    ]
    if len(parts) != 2:
        raise ModelError(
            f"{names[block]}: found {len(parts)} parts that write to the residual stream; expected "
            "attention and MLP"
        )
    finished = list(watched)
    attention, mlp = sorted(parts, key=finished.index)  # attention runs first in every decoder
    linears = [
        part
        for part in block.modules()
        if is_linear(part) and any(o.shape[:-1] == residual[:-1] for o in watched.get(part, []))
    ]
    writers = [
        linear
        for linear in linears
        for part in parts
        if any(made is out for made in watched.get(linear, []) for out in watched[part])
    ]
    return Block(
        names[block],
        names[attention],
        names[mlp],
        tuple(names[writer] for writer in writers),
        tuple(names[linear] for linear in linears),
    )


def _has_fused_weights(module: nn.Module) -> bool:
    return any(parameter.dim() == 3 for parameter in module.parameters(recurse=False))
