"""Sampling: batched, each prompt computed once for all its answers, noise keyed by what is asked.

The uniform numbers that an answer is drawn with depend on the respondent, the prompt and the
answer's index only, so an answer does not depend on what else is in the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

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


class _Batch:
    """Answers under way: the model's cache, and which answer each row of the batch is."""

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], pad: int) -> None:
        from transformers import DynamicCache

        self.model = model
        self.device = next(model.parameters()).device
        width = max(map(len, prompts))
        self.ids = self._matrix([[pad] * (width - len(p)) + list(p) for p in prompts])
        self.real = self._matrix([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        self.cache = DynamicCache()
        self.last = self.real.sum(-1) - 1  # position of the last token

    def _matrix(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, device=self.device)

    def prefill(self) -> Float[Tensor, "P V"]:
        """Compute the prompts; the logits of what follows them."""
        return self._forward(self.ids, (self.real.cumsum(-1) - 1).clamp(min=0))

    def step(self, token: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Append a token to every row; the logits of what follows it."""
        self.last = self.last + 1
        self.real = torch.cat([self.real, torch.ones_like(self.real[:, :1])], dim=1)
        return self._forward(token[:, None], self.last[:, None])

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        out: Tensor = self.model(
            input_ids=ids,
            attention_mask=self.real,
            position_ids=positions,
            past_key_values=self.cache,
            logits_to_keep=1,
        ).logits
        return out[:, -1].to(self.device)

    def select(self, rows: Sequence[int]) -> None:
        """Make the batch of these rows of it, in this order; a row may be taken several times."""
        self.cache.batch_select_indices(torch.tensor(rows))  # layers may lie on several devices
        index = torch.tensor(rows, device=self.device)
        self.real, self.last = self.real[index], self.last[index]


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
    """Continue prompts. Answers that have ended leave the batch.

    Args:
        owners: the prompt that each answer continues.
        noise: uniform numbers of shape (answers, most tokens).
        stop: tokens that end an answer; they are not part of it.
        route: see `Route`.

    Returns:
        the tokens of every answer, and whether it ended by itself.
    """
    batch, owner = _Batch(model, prompts, pad), list(owners)
    answers, ends = [[] for _ in owners], [False] * len(owners)  # type: list[list[int]], list[bool]
    route(torch.arange(len(prompts), device=batch.device))
    logits = batch.prefill()[torch.tensor(owner, device=batch.device)]
    batch.select(owner)
    live, uniform = list(range(len(owners))), torch.from_numpy(noise)
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
            batch.select(keep)
            live, token = [live[at] for at in keep], token[torch.tensor(keep, device=batch.device)]
        route(torch.tensor([owner[row] for row in live], device=batch.device))
        logits = batch.step(token)
    return answers, ends
