"""The trained numbers of a bank as one row per adapter, and AdamW over these rows.

A bank stacks the adapters of a layer in one parameter of shape (N, …). Here all layers together are
laid out as a matrix (N, P) that the parameters are views of. Each adapter is then a single vector
for PyTorch's own AdamW, with a rate and a step count of its own: some 10 calls per adapter and step
instead of as many per layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spillover.errors import RunError
from spillover.finetune.spec import Training

# Shape legend: N adapters, P numbers of an adapter.

PARTS = ("values", "first", "second")
"""What a snapshot keeps: the weights and both moments of AdamW."""


class Stack:
    """N adapters as rows, their gradients and moments alike.

    Args:
        parameters: of shape (N, …); they become views of the rows.
        settings: of each adapter.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], settings: Sequence[Training]) -> None:
        devices = dict.fromkeys(parameter.device for parameter in parameters)
        self.slabs = [
            _Slab([p for p in parameters if p.device == device], settings) for device in devices
        ]
        self.norms = [training.max_grad_norm for training in settings]

    def clip(self) -> None:
        """Take the parameters' gradients and clip each adapter's to its own norm."""
        for slab in self.slabs:
            slab.collect()
        first = self.slabs[0].grads.device
        squares = [slab.grads.square().sum(1).to(first) for slab in self.slabs]
        norm = torch.stack(squares).sum(0).sqrt()  # (N,)
        factor = (norm.new_tensor(self.norms) / (norm + 1e-6)).clamp(max=1.0)
        for slab in self.slabs:
            slab.grads.mul_(factor.to(slab.grads.device)[:, None])

    def step(self, rates: Sequence[float]) -> None:
        """One step of AdamW for every adapter at its own rate."""
        for slab in self.slabs:
            for group, rate in zip(slab.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            slab.optimizer.step()

    def state(self) -> dict[str, Float[Tensor, "N P"]]:
        """The rows with their moments; not copies."""
        return {
            f"{part}-{number}": getattr(slab, part)
            for number, slab in enumerate(self.slabs)
            for part in PARTS
        }

    def restore(self, state: dict[str, Float[Tensor, "N P"]], step: int) -> None:
        """Go on from a state after that many steps.

        Raises:
            RunError: when it does not fit, as where layers lay on other devices.
        """
        own = self.state()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in state.items()}:
            raise RunError(
                "the snapshot of this training was made on other devices; remove the folder "
                "`unfinished` beside the adapters to start it again"
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])
        for slab in self.slabs:
            for count in slab.steps:
                count.fill_(step)


class _Slab:
    """The part of a stack that lies on one device."""

    def __init__(self, parameters: Sequence[nn.Parameter], settings: Sequence[Training]) -> None:
        self.values = torch.cat([p.detach().flatten(1) for p in parameters], 1)  # (N, P)
        self.grads, self.first, self.second = (torch.zeros_like(self.values) for _ in range(3))
        self.parameters = list(parameters)
        self.places: list[Tensor] = []  # of each parameter's gradient, in its shape
        at = 0
        for parameter in parameters:
            shape = parameter.shape[1:]
            columns = slice(at, at := at + shape.numel())
            parameter.data = self.values[:, columns].view(-1, *shape)
            self.places.append(self.grads[:, columns].view(-1, *shape))
        self.steps = [torch.zeros((), device=self.values.device) for _ in settings]
        self.optimizer = self._optimizer(settings)

    def collect(self) -> None:
        """Move the parameters' gradients into the rows; those that have none get zeros."""
        found = [(place, p.grad) for place, p in zip(self.places, self.parameters, strict=True)]
        given = [(place, grad) for place, grad in found if grad is not None]
        for place, grad in found:
            if grad is None:
                place.zero_()
        torch._foreach_copy_([place for place, _ in given], [grad for _, grad in given])
        for parameter in self.parameters:
            parameter.grad = None

    def _optimizer(self, settings: Sequence[Training]) -> torch.optim.Optimizer:
        """PyTorch's AdamW with a group per adapter, on the moments that lie here."""
        rows = [nn.Parameter(row) for row in self.values.unbind()]
        groups = [
            {"params": [row], "lr": training.learning_rate, "weight_decay": training.weight_decay}
            for row, training in zip(rows, settings, strict=True)
        ]
        fused = self.values.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(groups, fused=fused)
        for number, row in enumerate(rows):
            row.grad = self.grads[number]
            moments = {"exp_avg": self.first[number], "exp_avg_sq": self.second[number]}
            optimizer.state[row] = {"step": self.steps[number], **moments}
        return optimizer
