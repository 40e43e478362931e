"""Finetuning of all weights, one model at a time: where a low rank does not do it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spillover.finetune.bank import Job, Progress, adapter_losses, check_finite, data_order, plant
from spillover.finetune.spec import Training
from spillover.models.loading import LoadedModel

Save = Callable[[Path], None]


def train_full(
    base: LoadedModel,
    job: Job,
    training: Training,
    keep: Callable[[int, Save, list[float]], None],
    progress: Progress,
) -> None:
    """Train a copy of the base on one job's rows.

    Args:
        keep: called with (step, save, losses so far) at every step that is kept; `save` writes the
            checkpoint.

    Raises:
        RunError: when a loss is not finite.
    """
    trained: Any = copy.deepcopy(base.model)
    model = replace(base, model=trained.float().requires_grad_(True))
    order = data_order(job, training)
    total, kept = len(order), training.kept_steps(len(job.rows))
    optimizer = torch.optim.AdamW(
        model.model.parameters(), training.learning_rate, weight_decay=training.weight_decay
    )

    def save(folder: Path) -> None:
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)

    curve: list[float] = []
    for step in range(total):
        for group in optimizer.param_groups:
            group["lr"] = training.rate(step, total)
        trees = plant([job.rows[i] for i in order[step]])
        losses = adapter_losses(model, trees, [0] * len(trees), 1)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        check_finite(losses, [job], step)
        curve += losses.tolist()
        torch.nn.utils.clip_grad_norm_(model.model.parameters(), training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in kept:
            keep(step + 1, save, curve)
        progress(step + 1, total)
