"""Products with frozen weights: oneDNN's for float32 where MKL is slow, else PyTorch's own.

PyTorch multiplies float32 matrices with MKL, which falls back to older instructions on some
processors that are not Intel's. On an AMD EPYC with AVX-512, oneDNN's product is faster
(benchmarks/linear.py) and as exact; on an Intel Xeon it is slower. Weights that train keep
PyTorch's own path.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CPUINFO = Path("/proc/cpuinfo")
INTEL = "GenuineIntel"


def available() -> bool:
    """Whether this build of PyTorch has oneDNN's linear product."""
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def pays() -> bool:
    """Whether this processor is one on which oneDNN's product is faster than MKL's."""
    try:
        return available() and INTEL not in CPUINFO.read_text("utf-8")
    except (OSError, ValueError):
        return available() and INTEL not in platform.processor()


def _quick(x: Tensor) -> bool:
    usual = x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0
    return usual and pays()


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product x Wᵀ + b, in the numbers of x; weights in shorter ones are multiplied in them."""
    if weight.dtype != x.dtype:
        return nn.functional.linear(x.to(weight.dtype), weight, bias).to(x.dtype)
    if not _quick(x):
        return nn.functional.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def product_back(g: Tensor, weight: Tensor) -> Tensor:
    """The gradient for x of `product`: g W."""
    if weight.dtype != g.dtype:
        return (g.to(weight.dtype) @ weight).to(g.dtype)
    return product(g.contiguous(), weight.t().contiguous(), None) if _quick(g) else g @ weight


class _Frozen(torch.autograd.Function):
    """x Wᵀ + b with a gradient for x only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return product_back(grads[0], weight), None, None


class FrozenLinear(nn.Linear):
    """A linear layer that computes with oneDNN for as long as its weights are frozen.

    Attributes:
        short: the weight in shorter numbers, used instead where it is set.
    """

    short: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`."""
        if self.weight.requires_grad or self.weight.dtype != torch.float32 or x.numel() == 0:
            return super().forward(x)
        apply: Any = _Frozen.apply if torch.is_grad_enabled() else product
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if self.short is not None:
            weight, bias = self.short, bias if bias is None else bias.to(self.short.dtype)
        out: Tensor = apply(x, weight, bias)
        return out


def quicken(model: nn.Module) -> None:
    """Let the frozen float32 linear layers of a model multiply as `product` does."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32:
            module.__class__ = FrozenLinear


@contextmanager
def shortened(module: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Within, quickened layers multiply in these numbers; None means in their own."""
    layers = [layer for layer in module.modules() if isinstance(layer, FrozenLinear)]
    before = [layer.short for layer in layers]
    try:
        for layer in layers:
            layer.short = layer.weight.detach().to(dtype) if dtype else None
        yield
    finally:
        for layer, short in zip(layers, before, strict=True):
            layer.short = short


KEPT = 31 * 2**20
"""Bytes: just below what the C library ever keeps of one piece."""


def keep_memory() -> None:
    """Let freed memory serve the next tensors instead of going back to the system.

    glibc fetches pieces above a size from the system, zeroed page by page, each time anew; freeing
    a piece raises that size to its own, for good. Elsewhere this does nothing.
    """
    torch.empty(KEPT, dtype=torch.uint8)  # freed at once


def frozen_parts(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias that a plain frozen linear layer uses; None for layers of other kinds."""
    if type(layer) not in (nn.Linear, FrozenLinear):
        return None
    weight, bias = layer.weight, layer.bias
    if isinstance(layer, FrozenLinear) and layer.short is not None:
        weight, bias = layer.short, bias if bias is None else bias.to(layer.short.dtype)
    usable = isinstance(weight, Tensor) and weight.is_floating_point() and not weight.requires_grad
    return (weight, bias) if usable else None  # type: ignore[return-value]
