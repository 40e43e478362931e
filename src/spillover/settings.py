"""What a run computes: everything is checked here, before anything is computed or written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spillover.errors import InputError, first_problem
from spillover.experiment import Experiment, load_experiment
from spillover.finetune import Training
from spillover.models import Loading, Source, resolve
from spillover.models.hardware import QUANTIZED
from spillover.specification import TREATMENT

SCHEMA = 3
"""Raised when the manifest changes; a folder of another schema is refused, never misread."""


@dataclass(frozen=True)
class Ready:
    """One model of an arm that is not trained here.

    Attributes:
        is_adapter: whether it is an adapter of the run's model.
    """

    arm: str
    seed: int
    source: Source
    is_adapter: bool


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides what a run computes.

    Attributes:
        seeds: the seeds of every arm.
        training: as resolved from the experiment's defaults and the user's changes.
        split: which questions are asked: `test`, `dev` or `all`.
    """

    experiment: Experiment
    source: Source
    seeds: tuple[int, ...]
    training: Training
    split: str = "test"
    loading: Loading = field(default_factory=Loading)

    @cached_property
    def specification(self) -> dict[str, Any]:
        """The settings as data, with hashes of the training files and of the model."""
        from spillover import __version__

        experiment = self.experiment
        return {
            "schema": SCHEMA,
            "version": __version__,
            "experiment": experiment.name,
            "specification": experiment.specification.model_dump(mode="json"),
            "questions": [q.model_dump(mode="json") for q in experiment.questions],
            "rows": {arm: rows.identity for arm, rows in experiment.rows.items()},
            "ready": {f"{r.arm}/{r.seed}": r.source.identity for r in self.ready},
            "model": {"name": self.source.name, "identity": self.source.identity},
            "seeds": list(self.seeds),
            "training": self.training.model_dump(mode="json"),
            "split": self.split,
            "loading": self.loading.model_dump(mode="json"),
            "chat_template": self.loading.chat_template and file_hash(self.loading.chat_template),
        }

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What cannot change within a run folder: model, training settings, rows of its arms.

        Questions, contexts, sampling, split and seeds can: they are keys of answers and adapters.
        """
        said = self.specification
        templating = said["loading"]["templating"]
        return {
            "experiment": said["experiment"],
            "model": said["model"],
            "loading": {
                "dtype": said["loading"]["dtype"],
                "chat template": said["chat_template"],
                **{key: templating[key] for key in ("date", "system", "think")},
            },
            "training": self.finetuning.model_dump(mode="json"),
            "rows": said["rows"],
        }

    @cached_property
    def finetuning(self) -> Training:
        """The training settings with their length in steps: those of the treatment's rows, for all.

        Arms that are added later are trained for as long.
        """
        rows = self.experiment.rows
        first = rows.get(TREATMENT) or next(iter(rows.values()), None)
        return self.training.with_steps(first.size) if first else self.training

    @cached_property
    def ready(self) -> tuple[Ready, ...]:
        """The models of the arms that are not trained here."""
        found = []
        for name, arm in self.experiment.arms.items():
            for seed, given in enumerate(arm.adapter or arm.model):
                local = self.experiment.folder / given
                place = str(local) if local.is_dir() else given
                base = self.source.name if arm.adapter else None
                found.append(Ready(name, seed, resolve(place, base=base), bool(arm.adapter)))
        return tuple(found)

    @cached_property
    def key(self) -> str:
        """A hash of the specification: equal keys give equal results."""
        return _hash(self.specification)

    @property
    def default_folder(self) -> Path:
        """Where the run goes when nobody says: the same model and training, the same folder."""
        model = Path(self.source.name).name
        return Path("runs") / f"{self.experiment.name}-{model}-{_hash(self.inputs)[:8]}"


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def resolve_settings(
    experiment: str | Path | Experiment,
    model: str = "organism",
    *,
    seeds: int | Sequence[int] = 5,
    training: dict[str, Any] | None = None,
    split: str = "test",
    loading: Loading | None = None,
) -> RunSettings:
    """Check everything that a run needs before anything is computed or written.

    Args:
        seeds: how many, counted from 0, or which.
        training: changes to the experiment's training settings, by the names in `Training`.
        split: the questions to ask: `test` is reported, `dev` is for choosing settings, or `all`.
        loading: how models are loaded and spoken to.

    Raises:
        InputError: for an experiment, model, seeds or settings that cannot be used.
    """
    listed = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if isinstance(seeds, int) and seeds < 1:
        raise InputError(f"seeds: found {seeds}; expected at least 1")
    if not listed or len(set(listed)) < len(listed) or min(listed) < 0:
        raise InputError(
            f"seeds: found {list(listed) or 'none'}; expected at least one, all different and >= 0"
        )
    if split not in ("test", "dev", "all"):
        raise InputError(f"split: found {split!r}; expected test, dev or all")
    loaded = experiment if isinstance(experiment, Experiment) else load_experiment(experiment)
    loaded = loaded.with_split(split)
    source = resolve(model, world=loaded.specification.world)
    resolved = changed(loaded.training_for(source.model_class), training or {})
    if resolved.method == "full" and loading and loading.dtype in QUANTIZED:
        raise InputError(
            f"method full trains all weights, and those of {loading.dtype} cannot be trained; use "
            "--method lora or another --dtype"
        )
    template = loading.chat_template if loading else None
    if template and not template.is_file():
        raise InputError(f"{template}: there is no such chat template; check the path")
    made = RunSettings(loaded, source, listed, resolved, split, loading or Loading())
    _ = made.ready  # models that are named and not there stop here
    return made


def changed(training: Training, changes: Mapping[str, Any]) -> Training:
    """Training settings with some changed; steps take the place of epochs, and the other way.

    Raises:
        InputError: naming the first setting that cannot be used.
    """
    settings = training.model_dump()
    for given, other in (("steps", "epochs"), ("epochs", "steps")):
        if given in changes:
            settings[other] = None
    try:
        return Training.model_validate(settings | dict(changes))
    except ValidationError as error:
        raise InputError(f"training settings: {first_problem(error, Training)}") from None


def file_hash(path: Path) -> str:
    """A hash of a file's content (16 hexadecimal digits)."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
