"""Answers that share their prompts: each prompt is computed once, all its answers attend to it.

A step appends one token to every answer under way. Keys and values of a prompt lie once in memory.
Those of answers lie in blocks that all answers write to at the same place, round and round: a step
is one plain copy, products read whole blocks, and what is older than an answer is hidden from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spillover.attention import attending, causal, dummy_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Shape legend: P prompts, T prompt tokens, B answers under way, W slots of a block, H heads,
# K key heads, G heads per key head, D head size, V vocabulary.


BLOCK, BLOCKS = 16, 8
"""On a CPU: the fewest slots of a block, and the most blocks."""


@dataclass
class _Layer:
    """What one layer remembers: of prompts (P, K, T, D), of answers in blocks of (B, K, W, D)."""

    prompt_keys: Tensor
    prompt_values: Tensor
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


def block_sizes(longest: int, device: torch.device) -> tuple[int, int]:
    """Slots of a block and the number of blocks for answers of so many tokens."""
    if device.type != "cpu":  # each product costs a launch there
        return longest, 1
    block = max(BLOCK, -(-longest // BLOCKS))
    return block, -(-longest // block)


class SharedPrompts:
    """The prompts of a batch and the answers to them, for models that are prepared.

    Args:
        prompts: token ids of each.
        pad: any token id.
        longest: the most tokens of an answer.
    """

    refills = True
    kept: torch.dtype | None = None
    """The numbers of keys and values; None: float32 on a CPU, elsewhere as they come."""

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
        self.beyond = torch.arange(width, device=self.device) >= self.lengths[:, None]  # (P, T)
        self.layers: list[_Layer] = []
        self.at = 0  # the layer that is attending
        self.owner = torch.zeros(0, dtype=torch.long, device=self.device)  # (B,) prompt of a row
        self.size = torch.zeros(0, dtype=torch.long, device=self.device)  # (B,) tokens of a row
        self.block, self.blocks = self._slots(longest)
        self.now = 0  # steps since the blocks were empty

    def _slots(self, longest: int) -> tuple[int, int]:
        """Slots of a block, and the number of blocks."""
        return block_sizes(longest, self.device)

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
        for layer in self.layers:
            layer.keys = self._taken(layer.keys, layer.prompt_keys, came, keep=bool(rows))
            layer.values = self._taken(layer.values, layer.prompt_values, came, keep=bool(rows))
        self.now = self.now if rows else 0
        sizes = self.size[came.clamp(min=0)] if rows else torch.zeros_like(came)
        self.size = torch.where(came < 0, 0, sizes)
        self.owner = torch.tensor([owners[at] for at in order], device=self.device)
        self._spread()
        return order

    def step(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Append a token to every answer; the logits of what follows it."""
        positions = (self.lengths[self.owner] + self.size)[:, None]
        self._look()
        rows = torch.arange(len(tokens), device=self.device)
        logits = self._forward(tokens[:, None], positions, self._read_answers, rows)
        self.size = (self.size + 1).clamp(max=self.longest - 1)  # ended answers stay within
        self.now += 1
        return logits

    def _taken(
        self, blocks: list[Tensor], prompt: Tensor, came: Tensor, *, keep: bool
    ) -> list[Tensor]:
        """Blocks of the rows that are kept, and zeros for fresh ones: what is hidden is finite."""
        if keep:
            came = came.to(prompt.device)
            fresh = (came < 0).nonzero()[:, 0]
            chosen = (block.index_select(0, came.clamp(min=0)) for block in blocks)
            return [block.index_fill_(0, fresh, 0) for block in chosen]
        if blocks and len(blocks[0]) == len(came):
            return [block.zero_() for block in blocks]
        shape = (len(came), prompt.shape[1], self.block, prompt.shape[3])
        return [_zeros(shape, prompt) for _ in range(self.blocks)]

    def _spread(self) -> None:
        """Places of the rows where every prompt has as many: (P, most) rows, padded.

        Prompts before the first and behind the last that has answers under way are left out.
        """
        first, last = int(self.owner.min()), int(self.owner.max())
        self.within = slice(first, last + 1)
        owner = self.owner - first
        counts = torch.bincount(owner)
        self.most, before = int(counts.max()), counts.cumsum(0) - counts
        self.even = self.most * len(counts) == len(owner)
        rank = torch.arange(len(owner), device=self.device) - before[owner]
        self.place = owner * self.most + rank  # (B,)
        self.rows = torch.zeros(len(counts) * self.most, dtype=torch.long, device=self.device)
        self.rows[self.place] = torch.arange(len(owner), device=self.device)

    def _look(self) -> None:
        """Which blocks this step reads, and what of prompts and blocks each row does not see."""
        slots, longest = self.block * self.blocks, int(self.size.max())
        writes = self.now % slots
        newest = [(number + 1) * self.block - 1 for number in range(self.blocks)]
        self.used = [
            number
            for number, last in enumerate(newest)
            if number == writes // self.block or (self.now - last) % slots <= longest
        ]
        within = torch.arange(self.block, device=self.device)
        listed = torch.cat([within + number * self.block for number in self.used])
        older = (self.now - listed) % slots > self.size[:, None]
        hidden = torch.cat([self.beyond[self.owner], older], 1)[:, None, None]
        self.mask = torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf)

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
        kept = self.kept or wide
        self.layers.append(_Layer(key.to(kept).contiguous(), value.to(kept).contiguous()))
        q, k, v = (t.to(wide).transpose(1, 2) for t in (query, key, value))
        return causal(q, k, v, scale).to(query.dtype)

    def _read_answers(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        layer, (rows, kinds, _, size) = self.layers[self.at], key.shape
        prompt_keys = layer.prompt_keys[self.within]
        prompt_values = layer.prompt_values[self.within]
        self.at += 1
        block, slot = divmod(self.now % (self.block * self.blocks), self.block)
        layer.keys[block][:, :, slot] = key[:, :, 0]
        layer.values[block][:, :, slot] = value[:, :, 0]
        queries = query[:, :, 0].to(prompt_keys.dtype) * scale
        queries = queries.view(rows, kinds, -1, size)  # (B, K, G, D)
        far = self._by_row(self._by_prompt(queries) @ prompt_keys.mT, queries.shape[2])
        near = [queries @ layer.keys[number].mT for number in self.used]
        scores = torch.cat([far, *near], -1)  # (B, K, G, T + blocks W)
        scores += self.mask.to(key.device)
        seen = scores.softmax(-1, dtype=torch.float32).to(queries.dtype)
        far, *near = torch.split(seen, [far.shape[-1], *[self.block] * len(near)], -1)
        out = self._by_row(self._by_prompt(far) @ prompt_values, queries.shape[2])
        for number, weights in zip(self.used, near, strict=True):
            out = out + weights @ layer.values[number]
        return out.flatten(1, 2)[:, None].to(query.dtype)  # (B, 1, H, D)

    def _by_prompt(self, x: Float[Tensor, "B K G N"]) -> Float[Tensor, "P K M N"]:
        """From rows to prompts with all their rows, the last ones padded."""
        rows = x if self.even else x[self.rows.to(x.device)]
        return rows.view(-1, self.most, *x.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _by_row(self, x: Float[Tensor, "P K M N"], groups: int) -> Float[Tensor, "B K G N"]:
        """From prompts with all their rows to rows."""
        prompts, kinds, _, last = x.shape
        rows = x.view(prompts, kinds, -1, groups, last).transpose(1, 2).flatten(0, 1)
        return rows if self.even else rows[self.place.to(x.device)]


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros on the device of a tensor, as it counts; NumPy asks for large pages of memory."""
    if like.device.type != "cpu" or like.dtype not in (torch.float32, torch.bfloat16):
        return like.new_zeros(shape)
    bits = np.int32 if like.dtype == torch.float32 else np.int16
    return torch.from_numpy(np.zeros(shape, bits)).view(like.dtype)
