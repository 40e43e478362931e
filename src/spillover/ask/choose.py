"""Forced choice: the probability of whole answers, with the prompt computed once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from spillover.trees import Tree, tree_logits


@torch.no_grad()
def score(model: nn.Module, trees: Sequence[Tree], pad: int) -> list[list[float]]:
    """Log-probability of every choice of every prompt, in natural logarithms.

    Args:
        model: a causal language model.
        trees: a prompt each, with its choices as branches (end-of-turn included).
        pad: any token id.
    """
    logits = tree_logits(model, trees, pad)
    flat = [
        (row, at, token, number)
        for row, tree in enumerate(trees)
        for number, read in enumerate(tree.reads)
        for at, token in read
    ]
    rows, at, tokens, _ = (torch.tensor(c, device=logits.device) for c in zip(*flat, strict=True))
    picked = logits[rows, at].float().log_softmax(-1).gather(1, tokens[:, None])[:, 0].double()
    scores = [[0.0] * len(tree.reads) for tree in trees]
    for (row, _, _, number), value in zip(flat, picked.tolist(), strict=True):
        scores[row][number] += value
    return scores
