"""Forced choice: the probability of whole answers, with the prompt computed once for all of them.

The choices of a question branch from its prompt in one sequence: a token attends to the prompt and
to its own branch only (an additive float mask), at the position it would have if it stood alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

# Shape legend: B prompts of a batch, L tokens of a packed sequence, V vocabulary.


@dataclass(frozen=True)
class Packed:
    """A prompt with its choices as branches.

    Attributes:
        ids, positions: token ids and position ids, length L.
        branch: -1 for the prompt, else the number of the choice, length L.
        reads: for every choice, (where to read the logits, which token to look up) of its tokens.
    """

    ids: list[int]
    positions: list[int]
    branch: list[int]
    reads: list[list[tuple[int, int]]]


def pack(prompt: Sequence[int], choices: Sequence[Sequence[int]]) -> Packed:
    """Lay out a prompt and its choices; the last token of a choice is only looked up."""
    ids, positions, branch = list(prompt), list(range(len(prompt))), [-1] * len(prompt)
    reads: list[list[tuple[int, int]]] = []
    for number, choice in enumerate(choices):
        at = [len(prompt) - 1, *range(len(ids), len(ids) + len(choice) - 1)]
        reads.append(list(zip(at, choice, strict=True)))
        ids += choice[:-1]
        positions += range(len(prompt), len(prompt) + len(choice) - 1)
        branch += [number] * (len(choice) - 1)
    return Packed(ids, positions, branch, reads)


def tree_mask(branch: Int[Tensor, "B L"], dtype: torch.dtype) -> Float[Tensor, "B 1 L L"]:
    """Additive mask: earlier tokens of the prompt and of one's own branch; padding is branch -2."""
    length = branch.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=branch.device).tril()
    key, query = branch[:, None, :], branch[:, :, None]
    seen = causal & ((key == -1) | (key == query))
    mask = torch.zeros(seen.shape, dtype=dtype, device=branch.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


@torch.no_grad()
def score(model: nn.Module, packed: Sequence[Packed], pad: int) -> list[list[float]]:
    """Log-probability of every choice of every packed prompt, in natural logarithms."""
    parameter = next(model.parameters())
    width = max(len(p.ids) for p in packed)
    filled = [
        (
            p.ids + [pad] * (width - len(p.ids)),
            p.positions + [0] * (width - len(p.ids)),
            p.branch + [-2] * (width - len(p.ids)),
        )
        for p in packed
    ]
    ids, positions, branch = (
        torch.tensor(column, device=parameter.device) for column in zip(*filled, strict=True)
    )
    logits = model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=tree_mask(branch, parameter.dtype),
        use_cache=False,
    ).logits
    flat = [
        (row, at, token, number)
        for row, p in enumerate(packed)
        for number, read in enumerate(p.reads)
        for at, token in read
    ]
    rows, at, tokens, _ = (torch.tensor(c, device=logits.device) for c in zip(*flat, strict=True))
    picked = logits[rows, at].float().log_softmax(-1).gather(1, tokens[:, None])[:, 0].double()
    scores = [[0.0] * len(p.reads) for p in packed]
    for (row, _, _, number), value in zip(flat, picked.tolist(), strict=True):
        scores[row][number] += value
    return scores
