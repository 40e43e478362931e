"""Frozen float32 linear layers on a CPU, by oneDNN.

PyTorch multiplies float32 matrices with MKL, which falls back to older instructions on processors
that are not Intel's. On an AMD EPYC with AVX-512, oneDNN's product is about twice as fast
(benchmarks/linear.py) and as exact; weights that train keep PyTorch's own path.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def available() -> bool:
    """Whether this build of PyTorch has oneDNN's linear product."""
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class _Frozen(torch.autograd.Function):
    """x Wᵀ + b with a gradient for x only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(grads[0].contiguous(), weight.t().contiguous(), None), None, None


class FrozenLinear(nn.Linear):
    """A linear layer that computes with oneDNN for as long as its weights are frozen."""

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`."""
        if self.weight.requires_grad or self.weight.dtype != torch.float32 or x.numel() == 0:
            return super().forward(x)
        product: Any = _Frozen.apply if torch.is_grad_enabled() else _product
        out: Tensor = product(x, self.weight, self.bias)
        return out


def quicken(model: nn.Module) -> None:
    """Let the frozen float32 linear layers of a model on the CPU compute with oneDNN."""
    if not available():
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32:
            module.__class__ = FrozenLinear
