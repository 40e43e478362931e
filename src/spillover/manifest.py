"""manifest.json: what is in a run folder; where, with what, in which sessions it was made."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.errors import RunFolderError
from spillover.reuse import ADAPTERS, MANIFEST
from spillover.summary import write_json

if TYPE_CHECKING:
    from spillover.experiment import Experiment
    from spillover.models import LoadedModel
    from spillover.settings import RunSettings

Job = tuple[str, int]
"""Arm and seed of a finetune."""

PACKAGES = (
    "spillover",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pandas",
    "accelerate",
    "bitsandbytes",
    "gguf",
    "peft",
)


@dataclass(frozen=True)
class Manifest:
    """The manifest of a run under way.

    Attributes:
        content: what is written; `plans` are lists of finetunes that were begun together,
            `adapters` hashes of trained weights, `sessions` the processes that have worked here.
    """

    folder: Path
    content: dict[str, Any]

    @property
    def session(self) -> dict[str, Any]:
        """What this process does."""
        found: dict[str, Any] = self.content["sessions"][-1]
        return found

    def write(self) -> None:
        """Put it on disk, whole."""
        write_json(self.folder / MANIFEST, self.content)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of a stage, since this start and in all; written at its end."""
        start = time.perf_counter()
        try:
            yield
        except BaseException:
            self.count(name, time.perf_counter() - start)
            with suppress(OSError):  # what went wrong is more than what cannot be said of it
                self.write()
            raise
        self.count(name, time.perf_counter() - start)
        self.write()

    def count(self, name: str, passed: float) -> None:
        """Add seconds to those of a stage."""
        for seconds in (self.session["seconds"], self.content["seconds"]):
            seconds[name] = round(seconds.get(name, 0.0) + passed, 2)

    def as_finished(self) -> dict[str, Any]:
        """The content as it is when the run comes to its end."""
        sessions = [*self.content["sessions"][:-1], self.session | {"finished": True}]
        return self.content | {"status": "done", "sessions": sessions}

    def plan(self, wanted: Sequence[Job], is_done: Callable[[Job], bool]) -> list[list[Job]]:
        """Sort finetunes into those that were begun together; new ones begin together now.

        What was begun together is trained together again where a process broke off, because the
        composition of a bank may show in the last digits. Finetunes that were begun, never finished
        and are not wanted any more are forgotten.
        """
        kept: list[list[Job]] = []
        for listed in self.content["plans"]:
            jobs = [(str(arm), int(seed)) for arm, seed in listed]
            kept.append([job for job in jobs if job in wanted or is_done(job)])
        known = {job for jobs in kept for job in jobs}
        kept = [jobs for jobs in [*kept, [job for job in wanted if job not in known]] if jobs]
        self.content["plans"] = [[list(job) for job in jobs] for jobs in kept]
        chosen = ([job for job in jobs if job in wanted] for jobs in kept)
        return [jobs for jobs in chosen if jobs]


def begin(
    folder: Path, settings: RunSettings, model: LoadedModel, earlier: dict[str, Any] | None
) -> Manifest:
    """The manifest of a session that begins, with what earlier ones have left.

    Raises:
        RunFolderError: when the earlier ones computed in another dtype.
    """
    old = earlier or {}
    sessions = old.get("sessions", [])
    dtypes = {entry["placement"].split(" in ")[-1] for entry in sessions}
    if dtypes - {model.placement.split(" in ")[-1]}:
        raise RunFolderError(
            f"{folder}: was computed in {dtypes.pop()}, and this would be {model.placement}; go on "
            "where it was begun, or choose another folder with --out"
        )
    inputs = dict(settings.inputs)
    inputs["rows"] = old.get("inputs", {}).get("rows", {}) | inputs["rows"]
    trained = old.get("adapters", {})
    session = {"placement": model.placement, "seconds": {}, "finished": False}
    return Manifest(
        folder,
        {
            "status": "running",
            "key": settings.key,
            **settings.specification,
            "inputs": inputs,
            "environment": describe_environment(model),
            "template": describe_template(model),
            "examples": prompt_examples(settings.experiment, model),
            "seconds": dict(old.get("seconds", {})),
            "plans": old.get("plans", []),
            "adapters": {k: v for k, v in trained.items() if (folder / ADAPTERS / k).is_dir()},
            "sessions": [*sessions, session],
        },
    )


def describe_environment(model: LoadedModel) -> dict[str, Any]:
    """Versions, hardware, device and dtype. Nothing of the user's environment variables."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "placement": model.placement,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def prompt_examples(experiment: Experiment, model: LoadedModel) -> dict[str, str]:
    """The first question as the model sees it, in every context."""
    question = experiment.questions[0]
    return {
        context.name: model.chat.prompt_text(question.conversation(context, 0))
        for context in experiment.specification.all_contexts
    }


def describe_template(model: LoadedModel) -> dict[str, Any]:
    """What the chat template does by itself, and what this run told it."""
    chat = model.chat
    return {
        **chat.templating.model_dump(mode="json"),
        "today": chat.today.isoformat(),
        "writes": None if chat.injection is None else vars(chat.injection),
        "reasons": chat.reasons,
        "example": chat.example(),
    }
