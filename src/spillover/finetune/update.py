"""The product of a linear layer with a bank of low-rank updates: y = W x + scaling · B A x.

Rows go through different adapters, in runs of neighbours with the same one. Runs of one length are
multiplied in one batched product, others one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spillover import kernels

# Shape legend: M rows (tokens), N adapters, R rank, I inputs, O outputs.


SHORT = 64
"""Mean rows of a run up to which unequal runs are padded and multiplied together."""


@dataclass(frozen=True)
class Routing:
    """Which adapter every row goes through: runs of rows, each with one adapter.

    Attributes:
        adapters: of each run.
        bounds: where each run starts, and the number of rows at the end.
    """

    adapters: tuple[int, ...]
    bounds: tuple[int, ...]
    _spread: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _chosen: dict[tuple[int, torch.device], Any] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(adapters: Sequence[int], lengths: Sequence[int]) -> Routing:
        """Runs from an adapter and a number of rows each; equal neighbours become one run."""
        found: list[int] = []
        bounds = [0]
        for adapter, length in zip(adapters, lengths, strict=True):
            if found and found[-1] == adapter:
                bounds[-1] += length
            else:
                found.append(adapter)
                bounds.append(bounds[-1] + length)
        return Routing(tuple(found), tuple(bounds))

    @property
    def runs(self) -> list[tuple[int, int, int]]:
        """(adapter, start, end) of every run."""
        return list(zip(self.adapters, self.bounds[:-1], self.bounds[1:], strict=True))

    @property
    def once(self) -> bool:
        """Whether no adapter has two runs."""
        return len(set(self.adapters)) == len(self.adapters)

    @cached_property
    def length(self) -> int:
        """The length of all runs where it is the same, else 0."""
        lengths = {end - start for _, start, end in self.runs}
        return lengths.pop() if len(lengths) == 1 else 0

    def chosen(self, a: Float[Tensor, "N R I"]) -> Any:
        """An index of the adapters of all runs, among those of a bank."""
        key = (len(a), a.device)
        if key not in self._chosen:
            first = self.adapters[0]
            following = slice(first, first + len(self.adapters))
            ordered = self.adapters == tuple(range(len(a))[following])
            listed = following if ordered else torch.tensor(self.adapters, device=a.device)
            self._chosen[key] = listed
        return self._chosen[key]

    def spread(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows of the runs padded to the longest, and where each row stands among them."""
        if device not in self._spread:
            longest = max(end - start for _, start, end in self.runs)
            rows = torch.zeros(len(self.adapters), longest, dtype=torch.long)
            for number, (_, start, end) in enumerate(self.runs):
                rows[number, : end - start] = torch.arange(start, end)
            place = [
                number * longest + at
                for number, (_, start, end) in enumerate(self.runs)
                for at in range(end - start)
            ]
            self._spread[device] = rows.flatten().to(device), torch.tensor(place, device=device)
        return self._spread[device]


def update(
    x: Float[Tensor, "M I"],
    a: Float[Tensor, "N R I"],
    b: Float[Tensor, "N O R"],
    scaling: Float[Tensor, " N"],
    routing: Routing,
    weight: Float[Tensor, "O I"] | None,
    bias: Float[Tensor, " O"] | None,
) -> Float[Tensor, "M O"]:
    """W x + bias + scaling · B A x; without a weight only the last term, in float32.

    The weight is frozen: there are gradients for x, A and B only.
    """
    if not torch.is_grad_enabled():
        return _product(x, a, b, scaling, routing, weight, bias)[0]
    out: Tensor = _Update.apply(  # type: ignore[no-untyped-call]
        x, a, b, scaling, routing, weight, bias
    )
    return out


class _Update(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        x, a, b, scaling, routing, weight, _ = given
        y, low = _product(*given)
        ctx.save_for_backward(x, a, b, scaling, low, weight)
        ctx.routing = routing
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, scaling, low, weight = ctx.saved_tensors
        g, gx = grads[0].contiguous(), None
        if ctx.needs_input_grad[0]:
            gx = x.new_zeros(x.shape) if weight is None else kernels.product_back(g, weight)
        wide, g_wide = x.to(a.dtype), g.to(a.dtype)
        ga, gb = _backward(wide, g_wide, (a, b, scaling, low), ctx.routing, gx)
        return gx, ga, gb, None, None, None, None


def _product(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: Tensor,
    routing: Routing,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The result of `update`, and the scaled low-rank images of x."""
    if weight is None:
        y = x.new_zeros(len(x), b.shape[1], dtype=a.dtype)
    else:
        y = kernels.product(x, weight, bias)
    return y, _forward(x.to(a.dtype), a, b, scaling, routing, y)


def _forward(
    x: Tensor, a: Tensor, b: Tensor, scaling: Tensor, routing: Routing, y: Tensor
) -> Tensor:
    """Add the update to y; the scaled low-rank images of x, (runs, R, tokens) or (R, M)."""
    length = routing.length
    if length:
        who = routing.chosen(a)
        low = torch.bmm(a[who], _runs(x, length).mT).mul_(scaling[who][:, None, None])
        _add(_runs(y, length), low.mT, b[who].mT)
        return low
    if len(x) <= SHORT * len(routing.adapters) and len(routing.adapters) > 1:
        who, (rows, place) = routing.chosen(a), routing.spread(x.device)
        spread = x.index_select(0, rows).view(len(routing.adapters), -1, x.shape[1])
        wide = torch.bmm(a[who], spread.mT).mul_(scaling[who][:, None, None])
        added = torch.bmm(wide.mT, b[who].mT)
        y.add_(added.flatten(0, 1).index_select(0, place))
        return wide.transpose(0, 1).flatten(1).index_select(1, place)
    low = x.new_empty(a.shape[1], len(x))
    for n, start, end in routing.runs:
        low[:, start:end] = (a[n] @ x[start:end].t()).mul_(scaling[n])
        _add(y[start:end], low[:, start:end].t(), b[n].t())
    return low


Kept = tuple[Tensor, Tensor, Tensor, Tensor]
"""A, B, scaling and the rows' low-rank images."""


def _backward(
    x: Tensor, g: Tensor, kept: Kept, routing: Routing, gx: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients for A and B; the update's share is added to the gradient for x.

    Products are put so that the few rows of the low rank come first: MKL is several times slower
    where they come last.
    """
    a, b, scaling, low = kept
    length = routing.length
    if length and routing.once:
        who = routing.chosen(a)
        rows_x, rows_g = _runs(x, length), _runs(g, length)
        g_low = torch.bmm(b[who].mT.contiguous(), rows_g.mT).mul_(scaling[who][:, None, None])
        if gx is not None:
            _add(_runs(gx, length), g_low.mT, a[who])
        found = torch.bmm(g_low, rows_x), torch.bmm(low, rows_g).mT
        return _placed(found[0], a, who), _placed(found[1], b, who)
    ga, gb = torch.zeros_like(a), torch.zeros_like(b)
    flat = low if low.dim() == 2 else low.transpose(0, 1).flatten(1)  # (R, M)
    for n, start, end in routing.runs:
        g_low = (b[n].t().contiguous() @ g[start:end].t()).mul_(scaling[n])
        ga[n].addmm_(g_low, x[start:end])
        gb[n].t().addmm_(flat[:, start:end], g[start:end])
        if gx is not None:
            _add(gx[start:end], g_low.t(), a[n])
    return ga, gb


def _placed(found: Tensor, like: Tensor, who: Any) -> Tensor:
    if len(found) == len(like) and isinstance(who, slice):
        return found
    placed = torch.zeros_like(like)
    placed[who] = found
    return placed


def _runs(x: Tensor, length: int) -> Tensor:
    return x.view(-1, length, x.shape[-1])


def _add(y: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product to y in place; in shorter numbers it is rounded once, after the product."""
    if y.dtype != left.dtype:
        y.add_(left @ right)
    elif y.dim() == 3:
        y.baddbmm_(left, right)
    else:
        y.addmm_(left, right)
