"""Answers that share their prompts: each prompt is computed once, all its answers attend to it.

A step appends one token to every answer under way. Keys and values of a prompt lie once in memory;
those of an answer in a slot of its own. Slots of answers that have ended are taken by answers that
wait, or given up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spillover.attention import attending, causal, dummy_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Shape legend: P prompts, T prompt tokens, B answers under way, S tokens of an answer, H heads,
# K key heads, G heads per key head, D head size, V vocabulary.


@dataclass
class _Layer:
    """What one layer remembers: of prompts (P, K, T, D), of answers (B, K, S, D)."""

    prompt_keys: Tensor
    prompt_values: Tensor
    keys: Tensor
    values: Tensor


class SharedPrompts:
    """The prompts of a batch and the answers to them, for models that are prepared.

    Args:
        prompts: token ids of each.
        pad: any token id.
        longest: the most tokens of an answer.
    """

    refills = True

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int, longest: int
    ) -> None:
        self.model, self.pad, self.longest = model, pad, longest
        embedding: Any = model.get_input_embeddings()
        self.device = embedding.weight.device
        self.lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        width = int(self.lengths.max())
        filled = [list(p) + [pad] * (width - len(p)) for p in prompts]
        self.ids = torch.tensor(filled, device=self.device)
        self.hidden = torch.arange(width, device=self.device) >= self.lengths[:, None]  # (P, T)
        self.layers: list[_Layer] = []
        self.at = 0  # the layer that is attending
        self.owner = torch.zeros(0, dtype=torch.long, device=self.device)  # (B,) prompt of a row
        self.size = torch.zeros(0, dtype=torch.long, device=self.device)  # (B,) tokens of a row
        self.reach = 0

    def prefill(self) -> Float[Tensor, "P V"]:
        """Compute the prompts; the logits of what follows them."""
        positions = torch.arange(self.ids.shape[1], device=self.device).expand_as(self.ids)
        last = torch.arange(len(self.ids), device=self.device) * self.ids.shape[1]
        return self._forward(self.ids, positions, self._read_prompts, last + self.lengths - 1)

    def select(self, rows: Sequence[int], fresh: Sequence[int]) -> list[int]:
        """Keep some answers under way, and begin others.

        Args:
            rows: of the batch, to keep.
            fresh: the prompts that new answers continue.

        Returns:
            for every row of the new batch, ordered by prompt, where it stood in `rows` + `fresh`.
        """
        owners = [*self.owner[list(rows)].tolist(), *fresh]
        order = sorted(range(len(owners)), key=lambda at: owners[at])
        came = torch.tensor([rows[at] if at < len(rows) else -1 for at in order])
        came = came.to(self.device)
        old = came.clamp(min=0)
        for layer in self.layers:
            layer.keys = self._taken(layer.keys, layer.prompt_keys, old)
            layer.values = self._taken(layer.values, layer.prompt_values, old)
        sizes = self.size[old] if len(self.size) else torch.zeros_like(old)
        self.size = torch.where(came < 0, 0, sizes)
        self.owner = torch.tensor([owners[at] for at in order], device=self.device)
        self._spread()
        return order

    def step(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Append a token to every answer; the logits of what follows it."""
        positions = (self.lengths[self.owner] + self.size)[:, None]
        self.reach = int(self.size.max()) + 1
        rows = torch.arange(len(tokens), device=self.device)
        logits = self._forward(tokens[:, None], positions, self._read_answers, rows)
        self.size = (self.size + 1).clamp(max=self.longest - 1)  # ended answers stay within
        return logits

    def _taken(self, kept: Tensor, prompt: Tensor, rows: Tensor) -> Tensor:
        if len(kept):
            return kept.index_select(0, rows)
        shape = (len(rows), prompt.shape[1], self.longest, prompt.shape[3])
        return prompt.new_zeros(shape)

    def _spread(self) -> None:
        """Places of the rows where every prompt has as many: (P, most) rows, padded."""
        counts = torch.bincount(self.owner, minlength=len(self.ids))
        most, before = int(counts.max()), counts.cumsum(0) - counts
        rank = torch.arange(len(self.owner), device=self.device) - before[self.owner]
        self.place = self.owner * most + rank  # (B,)
        self.rows = torch.zeros(len(counts) * most, dtype=torch.long, device=self.device)
        self.rows[self.place] = torch.arange(len(self.owner), device=self.device)

    def _forward(self, ids: Tensor, positions: Tensor, strategy: Any, read: Tensor) -> Tensor:
        def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            states = inputs[0].flatten(0, 1)
            return (states.index_select(0, read.to(states.device))[None], *inputs[1:])

        self.at = 0
        head: Any = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        hook = head.register_forward_pre_hook(gather)
        try:
            with attending(strategy):
                out: Tensor = self.model(
                    input_ids=ids,
                    position_ids=positions,
                    attention_mask=dummy_mask(self.model),
                    use_cache=False,
                ).logits[0]
        finally:
            hook.remove()
        return out.to(self.device)

    def _read_prompts(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        # many small products are slow in short numbers on a CPU
        wide = torch.float32 if key.device.type == "cpu" else key.dtype
        empty = key.new_zeros(0)
        self.layers.append(_Layer(key.to(wide), value.to(wide), empty, empty))
        q, k, v = (t.to(wide).transpose(1, 2) for t in (query, key, value))
        return causal(q, k, v, scale).to(query.dtype)

    def _read_answers(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        layer, rows = self.layers[self.at], torch.arange(len(key), device=key.device)
        self.at += 1
        size, place, slots, hidden = (
            t.to(key.device) for t in (self.size, self.place, self.rows, self.hidden)
        )
        layer.keys[rows, :, size] = key[:, :, 0].to(layer.keys.dtype)
        layer.values[rows, :, size] = value[:, :, 0].to(layer.values.dtype)
        kinds, groups = key.shape[1], query.shape[1] // key.shape[1]
        asked = (query[:, :, 0].to(layer.keys.dtype) * scale).view(len(rows), kinds, groups, -1)
        spread = asked[slots].view(len(hidden), -1, kinds, groups, asked.shape[-1])
        spread = spread.transpose(1, 2).flatten(2, 3)  # (P, K, rows G, D)
        far = spread @ layer.prompt_keys.mT  # (P, K, rows G, T)
        far = far.masked_fill(hidden[:, None, None], -torch.inf)
        far = _by_row(far, groups)[place]  # (B, K, G, T)
        near = asked @ layer.keys[:, :, : self.reach].mT  # (B, K, G, S)
        later = torch.arange(self.reach, device=key.device) > size[:, None]
        near = near.masked_fill(later[:, None, None], -torch.inf)
        seen = torch.cat([far, near], -1).softmax(-1, dtype=torch.float32).to(asked.dtype)
        far, near = seen[..., : far.shape[-1]], seen[..., far.shape[-1] :]
        out = near @ layer.values[:, :, : self.reach]
        spread = far[slots].view(len(hidden), -1, *far.shape[1:]).transpose(1, 2).flatten(2, 3)
        out = out + _by_row(spread @ layer.prompt_values, groups)[place]
        return out.flatten(1, 2)[:, None].to(query.dtype)  # (B, 1, H, D)


def _by_row(x: Float[Tensor, "P K M D"], groups: int) -> Float[Tensor, "B K G D"]:
    """From prompts with all their rows to rows."""
    prompts, kinds, _, last = x.shape
    return x.reshape(prompts, kinds, -1, groups, last).transpose(1, 2).flatten(0, 1)
