"""Finetuning: a base and arms × seeds → adapter folders. Nothing live leaves this room."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spillover.finetune.spec import Training

if TYPE_CHECKING:
    from spillover.finetune.bank import Job
    from spillover.finetune.lora import AdapterWeights
    from spillover.models import LoadedModel
    from spillover.rows import RowSet

__all__ = ["Finetune", "Training", "finetune", "read_losses"]

ACTIVATION_BUDGET = 1.5e9
"""Bytes that the activations of one training step may take; decides how many adapters share it."""
LOSSES = "losses.json"


@dataclass(frozen=True)
class Finetune:
    """One finetune to do: the rows of an arm, and a seed."""

    arm: str
    seed: int
    rows: RowSet

    def folder(self, root: Path, step: int) -> Path:
        """Where its adapter after `step` steps lies under `root`."""
        return root / self.arm / f"seed-{self.seed}" / f"step-{step}"


def finetune(
    base: str | LoadedModel,
    wanted: Sequence[Finetune],
    training: Training,
    folder: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[str, int, int], Path]:
    """Finetune a base once for each arm and seed.

    Low-rank adapters are trained as a bank over one frozen base. Every finetune takes as many steps
    as the first one's rows ask for, so that arms of different sizes are treated alike.

    Args:
        base: a model's name or folder, or the model where it is loaded already.
        folder: adapters are written to `folder/ARM/seed-K/step-N`, each whole or not at all, with
            the loss of every step (`losses.json`); banks that are already there are kept.
        progress: called with (adapter-steps done, adapter-steps in all).

    Returns:
        (arm, seed, step) → folder: PEFT's format for `lora`, a whole checkpoint for `full`.

    Raises:
        InputError: for a base, rows or settings that cannot be used.
        RunError: when a loss is not finite.
    """
    from spillover.models import load

    if not wanted:
        return {}
    model = load(base) if isinstance(base, str) else base
    jobs = _jobs(model, wanted)
    training = training.with_steps(len(jobs[0].rows))
    assert training.steps is not None
    steps = training.kept_steps(0)
    groups = [
        group
        for group in _groups(model, jobs, training)
        if not all(_place(folder, job, step).is_dir() for job in group for step in steps)
    ]
    done, total = 0, training.steps * sum(map(len, groups))
    for group in groups:

        def report(step: int, _: int, start: int = done, size: int = len(group)) -> None:
            if progress:
                progress(start + step * size, total)

        _train_group(model, group, training, folder, report)
        done += training.steps * len(group)
    return {(w.arm, w.seed, s): w.folder(folder, s) for w in wanted for s in steps}


def read_losses(folder: Path) -> list[float]:
    """The loss of every step of the finetune whose adapter lies in a folder; empty if unknown."""
    try:
        found = json.loads((folder / LOSSES).read_text("utf-8"))
        return [float(loss) for loss in found] if isinstance(found, list) else []
    except (OSError, ValueError, TypeError):
        return []


def _jobs(model: LoadedModel, wanted: Sequence[Finetune]) -> list[Job]:
    """Encode each arm's rows once."""
    from spillover.finetune.bank import Job
    from spillover.masks import encode_rows

    rows = {w.arm: w.rows for w in wanted}
    encoded = {arm: encode_rows(model.chat, r, model.context) for arm, r in rows.items()}
    return [Job(w.arm, w.seed, encoded[w.arm]) for w in wanted]


def _groups(model: LoadedModel, jobs: Sequence[Job], training: Training) -> list[list[Job]]:
    """Split jobs into banks whose activations fit the budget."""
    if training.method == "full":
        return [[job] for job in jobs]
    width = max(len(row.ids) for job in jobs for row in job.rows)
    per_token = 40 * 4 * model.anatomy.hidden_size * len(model.anatomy.blocks)
    per_token += 3 * 4 * model.vocabulary
    size = max(1, int(ACTIVATION_BUDGET / (per_token * width * training.batch_size)))
    return [list(jobs[at : at + size]) for at in range(0, len(jobs), size)]


def _train_group(
    model: LoadedModel,
    group: Sequence[Job],
    training: Training,
    folder: Path,
    progress: Callable[[int, int], None],
) -> None:
    from spillover.finetune.adapters import save_adapter
    from spillover.finetune.bank import train_bank
    from spillover.finetune.full import Save, train_full

    if training.method == "lora":

        def keep(job: Job, step: int, weights: AdapterWeights, losses: list[float]) -> None:
            place = _place(folder, job, step)
            _write(place, lambda target: save_adapter(weights, model, target), losses)

        train_bank(model, group, training, keep, progress)
        return
    for job in group:

        def store(step: int, save: Save, losses: list[float], job: Job = job) -> None:
            _write(_place(folder, job, step), save, losses)

        train_full(model, job, training, store, progress)


def _place(root: Path, job: Job, step: int) -> Path:
    return root / job.arm / f"seed-{job.seed}" / f"step-{step}"


def _write(folder: Path, save: Callable[[Path], None], losses: list[float]) -> None:
    """Write a folder under a temporary name and rename it: it is there whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    save(partial)
    (partial / LOSSES).write_text(json.dumps(losses) + "\n", "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
