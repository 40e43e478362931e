"""Finetuning of all weights, one model at a time: where a low rank does not do it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spillover.finetune.bank import Progress, adapter_losses, check_finite
from spillover.finetune.jobs import Job, data_order, plant
from spillover.finetune.snapshots import Snapshot, Snapshots
from spillover.models.loading import LoadedModel

Save = Callable[[Path], None]
MOMENTS = ("exp_avg", "exp_avg_sq")


def train_full(
    base: LoadedModel,
    job: Job,
    keep: Callable[[Job, int, Save, list[float]], None],
    progress: Progress,
    snapshots: Snapshots | None = None,
    start: Snapshot | None = None,
) -> None:
    """Train a copy of the base on one job's rows.

    Args:
        job: with its settings.
        keep: called with (job, step, save, losses so far) at every step that is kept; `save`
            writes the checkpoint.
        snapshots: where the state is written on the way.
        start: the state to go on from.

    Raises:
        RunError: when a loss is not finite.
    """
    training = job.settings
    trained: Any = copy.deepcopy(base.model)
    model = replace(base, model=trained.float().requires_grad_(True))
    optimizer = torch.optim.AdamW(
        trained.parameters(), training.learning_rate, weight_decay=training.weight_decay
    )
    _restore(trained, optimizer, start)

    def save(folder: Path) -> None:
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)

    curve = list(start.curves[0]) if start else []
    order = data_order(job, training)
    for step in range(len(curve), job.total):
        for group in optimizer.param_groups:
            group["lr"] = training.rate(step, job.total)
        trees = plant([job.rows[i] for i in order[step]])
        losses = adapter_losses(model, trees, [0] * len(trees), 1)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        check_finite(losses, [job], step)
        curve += losses.tolist()
        nn.utils.clip_grad_norm_(trained.parameters(), training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in job.kept:
            keep(job, step + 1, save, curve)
        if snapshots and step + 1 < job.total and snapshots.due(step + 1):
            snapshots.write(Snapshot(step + 1, _state(trained, optimizer), [curve]))
        progress(step + 1, job.total)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and moments by name; not copies."""
    state = {}
    for name, parameter in model.named_parameters():
        state[f"values.{name}"] = parameter.data
        for moment in MOMENTS:
            found = optimizer.state.get(parameter, {}).get(moment)
            if found is not None:  # none for weights that no token reaches
                state[f"{moment}.{name}"] = found
    return state


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, start: Snapshot | None) -> None:
    if start is None:
        return
    given = start.tensors
    for name, parameter in model.named_parameters():
        parameter.data.copy_(given[f"values.{name}"])
        if f"{MOMENTS[0]}.{name}" in given:
            moments = {m: given[f"{m}.{name}"].to(parameter.device) for m in MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(start.step)), **moments}
