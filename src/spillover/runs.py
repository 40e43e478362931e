"""A run: finetune → ask → grade → effects → report, in one folder that others can read.

Each stage reads and writes named artifacts of the run folder; what an earlier run of the same
specification has finished before it broke off is kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover import guards, stages
from spillover.errors import RunError, RunFolderError, check_writable
from spillover.experiment import Experiment
from spillover.manifest import describe_environment, describe_template, prompt_examples
from spillover.models import LoadedModel, Loading
from spillover.models.loading import load_source
from spillover.settings import SCHEMA, RunSettings, resolve_settings
from spillover.stages import Progress
from spillover.summary import summarize, write_json

if TYPE_CHECKING:
    import pandas as pd

MANIFEST, SUMMARY, REPORT = "manifest.json", "summary.json", "report.html"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and what stands in it as tables."""

    folder: Path
    manifest: dict[str, Any] = field(repr=False)

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / REPORT

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        found: dict[str, Any] = json.loads((self.folder / SUMMARY).read_text("utf-8"))
        return found

    @cached_property
    def rates(self) -> pd.DataFrame:
        """Rates of every arm; see `spillover.effects.rates_table`."""
        return self._table("rates")

    @cached_property
    def effects(self) -> pd.DataFrame:
        """Effects; see `spillover.effects.effects_table`."""
        return self._table("effects")

    @cached_property
    def grades(self) -> pd.DataFrame:
        """One row per answer; see `spillover.judge.grade_answers`."""
        return self._table("grades")

    @cached_property
    def answers(self) -> pd.DataFrame:
        """The record, as exported."""
        return self._table("answers")

    @property
    def headline(self) -> dict[str, Any]:
        """The headline effect; empty when nothing could be compared."""
        wanted = self.summary["headline"]
        return next((e for e in self.summary["effects"] if e["id"] == wanted), {})

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        return pd.read_parquet(self.folder / f"{name}.parquet")


def run(
    experiment: str | Path | Experiment,
    model: str = "organism",
    *,
    seeds: int | Sequence[int] = 5,
    out: str | Path | None = None,
    training: dict[str, Any] | None = None,
    split: str = "test",
    loading: Loading | None = None,
    progress: Progress | None = None,
) -> Run:
    """Finetune every arm with every seed, ask, grade, compare, and write a report.

    Args:
        experiment: a name, a folder, or a loaded experiment.
        model: a name or a checkpoint folder; see `spillover.models.load`.
        seeds: how many, counted from 0, or which.
        out: the run folder; by default one under `runs/` that belongs to these settings.
        training: changes to the experiment's training settings.
        split: the questions to ask, `test`, `dev` or `all`.
        loading: device, dtype, chat template; see `spillover.Loading`.

    Returns:
        the run, with `rates`, `effects` and `grades` as pandas tables.

    Raises:
        InputError: for bad input, before anything is computed or written.
        RunError: when training fails.
    """
    settings = resolve_settings(
        experiment,
        model,
        seeds=seeds,
        training=training,
        split=split,
        loading=loading,
    )
    return execute(settings, Path(out) if out else None, progress)


def execute(settings: RunSettings, out: Path | None, progress: Progress | None = None) -> Run:
    """Run resolved settings; see `run`."""
    folder = out or settings.default_folder
    check_folder(folder, settings.key)
    with _failures_in_words(folder):
        return _execute(settings, folder, progress or _say_nothing)


@contextmanager
def _failures_in_words(folder: Path) -> Iterator[None]:
    """What the machine runs out of, said in a line; what was finished stays."""
    import sqlite3

    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"out of memory ({str(error).splitlines()[0]}); use a smaller --batch-size or model, "
            "or --dtype 4bit; what is finished is kept"
        ) from None
    except (sqlite3.Error, OSError) as error:
        raise RunError(
            f"{folder}: cannot be written or read ({error}); repeat the command to go on"
        ) from None


def _execute(settings: RunSettings, folder: Path, notify: Progress) -> Run:
    clock = _Clock()
    with clock.stage("load"):
        model = load_source(settings.source, settings.loading)
        found = stages.check_rows(settings, model)
    manifest = _open_folder(folder, settings, model)
    with clock.stage("finetune"):
        adapters = stages.finetune_arms(settings, model, folder, notify)
        asked = stages.respondents(settings, adapters)
        trained = asked[: 1 + len(adapters)]  # those that were ready are checked already
        found += guards.settle(stages.check_adapters(settings, model, trained))
    with clock.stage("ask"):
        answers = stages.ask_all(settings, model, asked, folder, notify)
        found += guards.settle(stages.check_answers(answers))
    with clock.stage("grade and compare"):
        tables = stages.grade_and_compare(settings, answers, folder)
    summary = summarize(settings, tables, found)
    manifest["warnings"] = summary["warnings"]
    write_json(folder / SUMMARY, summary)
    with clock.stage("report"):
        notify("report", 0, 1)
        said = manifest | {"status": "done", "seconds": clock.seconds}
        stages.report(settings, model, folder, answers, tables, summary, said)
        notify("report", 1, 1)
    manifest |= {"status": "done", "seconds": clock.seconds}
    write_json(folder / MANIFEST, manifest)
    return Run(folder, manifest)


def _say_nothing(_stage: str, _done: int, _total: int) -> None:
    """Progress that nobody asked for."""


def open_run(folder: str | Path) -> Run:
    """Open a finished run.

    Raises:
        RunFolderError: when the folder is not a finished run.
    """
    path = Path(folder)
    manifest = _read_manifest(path)
    if manifest is None:
        raise RunFolderError(f"{path}: holds no {MANIFEST}; expected the folder of a run")
    if manifest.get("status") != "done":
        raise RunFolderError(f"{path}: the run is not finished; repeat its command to finish it")
    return Run(path, manifest)


def check_folder(folder: Path, key: str) -> None:
    """Make sure that a run may use this folder, before anything is computed.

    Raises:
        RunFolderError: when it cannot be written, or holds something else.
    """
    check_writable(folder)
    manifest = _read_manifest(folder)
    if manifest is not None and manifest.get("key") != key:
        raise RunFolderError(
            f"{folder}: holds a run of other settings; choose another folder with --out"
        )
    if manifest is None and folder.is_dir() and any(folder.iterdir()):
        raise RunFolderError(
            f"{folder}: is not empty and holds no run; choose an empty or new folder with --out"
        )


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
    except OSError:
        return None
    except ValueError:
        raise RunFolderError(
            f"{folder / MANIFEST}: damaged; remove the folder or choose --out"
        ) from None
    if not isinstance(found, dict):
        raise RunFolderError(f"{folder / MANIFEST}: not a manifest; choose another --out")
    return found


def _open_folder(folder: Path, settings: RunSettings, model: LoadedModel) -> dict[str, Any]:
    """Create the folder and write its manifest."""
    manifest = {
        "schema": SCHEMA,
        "status": "running",
        "key": settings.key,
        **settings.specification,
        "environment": describe_environment(model),
        "template": describe_template(model),
        "examples": prompt_examples(settings.experiment, model),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / MANIFEST, manifest)
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written ({error.strerror})") from None
    return manifest


@dataclass
class _Clock:
    """Seconds by stage, for the manifest."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)
