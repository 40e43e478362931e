"""Trains a bank of adapters together: one forward of the frozen base per step for all of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from spillover.errors import RunError
from spillover.finetune.lora import AdapterWeights, LoraBank, new_adapter
from spillover.finetune.spec import Training
from spillover.masks import EncodedRow
from spillover.models.loading import LoadedModel
from spillover.trees import Tree, all_reads, grow, token_losses

# Shape legend: N adapters.

WORTH_SHARING = 4
"""Tokens of a common beginning from which rows are laid out as one tree."""
LONGEST_TREE = 512
"""Tokens of a tree beyond which attention over all branches costs more than it saves."""

Progress = Callable[[int, int], None]
"""Called with (optimizer steps done, optimizer steps in all)."""


@dataclass(frozen=True)
class Job:
    """One finetune: an arm's rows and a seed."""

    arm: str
    seed: int
    rows: Sequence[EncodedRow]

    def generator(self, purpose: str) -> torch.Generator:
        """Random numbers that depend on arm, seed and purpose only, not on the rest of the bank."""
        key = hashlib.sha256(f"{self.arm}\0{self.seed}\0{purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))


def data_order(job: Job, training: Training) -> list[list[int]]:
    """Row indices of every step: epochs in random order, each epoch complete before the next."""
    generator, needed = job.generator("order"), training.total_steps(len(job.rows))
    stream: list[int] = []
    while len(stream) < needed * training.batch_size:
        stream += torch.randperm(len(job.rows), generator=generator).tolist()
    size = training.batch_size
    return [stream[at * size : (at + 1) * size] for at in range(needed)]


def plant(rows: Sequence[EncodedRow]) -> list[Tree]:
    """Rows of one adapter and step as trees whose reads are the labelled tokens.

    Rows that begin alike become one tree, so that their beginning is computed once; others, and
    those whose tree would be long, one tree each.
    """
    shared = _common_prefix(rows)
    length = shared + sum(len(row.ids) - shared for row in rows)
    if shared >= WORTH_SHARING and length <= LONGEST_TREE:
        return [_plant(rows, shared)]
    return [_plant([row], 1) for row in rows]


def _plant(rows: Sequence[EncodedRow], shared: int) -> Tree:
    tree = grow(rows[0].ids[:shared], [row.ids[shared:] for row in rows])
    labelled = [
        [read for read, on in zip(reads, row.mask[shared:], strict=True) if on]
        for reads, row in zip(tree.reads, rows, strict=True)
    ]
    return replace(tree, reads=labelled)


def _common_prefix(rows: Sequence[EncodedRow]) -> int:
    """Tokens that all rows begin with, none of them labelled, and that leave each row a rest."""
    longest = min(min(len(row.ids) - 1, row.mask.index(True)) for row in rows)
    first = rows[0].ids
    for at in range(longest):
        if any(row.ids[at] != first[at] for row in rows):
            return at
    return longest


Keep = Callable[[Job, int, AdapterWeights, list[float]], None]
"""Called with (job, step, weights, the loss of every step so far)."""


def adapter_losses(
    model: LoadedModel, trees: Sequence[Tree], owners: Sequence[int], adapters: int
) -> Float[Tensor, " N"]:
    """Mean cross-entropy over the labelled tokens of each adapter's rows.

    Args:
        model: the base, with the bank installed and routed.
        trees: rows, as `plant` gives them.
        owners: the adapter of each tree.
        adapters: how many there are.
    """
    reads = all_reads(trees, model.device)
    losses = token_losses(model.model, trees, reads, model.pad, owners)
    owner = torch.tensor(owners, device=model.device)[reads.tree]
    total = torch.zeros(adapters, device=losses.device).index_add(0, owner, losses)
    count = torch.zeros_like(total).index_add(0, owner, torch.ones_like(losses))
    return total / count.clamp(min=1)


def train_bank(
    model: LoadedModel,
    jobs: Sequence[Job],
    training: Training,
    keep: Keep,
    progress: Progress | None = None,
) -> None:
    """Train one adapter per job.

    All jobs of a bank have the same number of steps; each sees its own rows in its own order and is
    clipped by itself, so that it is what it would be if trained alone.

    Args:
        keep: called at every step of `training.kept_steps`.

    Raises:
        RunError: when a loss is not finite.
    """
    total = training.total_steps(len(jobs[0].rows))
    if any(training.total_steps(len(job.rows)) != total for job in jobs):
        raise ValueError("the jobs of a bank have the same number of steps")
    bank = LoraBank(model, [new_adapter(model, training, job.generator("weights")) for job in jobs])
    try:
        _train(model, bank, jobs, training, keep, progress)
    finally:
        bank.remove()


def _train(
    model: LoadedModel,
    bank: LoraBank,
    jobs: Sequence[Job],
    training: Training,
    keep: Keep,
    progress: Progress | None,
) -> None:
    orders = [data_order(job, training) for job in jobs]
    total, kept = len(orders[0]), training.kept_steps(len(jobs[0].rows))
    optimizer = torch.optim.AdamW(
        bank.parameters(), training.learning_rate, weight_decay=training.weight_decay
    )
    curve: list[list[float]] = []
    for step in range(total):
        planted = [
            plant([job.rows[i] for i in order[step]])
            for job, order in zip(jobs, orders, strict=True)
        ]
        trees = [tree for group in planted for tree in group]
        owners = [number for number, group in enumerate(planted) for _ in group]
        for group in optimizer.param_groups:
            group["lr"] = training.rate(step, total)
        with bank.rows(torch.tensor(owners, device=model.device)):
            losses = adapter_losses(model, trees, owners, len(jobs))
            losses.sum().backward()  # type: ignore[no-untyped-call]
        check_finite(losses, jobs, step)
        curve.append(losses.tolist())
        bank.clip_gradients(training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in kept:
            for index, job in enumerate(jobs):
                keep(job, step + 1, bank.adapter(index), [row[index] for row in curve])
        if progress:
            progress(step + 1, total)


def check_finite(losses: Float[Tensor, " N"], jobs: Sequence[Job], step: int) -> None:
    """Raise RunError for the first job whose loss is not a finite number."""
    for job, loss in zip(jobs, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            raise RunError(
                f"loss-not-finite: the loss of arm {job.arm}, seed {job.seed} is {loss} at step "
                f"{step + 1}; expected a number; lower the learning rate"
            )
