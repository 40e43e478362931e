"""Interventions on the residual stream of a loaded model: directions ablated or added.

Ablation (arXiv 2406.11717, section 2.4) projects directions out of everything that is written to
the residual stream: what the embedding stage gives to block 0, and what attention and MLP of every
block add to it, behind post-norms where there are any, in all positions and steps of generation.
Addition adds a vector to the stream that enters one block. Updates of adapters come before.

All interventions of a model share one set of hooks. They act on a plan, which is replaced as a
whole: interventions that are active together ablate the span of their directions, and additions are
made afterwards, so that the order of nesting does not matter. Hooks give new tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spillover.anatomy import entering, replaced
from spillover.directions.direction import Direction, fingerprint
from spillover.errors import DirectionError, ModelError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from spillover.models import LoadedModel

# Shape legend: D hidden size, K directions, L layers.

DEPENDENT = 1e-6
"""Singular values below this share of the largest belong to directions that say nothing new."""


@dataclass(frozen=True)
class Intervention:
    """One intervention.

    Attributes:
        name: what it is, in a word and a hash.
        basis: orthonormal rows that are projected out, of shape (K, D); K may be 0.
        added: the vector that is added, and the layer in front of which.
    """

    name: str
    basis: Tensor
    added: tuple[int, Tensor] | None = None


class Plan:
    """What the hooks of a model do: everything that is active together.

    Attributes:
        active: the interventions, outermost first.
        basis: orthonormal rows of the span of all directions that are ablated, of shape (K, D).
        added: the vector that is added to the stream entering each layer, where there is one.
    """

    def __init__(self, active: Sequence[Intervention]) -> None:
        self.active = tuple(active)
        self.basis = orthonormal(torch.cat([one.basis for one in active]))
        self.added: dict[int, Tensor] = {}
        for one in active:
            if one.added:
                layer, vector = one.added
                self.added[layer] = self.added[layer] + vector if layer in self.added else vector
        self._placed: dict[torch.device, Tensor] = {}

    def without(self, x: Tensor) -> Tensor:
        """What is written, without what is ablated."""
        if x.device not in self._placed:
            self._placed[x.device] = self.basis.to(x.device)
        return project_out(x, self._placed[x.device])


def orthonormal(rows: Float[Tensor, "K D"]) -> Float[Tensor, "R D"]:
    """An orthonormal basis of the span of some rows, found in float64, in float32 on the CPU."""
    if not len(rows):
        return rows.float().cpu()
    _, sizes, basis = torch.linalg.svd(rows.detach().cpu().double(), full_matrices=False)
    kept: Tensor = basis[sizes > DEPENDENT * sizes[0]].float()
    return kept


def project_out(x: Tensor, basis: Float[Tensor, "K D"]) -> Tensor:
    """A new tensor: x without its components along orthonormal rows; in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    rows = basis.to(wide)
    without: Tensor = wide - (wide @ rows.T) @ rows
    return without.to(x.dtype)


class _Hooks:
    """The hooks of one model; without a plan they do nothing."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.handles: list[RemovableHandle] = []

    def install(self, model: LoadedModel) -> None:
        """Register every hook, or none where an error comes between."""
        try:
            for layer, block in enumerate(model.anatomy.blocks):
                module = model.model.get_submodule(block.name)
                enter = partial(self._enter, layer)
                self.handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                for name in block.adds:
                    part = model.model.get_submodule(name)
                    self.handles.append(part.register_forward_hook(self._write))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take every hook away."""
        self.plan = None
        while self.handles:
            self.handles.pop().remove()

    def _enter(
        self, layer: int, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        plan = self.plan
        if plan is None:
            return None
        stream = before = entering(given, named)
        if layer == 0 and len(plan.basis):
            stream = plan.without(stream)
        if layer in plan.added:
            vector = plan.added[layer].to(stream.device)
            stream = (stream + vector).to(stream.dtype)
        if stream is before:
            return None
        return replaced(given, named, stream)

    def _write(self, _module: nn.Module, _given: Any, output: Any) -> Any:
        plan = self.plan
        if plan is None or not len(plan.basis):
            return None
        if isinstance(output, tuple):
            return (plan.without(output[0]), *output[1:])
        return plan.without(output)


_hooks: WeakKeyDictionary[nn.Module, _Hooks] = WeakKeyDictionary()


@contextmanager
def intervening(model: LoadedModel, intervention: Intervention) -> Iterator[LoadedModel]:
    """Within, an intervention is active in a model, besides those that already are.

    Raises:
        ModelError: for architectures whose residual writes were not found.
    """
    strange = [block.name for block in model.anatomy.blocks if not block.adds]
    if strange:
        raise ModelError(
            f"{model.source.name}: {strange[0]} does not add the outputs of attention and MLP to "
            "the residual stream, so nothing can be ablated there; models of this architecture "
            f"({model.model.config.model_type}) cannot be intervened in"
        )
    hooks = _hooks.get(model.model) or _Hooks()
    active = hooks.plan.active if hooks.plan else ()
    plan = Plan((*active, intervention))
    try:
        if not active:
            hooks.install(model)
        _hooks[model.model] = hooks
        hooks.plan = plan
        kept = [change for change in model.source.changes if not change.startswith(PREFIX)]
        yield model.changed([*kept, *(one.name for one in plan.active)])
    finally:
        now = hooks.plan.active if hooks.plan else ()
        rest = [one for one in now if one is not intervention]
        if rest:
            hooks.plan = Plan(rest)
        else:
            hooks.remove()


PREFIX = "with "
"""What the name of an intervention begins with."""


def is_active(model: LoadedModel) -> bool:
    """Whether something is ablated or added in a model now."""
    hooks = _hooks.get(model.model)
    return hooks is not None and hooks.plan is not None


def as_vector(model: LoadedModel, direction: Direction | Tensor) -> Float[Tensor, " D"]:
    """The vector of a direction, checked, as it is scaled."""
    vector = direction.vector if isinstance(direction, Direction) else direction
    size = model.anatomy.hidden_size
    if vector.shape != (size,):
        raise DirectionError(
            f"found a direction of shape {tuple(vector.shape)}; the residual stream of "
            f"{model.source.name} has {size} dimensions"
        )
    vector = vector.detach().float().cpu()
    if not vector.isfinite().all() or not vector.norm() > 0:
        raise DirectionError(
            "found a direction that is zero or not finite; compute it anew from other prompts, or "
            "load the model with --dtype float32"
        )
    return vector


def ablate(
    model: LoadedModel, direction: Direction | Tensor
) -> AbstractContextManager[LoadedModel]:
    """Within, every residual write loses its component along a direction.

    Args:
        direction: of shape (D,); its length does not matter.

    Raises:
        DirectionError: when it does not fit the model, is zero or not finite.
        ModelError: for architectures whose residual writes were not found.
    """
    return project(model, [direction])


def project(
    model: LoadedModel, directions: Float[Tensor, "K D"] | Sequence[Direction | Tensor]
) -> AbstractContextManager[LoadedModel]:
    """Within, every residual write loses its components in the span of some directions.

    Args:
        directions: K of them; they need not be orthogonal, nor independent.

    Raises:
        DirectionError, ModelError: as `ablate`.
    """
    rows = [as_vector(model, one) for one in directions]
    if not rows:
        raise DirectionError("found no direction to project out; expected at least one")
    basis = orthonormal(torch.stack([row / row.norm() for row in rows]))
    return intervening(model, Intervention(f"{PREFIX}ablated {fingerprint(basis)}", basis))


def add(
    model: LoadedModel,
    direction: Direction | Tensor,
    layer: int | None = None,
    coefficient: float = 1.0,
) -> AbstractContextManager[LoadedModel]:
    """Within, a multiple of a direction is added to the stream entering a layer, in all positions.

    Args:
        direction: of shape (D,); added as long as it is (a difference of means).
        layer: by default the direction's own.

    Raises:
        DirectionError: as `ablate`, and for a layer that the model has not.
        ModelError: as `ablate`.
    """
    vector = as_vector(model, direction)
    if layer is None:
        if not isinstance(direction, Direction):
            raise DirectionError("a bare vector has no layer of its own; name one")
        layer = direction.layer
    check_layer(model, layer)
    empty = vector.new_zeros(0, len(vector))
    name = f"{PREFIX}added {fingerprint(vector)} layer={layer} coefficient={coefficient:g}"
    return intervening(model, Intervention(name, empty, (layer, coefficient * vector)))


def check_layer(model: LoadedModel, layer: int) -> None:
    """Make sure that a model has a layer.

    Raises:
        DirectionError: when it has not.
    """
    count = len(model.anatomy.blocks)
    if not 0 <= layer < count:
        raise DirectionError(
            f"layer {layer} is out of range; {model.source.name} has layers 0 to {count - 1} "
            "(layer k is the residual stream entering block k)"
        )
