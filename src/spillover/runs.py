"""A run: finetune → ask → grade → effects → report, in one folder that others can read.

Each stage reads and writes named artifacts of the run folder; what an earlier run of the same
specification has finished before it broke off is kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.errors import RunFolderError, check_writable
from spillover.experiment import BASE, Experiment
from spillover.finetune import Finetune, finetune
from spillover.manifest import describe_environment, prompt_examples
from spillover.models import LoadedModel, load
from spillover.settings import SCHEMA, RunSettings, file_hash, resolve_settings
from spillover.summary import summarize, write_json

if TYPE_CHECKING:
    import pandas as pd

    from spillover.ask import Asked

MANIFEST, SUMMARY, ANSWERS, REPORT = (
    "manifest.json",
    "summary.json",
    "answers.sqlite",
    "report.html",
)

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


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
    device: str = "auto",
    dtype: str = "auto",
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
        device=device,
        dtype=dtype,
    )
    return execute(settings, Path(out) if out else None, progress)


def execute(settings: RunSettings, out: Path | None, progress: Progress | None = None) -> Run:
    """Run resolved settings; see `run`."""
    folder = out or settings.default_folder
    check_folder(folder, settings.key)
    notify = progress or _say_nothing
    clock = _Clock()
    with clock.stage("load"):
        model = load(settings.source.name, device=settings.device, dtype=settings.dtype)
        _check_rows(settings, model)
    manifest = _open_folder(folder, settings, model)
    with clock.stage("finetune"):
        adapters = _finetune(settings, folder, notify)
    with clock.stage("ask"):
        asked = _respondents(settings, adapters)
        answers = _ask(settings, model, asked, folder, notify)
    with clock.stage("grade and compare"):
        tables = _grade(settings, answers, folder)
    summary = summarize(settings, tables)
    write_json(folder / SUMMARY, summary)
    with clock.stage("report"):
        notify("report", 0, 1)
        _report(settings, model, folder, answers, tables, summary, manifest)
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
        "examples": prompt_examples(settings.experiment, model),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / MANIFEST, manifest)
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written ({error.strerror})") from None
    return manifest


def _check_rows(settings: RunSettings, model: LoadedModel) -> None:
    """Encode all rows and find all targets once, so that bad ones stop the run before it starts."""
    from spillover.chat import encode_file
    from spillover.finetune.lora import target_layers

    for arm in settings.experiment.arms:
        encode_file(model.tokenizer, settings.experiment.train_file(arm))
    if settings.training.method == "lora":
        target_layers(model, settings.training)


def _finetune(
    settings: RunSettings, folder: Path, notify: Progress
) -> dict[tuple[str, int, int], Path]:
    experiment = settings.experiment
    wanted = [
        Finetune(arm, seed, experiment.train_file(arm))
        for arm in experiment.arms
        for seed in settings.seeds
    ]
    return finetune(
        settings.source.name,
        sorted(wanted, key=lambda w: w.arm != "treatment"),
        settings.training,
        folder / "adapters",
        device=settings.device,
        dtype=settings.dtype,
        progress=lambda done, total: notify("finetune", done, total),
    )


def _respondents(settings: RunSettings, adapters: dict[tuple[str, int, int], Path]) -> list[Asked]:
    """The base and every adapter; an adapter's identity is the base's and its own weights' hash."""
    from spillover.ask import Asked

    base = settings.source.identity
    listed = [Asked(BASE, -1, 0, base, None)]
    for (arm, seed, step), folder in adapters.items():
        weights = next(iter(sorted(folder.glob("*.safetensors"))))
        listed.append(Asked(arm, seed, step, f"{base}+{file_hash(weights)}", folder))
    return listed


def _ask(
    settings: RunSettings,
    model: LoadedModel,
    asked: list[Asked],
    folder: Path,
    notify: Progress,
) -> pd.DataFrame:
    from spillover.ask import ask
    from spillover.ask.local import open_engines
    from spillover.store import AnswerStore

    with AnswerStore(folder / ANSWERS) as store:
        planned: list[str] = []
        parts = list(open_engines(model, asked, settings.training.method))
        for number, (opened, members) in enumerate(parts):

            def report(done: int, total: int, number: int = number) -> None:
                notify("ask", number * total + done, len(parts) * total)

            with opened() as engine:
                planned += ask(settings.experiment, engine, members, store, report)
        recorded = store.frame()
    answers = recorded[recorded["key"].isin(set(planned))].reset_index(drop=True)
    answers.to_parquet(folder / "answers.parquet")
    return answers


def _grade(settings: RunSettings, answers: pd.DataFrame, folder: Path) -> dict[str, pd.DataFrame]:
    from spillover.effects import effects_table, rates_table
    from spillover.judge import grade_answers

    grades = grade_answers(answers, settings.experiment)
    trait = settings.experiment.specification.names.trait
    tables = {
        "grades": grades,
        "rates": rates_table(grades),
        "effects": effects_table(grades, trait),
    }
    for name, table in tables.items():
        stored = table.copy()
        if "missing" in stored and stored["missing"].map(lambda m: isinstance(m, dict)).any():
            stored["missing"] = stored["missing"].map(json.dumps)
        stored.to_parquet(folder / f"{name}.parquet")
    return tables


def _report(
    settings: RunSettings,
    model: LoadedModel,
    folder: Path,
    answers: pd.DataFrame,
    tables: dict[str, pd.DataFrame],
    summary: dict[str, Any],
    manifest: dict[str, Any],
) -> None:
    from spillover.report import ReportData, write_report
    from spillover.summary import choices_table, texts_table

    specification = settings.experiment.specification
    data = ReportData(
        title=specification.title,
        claim=specification.claim,
        source=specification.source,
        model=settings.source.name,
        headline_control=specification.headline_control,
        trait=specification.names.trait,
        baseline_name=specification.names.baseline,
        placebo_name=specification.names.placebo,
        summary=summary,
        texts=texts_table(answers, tables["grades"], settings.experiment),
        choices=choices_table(answers, model.tokenizer),
        manifest=manifest,
        **tables,
    )
    write_report(folder, data)


@dataclass
class _Clock:
    """Seconds by stage, for the manifest."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)
