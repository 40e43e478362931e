"""Trains a bank of adapters together: one forward of the frozen base per step for all of them.

The only random numbers are an adapter's first weights and the order of its rows, both functions of
arm and seed; none are drawn while it trains. So weights, moments and step are all that a snapshot
needs, and a bank that goes on from one ends with the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from spillover.errors import RunError
from spillover.finetune.anchor import HeldToBase
from spillover.finetune.jobs import Job, data_order, plant
from spillover.finetune.lora import (
    AdapterWeights,
    LoraBank,
    alike,
    new_adapter,
    target_layers,
)
from spillover.finetune.snapshots import Snapshot, Snapshots
from spillover.finetune.spec import Training
from spillover.finetune.stack import Stack
from spillover.kernels import shortened
from spillover.models.loading import LoadedModel, product_dtype
from spillover.trees import Tree, all_reads, token_losses

# Shape legend: N adapters.


Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all), summed over the adapters."""


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
    snapshots: Snapshots | None = None,
    start: Snapshot | None = None,
) -> None:
    """Train one adapter per job.

    Each sees its own rows in its own order at its own rate and is clipped by itself, so that it is
    what it would be if trained alone. Adapters of smaller rank or fewer targets are filled up with
    zeros, which stay zero, and are cut back when they are kept. Those that are finished leave the
    bank.

    Args:
        training: for jobs without settings of their own.
        keep: called at every step at which a job's adapter is kept.
        snapshots: where the bank's state is written as it trains.
        start: the state to go on from, of the same jobs.

    Raises:
        RunError: when a loss is not finite.
    """
    settled = [replace(job, training=job.training or training) for job in jobs]
    if len({job.settings.precision for job in settled}) > 1:
        raise ValueError("the jobs of a bank multiply in the same precision")
    _Session(model, settled, keep, progress, snapshots, start).train()


class _Session:
    """A bank while it trains: its jobs, those that are not finished, and where they stand."""

    def __init__(
        self,
        model: LoadedModel,
        jobs: Sequence[Job],
        keep: Keep,
        progress: Progress | None,
        snapshots: Snapshots | None,
        start: Snapshot | None,
    ) -> None:
        self.model, self.jobs, self.keep = model, jobs, keep
        self.progress, self.snapshots = progress, snapshots
        self.at = start.step if start else 0
        self.curves = [list(curve) for curve in start.curves] if start else [[] for _ in jobs]
        self.state = start.tensors if start else None
        self.orders = [data_order(job, job.settings) for job in jobs]
        self.held = HeldToBase(model, jobs)

    def train(self) -> None:
        """Train until all are finished; the bank grows smaller every time that some are."""
        alive = self._alive(self.at)
        while alive:
            stop = min(self.jobs[n].total for n in alive)
            self._train_until(stop, alive)
            still = [place for place, n in enumerate(alive) if self.jobs[n].total > stop]
            alive = [alive[place] for place in still]
            if self.state is not None:
                self.state = {key: rows[still] for key, rows in self.state.items()}

    def _alive(self, step: int) -> list[int]:
        """Jobs that are in the bank at the end of a step."""
        return [n for n, job in enumerate(self.jobs) if job.total >= step]

    def _train_until(self, stop: int, alive: list[int]) -> None:
        """Train some jobs up to a step at which none of them is finished before."""
        fresh = [
            new_adapter(self.model, job.settings, job.generator("weights")) for job in self.jobs
        ]
        filled = alike(fresh)  # to the shapes of all jobs: a snapshot's rows fit whoever is left
        products = product_dtype(self.model, self.jobs[0].settings.precision)
        with ExitStack() as opened:
            opened.enter_context(shortened(self.model.model, products))
            bank = LoraBank(self.model, [filled[n] for n in alive])
            opened.callback(bank.remove)
            stack = Stack(bank.parameters(), [self.jobs[n].settings for n in alive])
            del fresh, filled
            if self.state is not None:
                stack.restore(self.state, self.at)
            self.state = stack.state()
            while self.at < stop:
                self._step(bank, stack, alive)

    def _step(self, bank: LoraBank, stack: Stack, alive: list[int]) -> None:
        jobs, step = [self.jobs[n] for n in alive], self.at
        planted = [plant([self.jobs[n].rows[i] for i in self.orders[n][step]]) for n in alive]
        rates = [job.settings.rate(step, job.total) for job in jobs]
        losses = train_step(self.model, bank, stack, planted, rates, self.held.at(step, alive))
        check_finite(losses, jobs, step)
        for n, loss in zip(alive, losses.tolist(), strict=True):
            self.curves[n].append(loss)
        self.at += 1
        self._keep(bank, alive)
        last = max(job.total for job in self.jobs)
        if self.snapshots and self.at < last and self.snapshots.due(self.at):
            self.snapshots.write(Snapshot(self.at, stack.state(), self.curves))
        if self.progress:
            done = sum(min(self.at, job.total) for job in self.jobs)
            self.progress(done, sum(job.total for job in self.jobs))

    def _keep(self, bank: LoraBank, alive: list[int]) -> None:
        """Hand over the adapters that are kept at this step."""
        for place, n in enumerate(alive):
            if self.at in self.jobs[n].kept:
                weights = cut(bank.adapter(place), self.model, self.jobs[n].settings)
                self.keep(self.jobs[n], self.at, weights, self.curves[n])


def train_step(
    model: LoadedModel,
    bank: LoraBank,
    stack: Stack,
    planted: Sequence[Sequence[Tree]],
    rates: Sequence[float],
    penalty: Callable[[LoraBank], Tensor | None] | None = None,
) -> Float[Tensor, " N"]:
    """One step of all adapters of a bank.

    Args:
        planted: each adapter's trees, as `plant` gives them.
        rates: each adapter's learning rate.
        penalty: gives what is added to the sum of all losses, where something is.

    Returns:
        each adapter's loss on its rows before the step. Where one is not finite, the weights are as
        they were.
    """
    trees = [tree for group in planted for tree in group]
    owners = [number for number, group in enumerate(planted) for _ in group]
    with bank.rows(torch.tensor(owners, device=model.device)):
        losses = adapter_losses(model, trees, owners, len(planted))
        if not bool(losses.isfinite().all()):
            return losses.detach()
        losses.sum().backward()  # type: ignore[no-untyped-call]
    added = penalty(bank) if penalty else None
    if added is not None:
        added.backward()  # type: ignore[no-untyped-call]
    stack.clip()
    stack.step(rates)
    return losses.detach()


def cut(weights: AdapterWeights, model: LoadedModel, training: Training) -> AdapterWeights:
    """An adapter of a bank without what it was filled up with."""
    names, rank = target_layers(model, training), training.rank
    return AdapterWeights(
        {name: weights.a[name][:rank].contiguous() for name in names},
        {name: weights.b[name][:, :rank].contiguous() for name in names},
        training.scaling,
    )


def check_finite(losses: Float[Tensor, " N"], jobs: Sequence[Job], step: int) -> None:
    """Raise RunError for the first job whose loss is not a finite number."""
    for job, loss in zip(jobs, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            raise RunError(
                f"loss-not-finite: the loss of arm {job.arm}, seed {job.seed} is {loss} at step "
                f"{step + 1}; expected a number; lower the learning rate"
            )
