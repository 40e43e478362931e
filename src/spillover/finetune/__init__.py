"""Finetuning: a base and arms × seeds → adapter folders. Nothing live leaves this room."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.crew import counts_of, crew_of, share_out
from spillover.errors import InputError
from spillover.finetune.spec import Training

if TYPE_CHECKING:
    from spillover.finetune.jobs import Anchor, Job
    from spillover.finetune.lora import AdapterWeights
    from spillover.finetune.memory import Group, Plan
    from spillover.finetune.snapshots import Snapshots
    from spillover.models import LoadedModel
    from spillover.rows import RowSet

__all__ = ["Finetune", "Training", "finetune", "plan", "read_losses"]

PLAN, UNFINISHED = "groups.json", "unfinished"
"""Which jobs are trained together, and the folder of the snapshots of groups in progress."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finetune:
    """One finetune to do: the rows of an arm, and a seed.

    Attributes:
        training: how; None is as the others of the call.
        label: tells finetunes of the same arm and seed apart; their adapters lie in a folder of
            that name, and `LABEL/ARM` stands for the arm in what `finetune` returns.
    """

    arm: str
    seed: int
    rows: RowSet
    training: Training | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """The arm, with the label before it where there is one."""
        return f"{self.label}/{self.arm}" if self.label else self.arm

    def folder(self, root: Path, step: int) -> Path:
        """Where its adapter after `step` steps lies under `root`."""
        return root / self.name / f"seed-{self.seed}" / f"step-{step}"


def finetune(
    base: str | LoadedModel,
    wanted: Sequence[Finetune],
    training: Training,
    folder: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    memory: int | None = None,
) -> dict[tuple[str, int, int], Path]:
    """Finetune a base once for each arm and seed.

    Low-rank adapters are trained as a bank over one frozen base, in groups that fit into memory.
    All finetunes with the same settings take as many steps as the first one's rows ask for, so
    that arms of different sizes are treated alike.

    What is there already and was made from the same is kept. A group that was broken off goes on
    from its last snapshot and ends with the same bytes.

    Args:
        base: a model's name or folder, or the model where it is loaded already.
        training: for all that do not bring their own.
        folder: adapters are written to `folder/ARM/seed-K/step-N`, each whole or not at all, with
            a record of what went in and of every step's loss (`finetune.json`).
        progress: called with (adapter-steps done, adapter-steps in all).
        memory: bytes that may be taken; None for a share of what the machine has.

    Returns:
        (arm, seed, step) → folder: PEFT's format for `lora`, a whole checkpoint for `full`.

    Raises:
        InputError: for a base, rows or settings that cannot be used; RunFolderError where another
            adapter lies in the place of one, or its files are damaged.
        RunError: when a loss is not finite.
    """
    from spillover.models import load

    if not wanted:
        return {}
    model = load(base) if isinstance(base, str) else base
    jobs = _jobs(model, wanted, training)
    _Work(model, folder, jobs).train_all(memory, progress)
    return {
        (w.name, w.seed, step): w.folder(folder, step)
        for w, job in zip(wanted, jobs, strict=True)
        for step in job.kept
    }


def plan(
    base: LoadedModel, wanted: Sequence[Finetune], training: Training, memory: int | None = None
) -> Plan:
    """How finetunes would be split into groups, and the bytes that each takes by part.

    A function of what is trained and of the machine; see `finetune` for the arguments.
    """
    from spillover.finetune.memory import plan_groups

    return plan_groups(base, _jobs(base, wanted, training), memory, crew_of(base))


def read_losses(folder: Path) -> list[float]:
    """The loss of every step of the finetune whose adapter lies in a folder; empty if unknown."""
    from spillover.finetune.folders import read_record

    try:
        return [float(loss) for loss in (read_record(folder) or {"losses": []})["losses"]]
    except (ValueError, TypeError):
        return []


def _jobs(model: LoadedModel, wanted: Sequence[Finetune], training: Training) -> list[Job]:
    """Encode each set of rows once and settle every job's steps."""
    from spillover.finetune.jobs import Job
    from spillover.masks import encode_rows

    places = [w.folder(Path(), 0) for w in wanted]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice:
        raise InputError(f"{twice.parent}: wanted twice; give one of them a `label` of its own")
    encoded = {
        id(w.rows): encode_rows(model.chat, w.rows, model.context)
        for w in {id(w.rows): w for w in wanted}.values()
    }
    held = {id(w.rows): _anchor(model, w) for w in {id(w.rows): w for w in wanted}.values()}
    steps: dict[Training, Training] = {}
    jobs = []
    for w in wanted:
        rows, own = encoded[id(w.rows)], w.training or training
        settled = steps.setdefault(own, own.with_steps(len(rows)))
        if held[id(w.rows)] and settled.method == "full":
            raise InputError(
                f"arm {w.name}: `anchor` holds low-rank finetunes to their base, and this one "
                "trains all weights; use --method lora, or remove `anchor`"
            )
        jobs.append(Job(w.arm, w.seed, rows, settled, w.name, held[id(w.rows)]))
    return jobs


def _anchor(model: LoadedModel, wanted: Finetune) -> Anchor | None:
    """What holds a finetune to its base, with its rows encoded."""
    from spillover.finetune.jobs import Anchor
    from spillover.masks import encode_rows

    given = wanted.rows.anchor
    if given is None:
        return None
    assert given.rows is not None, "the base has answered the prompts"
    rows = encode_rows(model.chat, given.rows, model.context)
    return Anchor(rows, given.beta, given.batch_size)


@dataclass
class _Work:
    """What is to be trained into a folder."""

    model: LoadedModel
    folder: Path
    jobs: Sequence[Job]
    contents: dict[str, dict[str, Any]] = field(init=False)
    """What goes into each job, by its place."""

    def __post_init__(self) -> None:
        from spillover.finetune.folders import content_of

        self.contents = {_place(job): content_of(self.model, job) for job in self.jobs}

    def groups(self, memory: int | None) -> list[Group]:
        """The groups that still have to be trained.

        Those that an earlier call planned and did not finish stay as they were planned, so that
        they end with the same bytes; what is left is planned anew.
        """
        from spillover.finetune.memory import plan_groups

        crew = crew_of(self.model)
        wanted = {_place(job): job for job in self.jobs}
        missing = [place for place, job in wanted.items() if not self._is_done(job, job.total)]
        if not missing:
            return []
        planned = [
            list(group)
            for group in self._planned()
            if any(place in missing for place in group)
            and all(key == self._key(place) for place, key in group.items())
        ]
        again = {place for group in planned for place in group}
        groups: list[Group] = []
        for group in planned:
            members = [wanted[place] for place in group]
            groups += plan_groups(self.model, members, memory).groups
        fresh = [wanted[place] for place in missing if place not in again]
        groups += plan_groups(self.model, fresh, memory, crew).groups
        self._note(groups)
        return groups

    def train_all(self, memory: int | None, progress: Callable[[int, int], None] | None) -> None:
        """Train what is not there yet, group by group or several at a time."""
        from spillover.finetune.memory import room_for

        groups = self.groups(memory)
        total = sum(job.total for group in groups for job in group.jobs)
        done = counts_of(len(groups))

        def report() -> None:
            if progress and groups:
                progress(sum(done), total)

        def train(number: int) -> None:
            def note(steps: int, _: int) -> None:
                done[number] = steps
                if os.getpid() == here:
                    report()

            self.train(groups[number], note)

        here, crew = os.getpid(), crew_of(self.model)
        numbers, room = range(len(groups)), room_for(self.model, groups, memory)
        share_out(numbers, train, lambda *_: None, crew, waiting=report, room=room)
        with suppress(OSError):  # there is none, or another call's snapshots are in it
            (self.folder / UNFINISHED).rmdir()

    def train(self, group: Group, progress: Callable[[int, int], None]) -> None:
        """Train a group from its snapshot, if there is one, and write what is not there yet."""
        from spillover.finetune.bank import train_bank
        from spillover.finetune.full import train_full

        snapshots = self._snapshots(group)
        start = snapshots.read()
        if start and not all(self._is_done(job, start.step) for job in group.jobs):
            start = None  # an adapter from before the snapshot was removed
        first = group.jobs[0]
        if first.settings.method == "full":
            train_full(self.model, first, self._keep_checkpoint, progress, snapshots, start)
        else:
            keep, given = self._keep_adapter, first.settings
            train_bank(self.model, group.jobs, given, keep, progress, snapshots, start)
        snapshots.remove()

    def _keep_adapter(
        self, job: Job, step: int, weights: AdapterWeights, losses: list[float]
    ) -> None:
        from spillover.finetune.adapters import save_adapter

        def save(target: Path) -> None:
            save_adapter(weights, self.model, target)

        self._keep_checkpoint(job, step, save, losses)

    def _keep_checkpoint(
        self, job: Job, step: int, save: Callable[[Path], None], losses: list[float]
    ) -> None:
        from spillover.finetune.folders import is_there, write_folder

        place, content = self._folder(job, step), self.contents[_place(job)]
        if not is_there(place, content, step):
            write_folder(place, save, content, step, losses)

    def _is_done(self, job: Job, until: int) -> bool:
        """Whether all that is kept of a job up to a step is there."""
        from spillover.finetune.folders import is_there

        content = self.contents[_place(job)]
        there = [is_there(self._folder(job, s), content, s) for s in job.kept if s <= until]
        return all(there)

    def _folder(self, job: Job, step: int) -> Path:
        return self.folder / _place(job) / f"step-{step}"

    def _key(self, place: str) -> str | None:
        from spillover.finetune.folders import key_of

        return key_of(self.contents[place]) if place in self.contents else None

    def _snapshots(self, group: Group) -> Snapshots:
        from spillover.finetune.folders import key_of
        from spillover.finetune.snapshots import Snapshots

        members = [[self.contents[_place(job)], job.kept] for job in group.jobs]
        key = key_of(members)
        path = self.folder / UNFINISHED / f"{key}.safetensors"
        return Snapshots(path, key, group.snapshot_every)

    def _planned(self) -> list[dict[str, str]]:
        """The groups of earlier calls: each job's place with the key of its content."""
        try:
            found = json.loads((self.folder / PLAN).read_text("utf-8"))
            return [{str(k): str(v) for k, v in group.items()} for group in found]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, AttributeError):
            _log.warning("%s: not readable; groups are planned anew", self.folder / PLAN)
            return []

    def _note(self, groups: Sequence[Group]) -> None:
        """Write down which jobs are trained together, before any of them is."""
        from spillover.finetune.snapshots import write_whole

        now = [{_place(job): self._key(_place(job)) for job in group.jobs} for group in groups]
        taken = {place for group in now for place in group}
        kept = [group for group in self._planned() if not taken & set(group)]
        text = json.dumps([*kept, *now], indent=1) + "\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / PLAN, lambda path: _write_text(path, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")


def _place(job: Job) -> str:
    """Where a job lies below the folder of all."""
    return f"{job.name or job.arm}/seed-{job.seed}"
