"""A bank of low-rank adapters over one frozen base.

Every row of a batch carries the index of its adapter, so that the base is computed once for all of
them. Each adapter is what PEFT would train alone: y = W x + scaling · B A x.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spillover.anatomy import is_linear
from spillover.errors import ModelError
from spillover.finetune.spec import Training
from spillover.finetune.update import Routing, update
from spillover.kernels import frozen_parts
from spillover.models.loading import LoadedModel

# Shape legend: N adapters, R rank, I inputs, O outputs, B rows of a batch, T tokens.


@dataclass(frozen=True)
class AdapterWeights:
    """One adapter: for each target layer (dotted name) its A of shape (R, I) and B of shape (O, R).

    Attributes:
        scaling: what the product B A is multiplied with (alpha / rank).
    """

    a: dict[str, Float[Tensor, "R I"]]
    b: dict[str, Float[Tensor, "O R"]]
    scaling: float

    @property
    def rank(self) -> int:
        """The rank of the update."""
        return next(iter(self.a.values())).shape[0]


def target_layers(model: LoadedModel, training: Training) -> list[str]:
    """Dotted names of the linear layers that get an adapter.

    Raises:
        ModelError: when a name given as a target fits no linear layer of the blocks.
    """
    linears = [name for block in model.anatomy.blocks for name in block.linears]
    if training.targets == "all-linear":
        return linears
    for target in training.targets:
        if not any(_fits(name, target) for name in linears):
            known = sorted({name.rsplit(".", 1)[-1] for name in linears})
            raise ModelError(
                f"target {target!r} fits no linear layer; there are {', '.join(known)}"
            )
    return [name for name in linears if any(_fits(name, t) for t in training.targets)]


def _fits(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def new_adapter(
    model: LoadedModel, training: Training, generator: torch.Generator
) -> AdapterWeights:
    """A fresh adapter: A uniform in ±1/√I as in PEFT, B zero; it changes nothing yet."""
    a, b = {}, {}
    for name in target_layers(model, training):
        outputs, inputs = linear_shape(model.model.get_submodule(name))
        draw = torch.rand(training.rank, inputs, generator=generator)
        a[name] = (2 * draw - 1) / inputs**0.5
        b[name] = torch.zeros(outputs, training.rank)
    return AdapterWeights(a, b, training.scaling)


def linear_shape(layer: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer of either kind."""
    if isinstance(layer, nn.Linear):  # quantized weights are packed: their shape says nothing
        return layer.out_features, layer.in_features
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1], weight.shape[0]


def alike(adapters: Sequence[AdapterWeights | None]) -> list[AdapterWeights]:
    """Adapters with the same layers and the same rank: those of all, filled up with zeros.

    None stands for an adapter that changes nothing.
    """
    shapes: dict[str, tuple[int, int]] = {}
    real = [weights for weights in adapters if weights is not None]
    for weights in real:
        shapes |= {n: (weights.b[n].shape[0], a.shape[1]) for n, a in weights.a.items()}
    rank = max((a.shape[0] for w in real for a in w.a.values()), default=1)

    def filled(weights: AdapterWeights | None) -> AdapterWeights:
        a = {n: torch.zeros(rank, inputs) for n, (_, inputs) in shapes.items()}
        b = {n: torch.zeros(outputs, rank) for n, (outputs, _) in shapes.items()}
        for name, given in weights.a.items() if weights else ():
            a[name][: given.shape[0]] = given
            b[name][:, : given.shape[0]] = weights.b[name] if weights else 0
        return AdapterWeights(a, b, weights.scaling if weights else 0.0)

    return [filled(weights) for weights in adapters]


class BankedLinear(nn.Module):
    """A frozen linear layer with the low-rank updates of N adapters; rows choose theirs."""

    def __init__(self, base: nn.Module, adapters: Sequence[AdapterWeights], name: str) -> None:
        super().__init__()
        self.base = base
        weight = base.weight
        assert isinstance(weight, Tensor)
        device = weight.device
        self.a = nn.Parameter(torch.stack([w.a[name] for w in adapters]).to(device))  # (N, R, I)
        self.b = nn.Parameter(torch.stack([w.b[name] for w in adapters]).to(device))  # (N, O, R)
        self.scaling = torch.tensor([w.scaling for w in adapters], device=device)  # (N,)
        self.routes: Routes | None = None
        self.frozen = frozen_parts(base)

    def forward(self, x: Float[Tensor, "B T I"]) -> Float[Tensor, "B T O"]:
        """The base layer's output plus each row's own update."""
        if self.routes is None:
            y: Tensor = self.base(x)
            return y
        bank = (self.a, self.b, self.scaling, self.routes.of(x))
        if self.frozen:
            return update(x.flatten(0, -2), *bank, *self.frozen).view(*x.shape[:-1], -1)
        added = update(x.flatten(0, -2), *bank, None, None).view(*x.shape[:-1], -1)
        y = self.base(x)
        return y + added.to(y.dtype)


class Routes:
    """The adapter of every sequence of a batch.

    Args:
        adapters: one for each sequence; neighbours with the same one may share a row.
    """

    def __init__(self, adapters: Sequence[int]) -> None:
        self.adapters = tuple(adapters)
        self.merged = tuple(adapter for adapter, _ in groupby(adapters))
        self._known: dict[tuple[int, int], Routing] = {}

    def of(self, x: Float[Tensor, "B T I"]) -> Routing:
        """The adapter of every token of a batch."""
        rows, tokens = x.shape[0], x.shape[1:-1].numel()
        if (rows, tokens) not in self._known:
            known = {len(self.merged): self.merged, len(self.adapters): self.adapters}
            if rows not in known:
                raise ValueError(f"{len(self.adapters)} sequences routed, not a batch of {rows}")
            self._known[rows, tokens] = Routing.of(known[rows], [tokens] * rows)
        return self._known[rows, tokens]


class LoraBank:
    """N adapters installed in one base; leaves the base as it was on `remove`.

    Args:
        adapters: with the same target layers and the same rank.
    """

    def __init__(self, model: LoadedModel, adapters: Sequence[AdapterWeights]) -> None:
        if not adapters:
            raise ValueError("a bank holds at least one adapter")
        if len({tuple(w.a) for w in adapters}) > 1 or len({w.rank for w in adapters}) > 1:
            raise ValueError("the adapters of a bank have the same targets and the same rank")
        self.model = model
        self.size = len(adapters)
        self.layers: dict[str, BankedLinear] = {}
        for name in adapters[0].a:
            layer = model.model.get_submodule(name)
            if not is_linear(layer):
                raise ModelError(f"{name} is not a free linear layer; is a bank already installed?")
            self.layers[name] = BankedLinear(layer, adapters, name)
        for name, banked in self.layers.items():
            model.model.set_submodule(name, banked)

    def remove(self) -> None:
        """Put the base's own layers back."""
        for name, banked in self.layers.items():
            self.model.model.set_submodule(name, banked.base)

    @contextmanager
    def rows(self, indices: Sequence[int] | Int[Tensor, " B"]) -> Iterator[None]:
        """Within, sequence i of a batch goes through adapter indices[i]."""
        try:
            self.route(indices)
            yield
        finally:
            self.route(None)

    def route(self, indices: Sequence[int] | Int[Tensor, " B"] | None) -> None:
        """Send sequence i of the next batches through adapter indices[i]; None: the bare base."""
        listed = indices.tolist() if isinstance(indices, Tensor) else indices
        routes = None if listed is None else Routes(listed)
        for layer in self.layers.values():
            layer.routes = routes

    def parameters(self) -> list[nn.Parameter]:
        """The stacked A and B of all layers."""
        return [p for layer in self.layers.values() for p in (layer.a, layer.b)]

    def adapter(self, index: int) -> AdapterWeights:
        """A copy of one adapter's weights."""
        return AdapterWeights(
            {name: layer.a.detach()[index].cpu().clone() for name, layer in self.layers.items()},
            {name: layer.b.detach()[index].cpu().clone() for name, layer in self.layers.items()},
            float(next(iter(self.layers.values())).scaling[index]),
        )
