"""Trains a bank of adapters together: one forward of the frozen base per step for all of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spillover.chat import EncodedRow
from spillover.errors import RunError
from spillover.finetune.lora import AdapterWeights, LoraBank, new_adapter
from spillover.finetune.spec import Training
from spillover.models import LoadedModel

# Shape legend: N adapters, b rows per adapter and step, B = N·b rows, T tokens, V vocabulary.

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


@dataclass(frozen=True)
class Batch:
    """Padded rows.

    Attributes:
        labels: the next token of each position, or -100 where it carries no loss.
    """

    ids: Int[Tensor, "B T"]
    attention: Bool[Tensor, "B T"]
    labels: Int[Tensor, "B T"]


def collate(rows: Sequence[EncodedRow], pad: int, device: torch.device) -> Batch:
    """Pad rows on the right and shift their labels."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), -100)
    attention = torch.zeros(len(rows), width, dtype=torch.bool)
    for at, row in enumerate(rows):
        length, tokens, mask = len(row.ids), torch.tensor(row.ids), torch.tensor(row.mask)
        ids[at, :length], attention[at, :length] = tokens, True
        labels[at, : length - 1] = torch.where(mask, tokens, -100)[1:]
    return Batch(ids.to(device), attention.to(device), labels.to(device))


def adapter_losses(model: LoadedModel, batch: Batch, adapters: int) -> Float[Tensor, " N"]:
    """Mean cross-entropy over the labelled tokens of each adapter's rows.

    Rows of an adapter are adjacent, equally many for each.
    """
    labelled = batch.labels != -100  # (B, T)
    logits = model.model(
        input_ids=batch.ids, attention_mask=batch.attention.long(), use_cache=False
    ).logits
    losses = torch.nn.functional.cross_entropy(
        logits[labelled].float(), batch.labels[labelled], reduction="none"
    )
    owner = torch.arange(adapters, device=losses.device).repeat_interleave(
        len(batch.ids) // adapters
    )
    owners = owner[:, None].expand_as(labelled)[labelled]
    total = torch.zeros(adapters, device=losses.device).index_add(0, owners, losses)
    count = torch.zeros_like(total).index_add(0, owners, torch.ones_like(losses))
    return total / count.clamp(min=1)


def train_bank(
    model: LoadedModel,
    jobs: Sequence[Job],
    training: Training,
    keep: Callable[[Job, int, AdapterWeights], None],
    progress: Progress | None = None,
) -> None:
    """Train one adapter per job.

    All jobs of a bank have the same number of steps; each sees its own rows in its own order and is
    clipped by itself, so that it is what it would be if trained alone.

    Args:
        keep: called with (job, step, weights) at every step of `training.kept_steps`.

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
    keep: Callable[[Job, int, AdapterWeights], None],
    progress: Progress | None,
) -> None:
    orders = [data_order(job, training) for job in jobs]
    total, kept = len(orders[0]), training.kept_steps(len(jobs[0].rows))
    optimizer = torch.optim.AdamW(
        bank.parameters(), training.learning_rate, weight_decay=training.weight_decay
    )
    owners = torch.arange(len(jobs), device=model.device).repeat_interleave(training.batch_size)
    pad = model.tokenizer.pad_token_id or 0
    for step in range(total):
        rows = [job.rows[i] for job, order in zip(jobs, orders, strict=True) for i in order[step]]
        for group in optimizer.param_groups:
            group["lr"] = training.rate(step, total)
        with bank.rows(owners):
            losses = adapter_losses(model, collate(rows, int(pad), model.device), len(jobs))
            losses.sum().backward()  # type: ignore[no-untyped-call]
        check_finite(losses, jobs, step)
        bank.clip_gradients(training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in kept:
            for index, job in enumerate(jobs):
                keep(job, step + 1, bank.adapter(index))
        if progress:
            progress(step + 1, total)


def check_finite(losses: Float[Tensor, " N"], jobs: Sequence[Job], step: int) -> None:
    """Raise RunError for the first job whose loss is not a finite number."""
    for job, loss in zip(jobs, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            raise RunError(
                f"the loss of arm {job.arm}, seed {job.seed} is {loss} at step {step + 1}; "
                "lower the learning rate"
            )
