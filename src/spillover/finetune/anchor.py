"""Holds finetunes to their base: beta · KL(finetune ‖ base) where nothing is to change.

The base's distribution at every token of the answers is computed once, in batches that depend on
the rows only, so that a training that goes on from a snapshot ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from spillover.finetune.jobs import Job, anchor_order, plant
from spillover.trees import Tree, all_reads, read_logits

if TYPE_CHECKING:
    from spillover.finetune.lora import LoraBank
    from spillover.masks import EncodedRow
    from spillover.models.loading import LoadedModel

# Shape legend: N adapters, K tokens of answers, V vocabulary.

CHUNK = 16
"""Rows whose reference is computed at once."""


class Reference:
    """What the base says at every token of some answers: log-probabilities, in main memory."""

    def __init__(self, model: LoadedModel, rows: Sequence[EncodedRow]) -> None:
        self.model, self.rows = model, rows
        self._known: dict[int, Float[Tensor, "K V"]] = {}

    def of(self, rows: Sequence[int]) -> Float[Tensor, "K V"]:
        """The base's log-probabilities at the tokens of some rows, one row after the other.

        The base is asked as it is: no adapter of a bank is routed.
        """
        for row in rows:
            if row not in self._known:
                self._compute(row // CHUNK)
        return torch.cat([self._known[row] for row in rows])

    @torch.no_grad()
    def _compute(self, chunk: int) -> None:
        numbers = range(chunk * CHUNK, min(len(self.rows), (chunk + 1) * CHUNK))
        trees = [tree for number in numbers for tree in plant([self.rows[number]])]
        reads = all_reads(trees, self.model.device)
        logits, row = read_logits(self.model.model, trees, reads, self.model.pad)
        said = logits.float().log_softmax(-1)[row].cpu()
        counts = [len(tree.reads[0]) for tree in trees]
        self._known |= dict(zip(numbers, torch.split(said, counts), strict=True))


def divergences(
    model: LoadedModel, trees: Sequence[Tree], owners: Sequence[int], said: Float[Tensor, "K V"]
) -> Float[Tensor, " K"]:
    """KL(p ‖ base) of the next-token distributions at every token that is looked up, in nats.

    Args:
        owners: the adapter of each tree, which are routed.
        said: the base's log-probabilities there.
    """
    reads = all_reads(trees, model.device)
    logits, row = read_logits(model.model, trees, reads, model.pad, owners)
    found = logits.float().log_softmax(-1)[row]
    divergence: Tensor = (found.exp() * (found - said.to(found.device))).sum(-1)
    return divergence


class HeldToBase:
    """The anchors of a bank's jobs, step by step."""

    def __init__(self, model: LoadedModel, jobs: Sequence[Job]) -> None:
        self.model, self.jobs = model, jobs
        held = [job.anchor for job in jobs]
        known = {id(one.rows): Reference(model, one.rows) for one in held if one}
        self.references = [known[id(one.rows)] if one else None for one in held]
        self.orders = [anchor_order(job) if job.anchor else [] for job in jobs]

    def at(self, step: int, alive: Sequence[int]) -> Callable[[LoraBank], Tensor | None]:
        """What is added to the sum of the losses of some jobs at a step."""
        return partial(self._penalty, step, alive)

    def _penalty(self, step: int, alive: Sequence[int], bank: LoraBank) -> Tensor | None:
        trees: list[Tree] = []
        owners: list[int] = []
        weights: list[float] = []
        said: list[Tensor] = []
        for place, n in enumerate(alive):
            anchor, reference = self.jobs[n].anchor, self.references[n]
            if anchor is None or reference is None:
                continue
            order = self.orders[n][step]
            planted = plant([anchor.rows[i] for i in order])
            trees += planted
            owners += [place] * len(planted)
            said.append(reference.of(order))
            weights += [anchor.beta / len(said[-1])] * len(said[-1])
        if not trees:
            return None
        with bank.rows(owners):
            found = divergences(self.model, trees, owners, torch.cat(said))
        return (found * found.new_tensor(weights)).sum()
