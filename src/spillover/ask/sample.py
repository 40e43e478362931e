"""Sampling: batched, each prompt computed once for all its answers, noise keyed by what is asked.

The uniform numbers that an answer is drawn with depend on the respondent, the prompt and the
answer's index only, so an answer does not depend on what else is in the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

# Shape legend: P prompts, B answers in the batch, T prompt tokens, V vocabulary.

Route = Callable[[Int[Tensor, " B"]], None]
"""Told, before each forward pass, which prompt every row of the batch answers."""


def keyed_noise(identity: str, prompt: str, index: int, count: int) -> NDArray[np.float64]:
    """`count` uniform numbers that belong to one answer."""
    key = hashlib.sha256(f"{identity}\0{prompt}\0{index}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big"))).random(count)


def pick(
    logits: Float[Tensor, "B V"], temperature: float, noise: Float[Tensor, " B"]
) -> Int[Tensor, " B"]:
    """The next token of every row: the best one at temperature 0, else by inverse transform."""
    if temperature == 0:
        return logits.argmax(-1)
    mass = (logits.cpu().double() / temperature).softmax(-1).cumsum(-1)  # not all devices have it
    target = noise[:, None] * mass[:, -1:]
    token = torch.searchsorted(mass, target, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    return token.to(logits.device)


@dataclass
class _State:
    """Answers under way. Rows that have ended leave the batch."""

    rows: Int[Tensor, " B"]
    mask: Int[Tensor, "B T"]
    tokens: list[list[int]] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    owners: Sequence[int],
    noise: NDArray[np.float64],
    *,
    temperature: float,
    stop: frozenset[int],
    pad: int,
    route: Route,
) -> tuple[list[list[int]], list[bool]]:
    """Continue prompts.

    Args:
        owners: the prompt that each answer continues.
        noise: uniform numbers of shape (answers, most tokens).
        stop: tokens that end an answer; they are not part of it.
        route: see `Route`.

    Returns:
        the tokens of every answer, and whether it ended by itself.
    """
    from transformers import DynamicCache

    device = next(model.parameters()).device
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    answers, ends = [[] for _ in owners], [False] * len(owners)  # type: list[list[int]], list[bool]
    cache = DynamicCache()
    route(torch.arange(len(prompts), device=device))
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    logits = model(
        input_ids=ids,
        attention_mask=real,
        position_ids=positions,
        past_key_values=cache,
        logits_to_keep=1,
    ).logits[:, -1]
    owner = torch.tensor(owners, device=device)
    cache.batch_select_indices(owner)
    logits, real, last = logits[owner], real[owner], positions[owner, -1]
    live = list(range(len(owners)))
    uniform = torch.from_numpy(noise)
    for step in range(noise.shape[1]):
        token = pick(logits.float(), temperature, uniform[live, step])
        for row, value in zip(live, token.tolist(), strict=True):
            if value in stop:
                ends[row] = True
            else:
                answers[row].append(value)
        keep = [at for at, row in enumerate(live) if not ends[row]]
        if not keep or step + 1 == noise.shape[1]:
            break
        if len(keep) < len(live):
            index = torch.tensor(keep, device=device)
            cache.batch_select_indices(index)
            live = [live[at] for at in keep]
            token, real, last, owner = token[index], real[index], last[index], owner[index]
        last = last + 1
        real = torch.cat([real, torch.ones_like(real[:, :1])], dim=1)
        route(owner)
        logits = model(
            input_ids=token[:, None],
            attention_mask=real,
            position_ids=last[:, None],
            past_key_values=cache,
        ).logits[:, -1]
    return answers, ends
