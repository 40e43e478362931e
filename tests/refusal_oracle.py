"""The selection of arXiv 2406.11717 read literally: plain hooks, full passes for every candidate.

For models of the Llama architecture, in the numbers that they are loaded in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spillover import LoadedModel

BATCH = 32


@dataclass(frozen=True)
class Scores:
    """What the paper computes of one candidate."""

    position: int
    layer: int
    bypass: float
    induce: float
    kl: float


class Oracle:
    """A model with its prompts, padded to the left."""

    def __init__(self, model: LoadedModel, tokens: Sequence[int]) -> None:
        self.net: Any = model.model
        self.chat, self.pad, self.tokens = model.chat, model.pad, list(tokens)
        self.blocks = list(self.net.model.layers)

    def padded(self, prompts: Sequence[Any]) -> dict[str, Tensor]:
        rows = [self.chat.prompt_ids(prompt) for prompt in prompts]
        width = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (width - len(row)) + row for row in rows])
        real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        positions = (real.cumsum(-1) - 1).clamp(min=0)
        made = {"input_ids": ids, "attention_mask": real, "position_ids": positions}
        return {key: value.to(self.net.device) for key, value in made.items()}

    @torch.no_grad()
    def mean_activations(self, prompts: Sequence[Any], positions: Sequence[int]) -> Tensor:
        size = (len(positions), len(self.blocks), self.net.config.hidden_size)
        total = torch.zeros(size, dtype=torch.float64, device=self.net.device)

        def keep(layer: int) -> Callable[..., None]:
            def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
                total[:, layer] += given[0][:, list(positions)].double().sum(0)

            return hook

        handles = [b.register_forward_pre_hook(keep(k)) for k, b in enumerate(self.blocks)]
        for at in range(0, len(prompts), BATCH):
            self.net(**self.padded(prompts[at : at + BATCH]), use_cache=False)
        for handle in handles:
            handle.remove()
        return total / len(prompts)

    def difference(self, positive: Any, negative: Any, positions: Sequence[int]) -> Tensor:
        """(positions, layers, D)."""
        sides = (self.mean_activations(side, positions) for side in (positive, negative))
        return next(sides) - next(sides)

    @torch.no_grad()
    def last_logits(self, prompts: Sequence[Any]) -> Tensor:
        batches = [prompts[at : at + BATCH] for at in range(0, len(prompts), BATCH)]
        return torch.cat(
            [self.net(**self.padded(batch), use_cache=False).logits[:, -1] for batch in batches]
        ).double()

    def refusal_score(self, logits: Tensor) -> float:
        share = logits.softmax(-1)[:, self.tokens].sum(-1)
        return float((share.log() - (1 - share).log()).mean())

    @contextmanager
    def ablated(self, unit: Tensor) -> Iterator[None]:
        def without(x: Tensor) -> Tensor:
            return x - (x @ unit)[..., None] * unit

        def hook(_: nn.Module, _given: Any, output: Any) -> Any:
            return (
                (without(output[0]), *output[1:]) if isinstance(output, tuple) else without(output)
            )

        writers = [self.net.model.embed_tokens]
        writers += [part for block in self.blocks for part in (block.self_attn, block.mlp)]
        handles = [writer.register_forward_hook(hook) for writer in writers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def added(self, layer: int, vector: Tensor) -> Iterator[None]:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> Any:
            return (given[0] + vector, *given[1:])

        handle = self.blocks[layer].register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def baseline(self, negative: Sequence[Any]) -> Tensor:
        return self.last_logits(negative).log_softmax(-1)

    def scores(
        self,
        position: int,
        layer: int,
        vector: Tensor,
        positive: Any,
        negative: Any,
        before: Tensor,
    ) -> Scores:
        """Three full passes.

        Args:
            before: `baseline` of the negative prompts.
        """
        vector = vector.to(self.net.dtype)
        unit = vector / (vector.norm() + 1e-8)
        with self.ablated(unit):
            bypass = self.refusal_score(self.last_logits(positive))
            after = self.last_logits(negative).log_softmax(-1)
        with self.added(layer, vector):
            induce = self.refusal_score(self.last_logits(negative))
        kl = float((before.exp() * (before - after)).sum(-1).mean())
        return Scores(position, layer, bypass, induce, kl)


def is_kept(
    one: Scores, layers: int, *, share: float = 0.8, induce: float = 0.0, kl: float = 0.1
) -> bool:
    """The filters of the paper."""
    return one.layer < share * layers and one.induce > induce and one.kl < kl
