"""A run: finetune → ask → grade → effects → report, in one folder that others can read.

Each stage reads and writes named artifacts of the run folder. Adapters are kept by arm and seed,
answers by the hash of all that makes them; tables, summary and report are made anew from these.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover import guards, stages
from spillover.errors import RunFolderError
from spillover.experiment import Experiment, load_experiment
from spillover.failpoints import failpoint
from spillover.failures import failures_in_words
from spillover.folder import locked, make_folder, remove_partials
from spillover.guards import Finding
from spillover.manifest import Manifest, begin
from spillover.models import LoadedModel, Loading
from spillover.models.loading import load_source
from spillover.own import OWN
from spillover.reuse import (
    MANIFEST,
    REPORT,
    SUMMARY,
    TABLES,
    check_folder,
    check_results,
    check_whole,
    is_finished,
    read_manifest,
)
from spillover.settings import RunSettings, file_hash, resolve_settings
from spillover.stages import Progress
from spillover.summary import summarize, write_json
from spillover.sweeps import flat_rows, narrowed, sweep_rows

if TYPE_CHECKING:
    import pandas as pd


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

    @cached_property
    def sweeps(self) -> dict[str, pd.DataFrame]:
        """By variable, the headline's effect and every arm's rate in each of its values."""
        import pandas as pd

        names = [entry["variable"] for entry in self.summary["sweeps"]]
        found = {name: flat_rows(sweep_rows(self.summary, name)) for name in names}
        return {name: pd.DataFrame(rows) for name, rows in found.items()}

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
    contexts: Sequence[str] = (),
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
        contexts: ask in these only, besides those of the headline and of the trained domain: names
            of the experiment's contexts, or `VARIABLE=VALUES`.
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
    loaded = experiment if isinstance(experiment, Experiment) else load_experiment(experiment)
    settings = resolve_settings(
        narrowed(loaded, contexts) if contexts else loaded,
        model,
        seeds=seeds,
        training=training,
        split=split,
        loading=loading,
    )
    return execute(settings, Path(out) if out else None, progress)


def execute(
    settings: RunSettings,
    out: Path | None,
    progress: Progress | None = None,
    load: Callable[[], LoadedModel] | None = None,
) -> Run:
    """Run resolved settings; see `run`. What is finished already is read, not computed again.

    Args:
        load: gives the model where it may be loaded already.
    """
    folder, notify = out or settings.default_folder, progress or _say_nothing
    with failures_in_words(folder), ExitStack() as held:
        manifest = read_manifest(folder)
        if manifest is not None and is_finished(folder, manifest, settings):
            return Run(folder, manifest)
        is_new = check_folder(folder, settings) is None
        if not is_new:
            held.enter_context(_held(folder, settings))
        start = time.perf_counter()
        notify("load", 0, 1)
        model = load() if load else load_source(settings.source, settings.loading)
        found = stages.check_rows(settings, model)
        if is_new:  # bad input leaves no folder behind
            make_folder(folder)
            held.enter_context(_held(folder, settings))
        made = begin(folder, settings, model, read_manifest(folder))
        made.count("load", time.perf_counter() - start)
        made.write()
        failpoint("begun")
        _compute(settings, model, made, found, notify)
        return Run(folder, made.content)


@contextmanager
def _held(folder: Path, settings: RunSettings) -> Iterator[None]:
    """Within, the folder belongs to this process alone; what breaks off is swept up."""
    with locked(folder):
        found = check_folder(folder, settings)  # another process may have been faster
        if found is not None:
            check_whole(folder, found)
        remove_partials(folder)
        try:
            yield
        except BaseException:
            remove_partials(folder)
            raise


def _compute(
    settings: RunSettings,
    model: LoadedModel,
    manifest: Manifest,
    found: list[Finding],
    notify: Progress,
) -> None:
    """Every stage in order; the manifest is written after each."""
    folder = manifest.folder
    with manifest.stage("finetune"):
        adapters = stages.finetune_arms(settings, model, manifest, notify)
        asked = stages.respondents(settings, adapters)
        trained = asked[: 1 + len(adapters)]  # those that were ready are checked already
        found += guards.settle(stages.check_adapters(settings, model, trained))
    with manifest.stage("ask"):
        answers = stages.ask_all(settings, model, asked, manifest, notify)
        found += guards.settle(stages.check_answers(answers))
    with manifest.stage("grade and compare"):
        tables = stages.grade_and_compare(settings, answers, folder)
        summary = summarize(settings, tables, found)
        write_json(folder / SUMMARY, summary)
    manifest.content["warnings"] = summary["warnings"]
    with manifest.stage("report"):
        notify("report", 0, 1)
        stages.report(settings, model, folder, answers, tables, summary, manifest.as_finished())
        notify("report", 1, 1)
    others = [*(folder / OWN).glob("*.jsonl"), *(folder / "figures").iterdir()]
    listed = sorted(path.relative_to(folder).as_posix() for path in others)
    files = {name: file_hash(folder / name) for name in (*TABLES, SUMMARY, REPORT, *listed)}
    manifest.content.update(manifest.as_finished(), files=files)
    manifest.write()


def _say_nothing(_stage: str, _done: int, _total: int) -> None:
    """Progress that nobody asked for."""


def open_run(folder: str | Path) -> Run:
    """Open a finished run.

    Raises:
        RunFolderError: when the folder is not a finished run.
    """
    path = Path(folder)
    manifest = read_manifest(path)
    if manifest is None:
        raise RunFolderError(f"{path}: holds no {MANIFEST}; expected the folder of a run")
    if manifest.get("status") != "done":
        raise RunFolderError(f"{path}: the run is not finished; repeat its command to finish it")
    check_results(path, manifest)
    return Run(path, manifest)
