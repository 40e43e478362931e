"""Which parameters of a model write to its residual stream, found by their gradients.

A parameter writes along one of its axes when index j of that axis moves dimension j of what is
added to the stream and no other one, and does so for every j alike: then to project the axis is to
project what is added. This holds of output matrices in any layout, of their biases, of experts that
are fused into one tensor and of embeddings; not of what stands in front of a norm. Where the
parameters that were found do not account for all that is added, nothing can be edited.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from spillover.anatomy import entering, first_of
from spillover.errors import ModelError

if TYPE_CHECKING:
    from spillover.models import LoadedModel

# Shape legend: T tokens, D hidden size.

PROBE = 8
"""Tokens of the input on which gradients are taken."""
COMPARED = (0, -1)
"""Dimensions of the stream whose gradients are compared; any two would do."""
EXACT, ROUNDED = 1e-3, 0.05
"""Share by which equal things may differ, in float32 and in shorter numbers."""
NUMBER = re.compile(r"\b\d+\b")

Parameters = Mapping[str, Tensor]
Stage = Callable[[Parameters], Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Writer:
    """A parameter, by dotted name, that writes to the residual stream along one of its axes."""

    parameter: str
    axis: int


class _EnteredError(Exception):
    """The first block was entered."""


def find_writers(model: LoadedModel) -> list[Writer]:
    """Every parameter that writes to the residual stream, those of the embedding stage first.

    Raises:
        ModelError: where other things write too, such as norms behind attention and MLP; for
            weights that are quantized, or not in memory.
    """
    check_editable(model)
    inside = tuple(f"{block.name}." for block in model.anatomy.blocks)
    named = model.model.named_parameters(remove_duplicate=False)
    readers = set(_head_names(model))
    outside = {n: p for n, p in named if not n.startswith(inside) and n not in readers}
    found = _writers(partial(_embedded, model), outside, model.anatomy.hidden_size)
    if found is None:
        raise _not_editable(model, "the embedding stage")
    calls = _calls(model)
    for block in model.anatomy.blocks:
        for name in block.adds:
            module = model.model.get_submodule(name)
            stage = partial(_computed, module, calls[name])
            writers = _writers(stage, dict(module.named_parameters()), model.anatomy.hidden_size)
            if writers is None:
                raise _not_editable(model, name)
            found += [Writer(f"{name}.{one.parameter}", one.axis) for one in writers]
    return found


def _head_names(model: LoadedModel) -> list[str]:
    """Parameters of the layer that gives the logits, under its own name."""
    head: Any = model.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    name = next(name for name, module in model.model.named_modules() if module is head)
    return [f"{name}.{one}" for one, _ in head.named_parameters()]


def check_editable(model: LoadedModel) -> None:
    """Make sure that the weights of a model can be edited at all.

    Raises:
        ModelError: when they are quantized or not in memory.
    """
    about = f"{model.source.name}: its weights cannot be edited"
    instead = "ablate the direction instead, or load the model with --dtype bfloat16"
    if getattr(model.model.config, "quantization_config", None) is not None:
        raise ModelError(f"{about}: they are quantized; {instead}")
    for name, parameter in model.model.named_parameters():
        if parameter.is_meta:
            raise ModelError(f"{about}: {name} is not in memory; load the model with --device cpu")
        if not parameter.is_floating_point():
            raise ModelError(f"{about}: {name} holds {parameter.dtype}; {instead}")


def _not_editable(model: LoadedModel, name: str) -> ModelError:
    kind = model.model.config.model_type
    parts = {part for block in model.anatomy.blocks for part in (block.attention, block.mlp)}
    is_norm = any(name in block.adds for block in model.anatomy.blocks) and name not in parts
    why = (
        f"{name} is a norm in front of the residual stream, and to project what a norm gives is "
        "to edit no weight"
        if is_norm
        else f"what {name} gives is not linear in its last weights"
    )
    return ModelError(
        f"{model.source.name}: its weights cannot be edited: {why} (architecture {kind}); ablate "
        "the direction instead"
    )


def _probe(model: LoadedModel) -> Tensor:
    embedding: Any = model.model.get_input_embeddings()
    padding = getattr(embedding, "padding_idx", None)  # has no gradient
    ids = [token for token in range(PROBE + 1) if token != padding][:PROBE]
    return torch.tensor([ids], device=model.device)


def _computed(module: nn.Module, call: Call, leaves: Parameters) -> Float[Tensor, "T D"]:
    """What a module adds to the stream, as a function of its parameters."""
    out: Tensor = first_of(functional_call(module, dict(leaves), *call))
    return out.flatten(0, -2)


def _embedded(model: LoadedModel, leaves: Parameters) -> Float[Tensor, "T D"]:
    """The first residual stream, as a function of the parameters outside of the blocks."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(entering(given, named))
        raise _EnteredError

    first = model.model.get_submodule(model.anatomy.blocks[0].name)
    inputs = {"input_ids": _probe(model), "use_cache": False}
    with ExitStack() as hooks, suppress(_EnteredError):
        hooks.callback(first.register_forward_pre_hook(keep, with_kwargs=True).remove)
        functional_call(model.model, dict(leaves), kwargs=inputs)
    return seen[0].flatten(0, -2)


def _calls(model: LoadedModel) -> dict[str, Call]:
    """How the modules that write are called on a short input."""
    calls: dict[str, Call] = {}

    def keep(name: str, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls[name] = (given, named)

    with ExitStack() as hooks, torch.no_grad():
        for name in (name for block in model.anatomy.blocks for name in block.adds):
            part = model.model.get_submodule(name)
            hook = partial(keep, name)
            hooks.callback(part.register_forward_pre_hook(hook, with_kwargs=True).remove)
        model.model(input_ids=_probe(model), use_cache=False)
    return calls


def _writers(stage: Stage, parameters: Parameters, size: int) -> list[Writer] | None:
    """The parameters that a stage writes with; None where they do not account for all it gives."""
    leaves = {
        name: parameter.detach().requires_grad_()
        for name, parameter in parameters.items()
        if size in parameter.shape
    }
    with torch.enable_grad():
        given = stage(leaves)  # (T, D)
        if not given.requires_grad:
            return None
        weights = torch.linspace(1, 2, len(given)).to(given)
        sums = [(weights * given[:, at]).sum() for at in COMPARED]
        grads = [
            torch.autograd.grad(one, [*leaves.values()], retain_graph=True, allow_unused=True)
            for one in sums
        ]
    given, close = given.detach(), EXACT if given.dtype == torch.float32 else ROUNDED
    found, silent, told = [], [], [0.0] * len(sums)
    for (name, leaf), *slopes in zip(leaves.items(), *grads, strict=True):
        if slopes[0] is None or not slopes[0].any():
            silent.append(name)
        elif (axis := _axis(slopes, size, close)) is not None:
            found.append(Writer(name, axis))
            for number, (at, slope) in enumerate(zip(COMPARED, slopes, strict=True)):
                part = slope.select(axis, at).double() * leaf.detach().select(axis, at)
                told[number] += float(part.sum())
    scale = float((weights * given.abs().amax(-1)).sum())
    if any(abs(t - float(s.detach())) > close * scale for t, s in zip(told, sums, strict=True)):
        return None
    return found + _siblings(found, silent)


def _axis(slopes: list[Tensor], size: int, close: float) -> int | None:
    """The axis along which a parameter moves each dimension of the stream by its own index."""
    for axis in (n for n, length in enumerate(slopes[0].shape) if length == size):
        own = [s.select(axis, at) for s, at in zip(slopes, COMPARED, strict=True)]
        alone = all(
            s.count_nonzero() == o.count_nonzero() for s, o in zip(slopes, own, strict=True)
        )
        if alone and (own[0] - own[1]).abs().max() <= close * own[0].abs().max():
            return axis
    return None


def _siblings(found: list[Writer], silent: list[str]) -> list[Writer]:
    """Parameters that the probe did not reach (experts), but whose numbered siblings write."""
    axes = {NUMBER.sub("*", one.parameter): one.axis for one in found}
    names = ((name, NUMBER.sub("*", name)) for name in silent)
    return [Writer(name, axes[kind]) for name, kind in names if kind in axes and kind != name]
