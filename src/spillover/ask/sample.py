"""Sampling: each prompt computed once for all its answers, noise keyed by what is asked.

The uniform numbers that an answer is drawn with depend on the respondent, the prompt and the
answer's index only: but for rounding, an answer does not depend on what else is in the batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from spillover.ask import fused
from spillover.ask.decode import SharedPrompts
from spillover.ask.fused import FusedPrompts
from spillover.trees import is_packable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Shape legend: P prompts, B answers in the batch, T prompt tokens, V vocabulary.

Route = Callable[[Sequence[int]], None]
"""Told, before each forward pass, which prompt every row of the batch answers."""
BLOCK = 128
"""Tokens of the vocabulary whose probability is added up at once."""
ENDED = 0.2
"""Share of a batch whose answers have ended, from which others take their places."""


def keyed_noise(identity: str, prompt: str, index: int, count: int) -> NDArray[np.float64]:
    """`count` uniform numbers that belong to one answer."""
    key = hashlib.sha256(f"{identity}\0{prompt}\0{index}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big"))).random(count)


def pick(
    logits: Float[Tensor, "B V"], temperature: float, noise: Float[Tensor, " B"]
) -> Int[Tensor, " B"]:
    """The next token of every row: the best one at temperature 0, else by inverse transform.

    The logits are used up.
    """
    if temperature == 0:
        return logits.argmax(-1)
    mass = logits.float()
    mass = mass.sub_(mass.amax(-1, keepdim=True)).mul_(math.log2(math.e) / temperature).exp2_()
    if mass.shape[1] % BLOCK:
        mass = nn.functional.pad(mass, (0, -mass.shape[1] % BLOCK))
    mass = mass.view(len(mass), -1, BLOCK)
    upto = mass.sum(-1).cpu().double().cumsum(-1)  # not all devices have it
    target = noise.cpu().double()[:, None] * upto[:, -1:]
    block = torch.searchsorted(upto, target, right=True).clamp(max=upto.shape[1] - 1)
    before = torch.where(block > 0, upto.gather(1, (block - 1).clamp(min=0)), 0.0)
    rows = torch.arange(len(mass))
    within = mass[rows, block[:, 0].to(mass.device)].cpu().double().cumsum(-1)
    token = torch.searchsorted(within, target - before, right=True).clamp(max=BLOCK - 1)
    chosen = (block * BLOCK + token)[:, 0].clamp(max=logits.shape[1] - 1)
    return chosen.to(logits.device)


@runtime_checkable
class Batch(Protocol):
    """Answers under way to some prompts.

    Attributes:
        refills: whether answers can begin while others are under way.
    """

    refills: bool

    def prefill(self) -> Float[Tensor, "P V"]:
        """Compute the prompts; the logits of what follows them."""

    def select(self, rows: Sequence[int], fresh: Sequence[int]) -> list[int]:
        """Keep these rows and begin answers to these prompts; where each new row came from."""

    def step(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Append a token to every row; the logits of what follows it."""


class _Cached:
    """Answers under way with transformers' own cache, in which every answer has its prompt."""

    refills = False

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], pad: int) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.prompts, self.pad = prompts, pad
        self.owner: list[int] = []

    def prefill(self) -> Float[Tensor, "P V"]:
        """As `Batch`."""
        from transformers import DynamicCache

        width = max(map(len, self.prompts))
        self.ids = self._matrix([[self.pad] * (width - len(p)) + list(p) for p in self.prompts])
        self.real = self._matrix([[0] * (width - len(p)) + [1] * len(p) for p in self.prompts])
        self.cache = DynamicCache()
        self.last = self.real.sum(-1) - 1  # position of the last token
        return self._forward(self.ids, (self.real.cumsum(-1) - 1).clamp(min=0))

    def _matrix(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, device=self.device)

    def select(self, rows: Sequence[int], fresh: Sequence[int]) -> list[int]:
        """As `Batch`; with rows to keep, or fresh ones."""
        if fresh and self.owner:
            self.prefill()
        owners = [self.owner[row] for row in rows] if rows else list(fresh)
        order = sorted(range(len(owners)), key=lambda at: owners[at])
        taken = [(rows or fresh)[at] for at in order]
        self.cache.batch_select_indices(torch.tensor(taken))  # layers may lie on several devices
        index = torch.tensor(taken, device=self.device)
        self.real, self.last = self.real[index], self.last[index]
        self.owner = [owners[at] for at in order]
        return order

    def step(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """As `Batch`."""
        self.last = self.last + 1
        self.real = torch.cat([self.real, torch.ones_like(self.real[:, :1])], dim=1)
        return self._forward(tokens[:, None], self.last[:, None])

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        out: Tensor = self.model(
            input_ids=ids,
            attention_mask=self.real,
            position_ids=positions,
            past_key_values=self.cache,
            logits_to_keep=1,
        ).logits
        return out[:, -1].to(self.device)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    owners: Sequence[int],
    noise: NDArray[np.float64],
    *,
    temperature: float,
    stop: frozenset[int],
    pad: int,
    route: Route,
    rows: int,
    short: bool = False,
) -> tuple[list[list[int]], list[bool]]:
    """Continue prompts. Answers that have ended leave the batch, and others take their places.

    Args:
        owners: the prompt that each answer continues, in ascending order.
        noise: uniform numbers of shape (answers, most tokens).
        stop: tokens that end an answer; they are not part of it.
        route: see `Route`.
        rows: the most answers under way at a time.
        short: whether keys and values may be in bfloat16.

    Returns:
        the tokens of every answer, and whether it ended by itself.
    """
    most = noise.shape[1]
    if is_packable(model, max(map(len, prompts)) + most):
        kind = FusedPrompts if short and fused.available() else SharedPrompts
        batch: Batch = kind(model, prompts, pad, most)
    else:
        batch = _Cached(model, prompts, pad)
    return _Loop(batch, owners, noise, temperature, stop, route, len(prompts), rows).run()


class _Loop:
    """Draws the tokens of answers one step after another; what it keeps lies on the CPU."""

    def __init__(
        self,
        batch: Batch,
        owners: Sequence[int],
        noise: NDArray[np.float64],
        temperature: float,
        stop: frozenset[int],
        route: Route,
        prompts: int,
        rows: int,
    ) -> None:
        self.batch, self.owners, self.noise = batch, owners, torch.from_numpy(noise)
        self.temperature, self.route = temperature, route
        self.stop = torch.tensor(sorted(stop), dtype=torch.long)
        self.prompts, self.rows = prompts, rows
        count, self.most = noise.shape
        self.said = torch.zeros(count, self.most, dtype=torch.long)  # the tokens of all answers
        self.sizes = torch.zeros(count, dtype=torch.long)
        self.ends = torch.zeros(count, dtype=torch.bool)
        self.begun = 0  # answers, in their order
        self.live = torch.zeros(0, dtype=torch.long)  # the answer of every row

    def run(self) -> tuple[list[list[int]], list[bool]]:
        """All answers, and whether they ended by themselves."""
        self.route(range(self.prompts))
        self.first = self.batch.prefill()
        self._refill(self.live)
        while len(self.live):
            last = self.said[self.live, self.sizes[self.live] - 1]
            self._draw(self.live, self.batch.step(last.to(self.first.device)))
            going = (~self._done(self.live)).nonzero()[:, 0]
            ended = len(self.live) - len(going)
            if ended >= ENDED * len(self.live):
                self._refill(going)
        said = [
            row[:size] for row, size in zip(self.said.tolist(), self.sizes.tolist(), strict=True)
        ]
        return said, self.ends.tolist()

    def _draw(self, answers: Tensor, logits: Tensor) -> None:
        """The next token of some answers; what those that are done would say is not kept."""
        at = self.sizes[answers]
        noise = self.noise[answers, at.clamp(max=self.most - 1)]
        drawn = pick(logits, self.temperature, noise).cpu()
        going, ends = ~self._done(answers), torch.isin(drawn, self.stop)
        self.ends[answers[going & ends]] = True
        kept = going & ~ends
        self.said[answers[kept], at[kept]] = drawn[kept]
        self.sizes[answers[kept]] += 1

    def _done(self, answers: Tensor) -> Tensor:
        full: Tensor = self.sizes[answers] == self.most
        return full | self.ends[answers]

    def _refill(self, going: Tensor) -> None:
        """Drop the rows that are done and begin as many answers as there is room for."""
        room = self.rows if self.batch.refills or not len(going) else 0
        fresh = torch.zeros(0, dtype=torch.long)
        while self.begun < len(self.sizes) and len(going) + len(fresh) < room:
            until = min(self.begun + room - len(going) - len(fresh), len(self.sizes))
            taken = torch.arange(self.begun, until)
            self.begun = until
            owner = torch.tensor([self.owners[a] for a in taken], device=self.first.device)
            self._draw(taken, self.first[owner])
            fresh = torch.cat([fresh, taken[~self._done(taken)]])
        live = torch.cat([self.live[going], fresh])
        if len(live):
            self.route(range(self.prompts))  # some batches compute them again
            order = self.batch.select(going.tolist(), [self.owners[a] for a in fresh])
            live = live[order]
            self.route([self.owners[answer] for answer in live])
        self.live = live
