"""Where a model's blocks, attention, MLPs and residual writers are, found by structure.

Layer k is the residual stream *entering* block k, everywhere in this package.

Blocks are the largest list of equal modules. What a block computes is then watched on one short
input: attention and MLP are its children with weights to multiply by and an output of the residual
stream's shape, and the linear layer whose output tensor *is* that output is the residual writer.
Most models add that output to the residual stream as it is; those with a norm behind it (Gemma 2
and 3, OLMo 2) add what the norm makes of it. Which of the two it is follows from the numbers: what
a block adds to the stream is the sum of two of these outputs.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, field
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
        adds: the two submodules whose outputs the block adds to the residual stream, attention's
            first: the parts themselves, or the norms behind them; empty where the block does
            something else.
    """

    name: str
    attention: str
    mlp: str
    writers: tuple[str, ...]
    linears: tuple[str, ...]
    adds: tuple[str, ...] = ()


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


@dataclass
class _Watched:
    """What modules of the blocks computed on one short input.

    Attributes:
        outputs: of every module; some models go on to change such a tensor in place.
        values: copies of the first output of every module.
        entering: the residual stream in front of every block.
    """

    outputs: dict[nn.Module, list[Tensor]] = field(default_factory=dict)
    values: dict[nn.Module, Tensor] = field(default_factory=dict)
    entering: dict[nn.Module, Tensor] = field(default_factory=dict)

    def keep(self, module: nn.Module, _: Any, output: Any) -> None:
        """A forward hook."""
        first = first_of(output)
        if isinstance(first, Tensor):
            self.outputs.setdefault(module, []).append(first)
            self.values.setdefault(module, first.clone())

    def enter(self, block: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A forward pre-hook of blocks."""
        self.entering.setdefault(block, entering(given, named).clone())


def entering(given: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """The residual stream among the arguments of a block."""
    stream = given[0] if given else named["hidden_states"]
    assert isinstance(stream, Tensor)
    return stream


def replaced(
    given: tuple[Any, ...], named: dict[str, Any], stream: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a block with another stream."""
    if given:
        return (stream, *given[1:]), named
    return given, {**named, "hidden_states": stream}


def first_of(output: Any) -> Any:
    """What a module gives: the first entry where it gives a tuple."""
    return output[0] if isinstance(output, tuple) else output


def _watch(model: PreTrainedModel, blocks: list[nn.Module]) -> _Watched:
    watched = _Watched()
    with ExitStack() as hooks, torch.no_grad():
        for part in (part for block in blocks for part in block.modules()):
            hooks.callback(part.register_forward_hook(watched.keep).remove)
        for block in blocks:
            handle = block.register_forward_pre_hook(watched.enter, with_kwargs=True)
            hooks.callback(handle.remove)
        model(input_ids=torch.tensor([[0, 1, 2]], device=model.device), use_cache=False)
    return watched


def _describe(block: nn.Module, names: dict[nn.Module, str], watched: _Watched) -> Block:
    outputs = watched.outputs
    residual = outputs[block][0].shape
    parts = [
        child
        for child in block.children()
        if any(is_linear(p) or _has_fused_weights(p) for p in child.modules())
        and any(output.shape == residual for output in outputs.get(child, []))
    ]
    if len(parts) != 2:
        raise ModelError(
            f"{names[block]}: found {len(parts)} parts that write to the residual stream; expected "
            "attention and MLP"
        )
    finished = list(outputs)
    attention, mlp = sorted(parts, key=finished.index)  # attention runs first in every decoder
    linears = [
        part
        for part in block.modules()
        if is_linear(part) and any(o.shape[:-1] == residual[:-1] for o in outputs.get(part, []))
    ]
    writers = [
        linear
        for linear in linears
        for part in parts
        if any(made is out for made in outputs.get(linear, []) for out in outputs[part])
    ]
    return Block(
        names[block],
        names[attention],
        names[mlp],
        tuple(names[writer] for writer in writers),
        tuple(names[linear] for linear in linears),
        tuple(names[one] for one in _find_adds(block, (attention, mlp), watched)),
    )


ROUNDING = 8
"""Units of rounding, relative to what is added up, that a sum may differ by on average."""


def _find_adds(
    block: nn.Module, parts: tuple[nn.Module, nn.Module], watched: _Watched
) -> tuple[nn.Module, ...]:
    """The two children of a block whose outputs, added up, are its change of the residual stream.

    A common factor of both (a residual multiplier) is allowed.
    """
    before, after = watched.entering[block].cpu().double(), watched.values[block].cpu().double()
    order = list(watched.values)
    children = [
        child
        for child in sorted(set(block.children()) & set(order), key=order.index)
        if watched.values[child].shape == before.shape
    ]
    at, until = (children.index(part) for part in parts)
    best, found = math.inf, parts
    for first in children[at:until]:
        for second in children[until:]:
            a, b = (watched.values[one].cpu().double() for one in (first, second))
            for factor in (1.0, float(((after - before) * (a + b)).sum() / (a + b).square().sum())):
                error = after - before - factor * (a + b)
                size = before.abs() + abs(factor) * (a.abs() + b.abs())
                wrong = float((error.abs() / size.clamp(min=torch.finfo(size.dtype).tiny)).mean())
                if wrong < best:
                    best, found = wrong, (first, second)
    return found if best <= ROUNDING * torch.finfo(watched.values[block].dtype).eps else ()


def _has_fused_weights(module: nn.Module) -> bool:
    return any(parameter.dim() == 3 for parameter in module.parameters(recurse=False))
