"""Forced choice: the probability of whole answers; the prompt is computed once for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from spillover.trees import Tree, all_reads, token_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def score(
    model: PreTrainedModel,
    trees: Sequence[Tree],
    pad: int,
    owners: Sequence[int] | None = None,
) -> list[list[float]]:
    """Log-probability of every choice of every prompt, in natural logarithms.

    Args:
        model: a causal language model.
        trees: a prompt each, with its choices as branches (end-of-turn included).
        pad: any token id.
        owners: the adapter of each prompt; those with the same one follow each other.
    """
    reads = all_reads(trees, next(model.parameters()).device)
    losses = token_losses(model, trees, reads, pad, owners)
    scores = [[0.0] * len(tree.reads) for tree in trees]
    columns = (reads.tree.tolist(), reads.branch.tolist(), losses.cpu().double().tolist())
    for tree, branch, loss in zip(*columns, strict=True):
        scores[tree][branch] -= loss
    return scores
