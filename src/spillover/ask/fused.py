"""Answers that share their prompts, in bfloat16 and with PyTorch's fused attention for a CPU.

What answers wait for on a small model is memory: keys and values in bfloat16 are half as long. Many
small products of them are slow (`spillover.ask.decode` takes float32 for that reason), but not the
kernel behind `scaled_dot_product_attention` where the processor has AMX. It also returns the
log-sum-exp of the scores, by which attention to the prompt and to the answer become one.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from spillover.ask.decode import SharedPrompts

KERNEL = "_scaled_dot_product_flash_attention_for_cpu"


@cache
def available() -> bool:
    """Whether this processor multiplies tiles in bfloat16, and PyTorch has the kernel."""
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(tiles()) and hasattr(torch.ops.aten, KERNEL)


class FusedPrompts(SharedPrompts):
    """As `SharedPrompts`, with one block for each layer, of which only what is written is read."""

    kept = torch.bfloat16

    def _slots(self, longest: int) -> tuple[int, int]:
        return longest, 1

    def _look(self) -> None:
        """What this step reads, and what of it each row does not see."""
        self.upto = min(self.block, self.now + 1)
        steps = self.now - torch.arange(self.upto)
        self.older = _hiding(steps % self.block > self.size[:, None])
        self.padding = _hiding(self.beyond[self.within])

    def _read_answers(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        layer, (rows, kinds, _, size) = self.layers[self.at], key.shape
        self.at += 1
        keys, values, slot = layer.keys[0], layer.values[0], self.now % self.block
        keys[:, :, slot] = key[:, :, 0]
        values[:, :, slot] = value[:, :, 0]
        queries = query[:, :, 0].to(self.kept).view(rows, kinds, -1, size)  # (B, K, G, D)
        groups = queries.shape[2]
        near = (keys[:, :, : self.upto], values[:, :, : self.upto])
        said, said_size = attend(queries, *near, self.older, scale)
        far = (layer.prompt_keys[self.within], layer.prompt_values[self.within])
        asked, asked_size = attend(self._by_prompt(queries), *far, self.padding, scale)
        share = (self._by_row(asked_size, groups) - said_size).sigmoid()
        out = torch.lerp(said.to(share.dtype), self._by_row(asked, groups).to(share.dtype), share)
        return out.flatten(1, 2)[:, None].to(query.dtype)  # (B, 1, H, D)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention (R, K, M, D) of M queries to N keys, and log-sum-exps (R, K, M, 1) of the scores.

    Args:
        mask: added to the scores, (R, 1, 1, N).
    """
    kernel = getattr(torch.ops.aten, KERNEL)
    out, size = kernel(query, key, value, attn_mask=mask, scale=scale)
    return out, size[..., None]


def _hiding(hidden: Tensor) -> Tensor | None:
    """(R, N) as what is added to scores; None where nothing is hidden."""
    if not hidden.any():
        return None
    mask = torch.zeros(hidden.shape, dtype=FusedPrompts.kept).masked_fill_(hidden, -torch.inf)
    return mask[:, None, None]
