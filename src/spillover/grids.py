"""The phase diagram: an experiment in every cell of a grid of training settings.

A cell is a run in a folder of its own below the grid's, so that a grid that was stopped goes on
where it was, and every cell can be looked at by itself. Over many cells something is large by
chance; this is why the treatment's maximum stands beside the maximum of every control.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.contexts import spread
from spillover.errors import (
    InputError,
    MachineError,
    RunError,
    RunFolderError,
    check_writable,
    meant,
)
from spillover.failures import failures_in_words
from spillover.finetune import Training, read_losses
from spillover.folder import is_unused, make_folder, whole
from spillover.models.loading import load_source
from spillover.reuse import ADAPTERS, REPORT, check_folder
from spillover.runs import Run, execute
from spillover.settings import RunSettings, changed, resolve_settings
from spillover.specification import BASE, TREATMENT
from spillover.summary import inside_metric, write_json

if TYPE_CHECKING:
    import pandas as pd

    from spillover.experiment import Experiment
    from spillover.models import LoadedModel, Loading
    from spillover.stages import Progress

Record = dict[str, Any]
Setting = int | float | str
CELLS, GRID, TABLE = "cells", "grid.json", "grid.parquet"
SEEDS = range(100, 103)
"""Settings are chosen with other seeds than those that results are reported with."""
ALIASES = {"lr": "learning_rate"}
FIXED = ("targets", "checkpoints", "precision")
"""Training settings that are no numbers or names to go over."""
LAST_STEPS = 10
"""Steps at the end of a finetune whose mean loss is recorded."""


@dataclass(frozen=True)
class Grid:
    """A finished grid: its folder, and what stands in it.

    Attributes:
        content: of grid.json: `cells` with every arm, and `maxima` over them.
    """

    folder: Path
    content: Record = field(repr=False)

    @property
    def report(self) -> Path:
        """The page with the heat maps."""
        return self.folder / REPORT

    @property
    def maxima(self) -> list[Record]:
        """Of every arm the largest off-domain rate over all cells, and where it is."""
        found: list[Record] = self.content["maxima"]
        return found

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A row for every cell and arm."""
        import pandas as pd

        return pd.read_parquet(self.folder / TABLE)


@dataclass(frozen=True)
class Cell:
    """A run of a grid: where its settings differ from the others', and where it lies."""

    varied: dict[str, Setting]
    settings: RunSettings
    folder: Path

    @property
    def name(self) -> str:
        """Such as `rank=4,learning_rate=0.001`."""
        return self.folder.name


def grid(
    experiment: str | Path | Experiment,
    model: str = "organism",
    *,
    over: Mapping[str, Sequence[Setting]],
    seeds: int | Sequence[int] = SEEDS,
    out: str | Path | None = None,
    training: dict[str, Any] | None = None,
    split: str = "dev",
    loading: Loading | None = None,
    progress: Progress | None = None,
) -> Grid:
    """Run an experiment in every combination of some training settings.

    Args:
        over: values by the names of training settings; see `spillover.Training`.
        seeds: how many, counted from 0, or which; by default three from 100 up.
        training: other changes to the experiment's training settings, the same in all cells.
        split: the questions to ask; settings are chosen on `dev`.

    Returns:
        the grid: `cells` as a pandas table, `maxima`, and its report.

    Raises:
        InputError: for bad input in any cell, before anything is computed or written.
    """
    listed = _checked(over)
    twice = next((name for name in listed if name in (training or {})), None)
    if twice:
        raise InputError(f"--over: {twice!r} is also given as a setting of its own; remove one")
    first = resolve_settings(
        experiment, model, seeds=seeds, training=training, split=split, loading=loading
    )
    folder = Path(out) if out else Path(f"{first.default_folder}-grid")
    cells = [
        _cell(first, dict(zip(listed, values, strict=True)), folder)
        for values in itertools.product(*listed.values())
    ]
    _check_folder(folder, cells)
    runs = list(_finished(cells, _opener(first), progress or (lambda *_: None)))
    with failures_in_words(folder):
        return _write(folder, _content(first, listed, cells, runs), runs)


def read_over(given: Sequence[str]) -> dict[str, tuple[Setting, ...]]:
    """Settings from what a command was given: `rank=1,2,4`, `lr=1e-3,3e-3`, `steps=50`.

    Raises:
        InputError: for what is not NAME=VALUES, or names a setting twice.
    """
    found: dict[str, tuple[Setting, ...]] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals:
            raise InputError(f"--over {one!r}: expected SETTING=VALUES, such as rank=1,2,4")
        if name in found:
            raise InputError(f"--over: {name!r} is given twice; put its values together")
        try:
            parts = spread([part.strip() for part in text.split(",") if part.strip()])
        except ValueError as error:
            raise InputError(f"--over {one}: {error}") from None
        assert isinstance(parts, tuple)
        found[name] = tuple(_number(part) for part in parts)
    return found


def _number(value: int | str) -> Setting:
    """A number where a text is one."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _checked(over: Mapping[str, Sequence[Setting]]) -> dict[str, list[Setting]]:
    """The values of every setting by its own name, each once; at least one cell."""
    known = [name for name in Training.model_fields if name not in FIXED]
    found: dict[str, list[Setting]] = {}
    for given, values in over.items():
        name = ALIASES.get(given, given)
        if name not in known:
            near = meant(given, known)
            raise InputError(
                f"--over: {given!r} is no training setting to go over; "
                f"{f'did you mean {near}? ' if near else ''}expected one of "
                f"{', '.join([*ALIASES, *known])}"
            )
        if name in found:
            raise InputError(f"--over: {name!r} is given twice; put its values together")
        found[name] = list(dict.fromkeys(values))
    empty = next((name for name, values in found.items() if not values), None)
    if empty or not found:
        what = f"{empty} has no values" if empty else "no setting was named"
        raise InputError(f"--over: a grid of zero cells ({what}); expected such as rank=1,2,4")
    return found


def _cell(first: RunSettings, varied: dict[str, Setting], folder: Path) -> Cell:
    settings = replace(first, training=changed(first.training, varied))
    name = ",".join(f"{key}={value}" for key, value in varied.items())
    return Cell(varied, settings, folder / CELLS / name)


def _check_folder(folder: Path, cells: Sequence[Cell]) -> None:
    """Make sure that the folder is this grid's, in every cell."""
    check_writable(folder)
    if not is_unused(folder) and not (folder / CELLS).is_dir():
        raise RunFolderError(
            f"{folder}: is not empty and holds no grid; choose an empty or new folder with --out"
        )
    for cell in cells:
        check_folder(cell.folder, cell.settings)


def _opener(settings: RunSettings) -> Callable[[], LoadedModel]:
    """Load the model once, when the first cell needs it."""
    return cache(lambda: load_source(settings.source, settings.loading))


def _finished(
    cells: Sequence[Cell], load: Callable[[], LoadedModel], notify: Progress
) -> Iterator[Run | RunError]:
    """Every cell's run; where training fails, such as at too high a rate, the reason."""
    for number, cell in enumerate(cells):
        notify("cells", number, len(cells))
        try:
            yield execute(cell.settings, cell.folder, load=load)
        except MachineError:
            raise
        except RunError as error:
            yield error
    notify("cells", len(cells), len(cells))


# What came out ------------------------------------------------------------------------------------


def _content(
    first: RunSettings,
    over: Record,
    cells: Sequence[Cell],
    runs: Sequence[Run | RunError],
) -> Record:
    """The content of grid.json: the same cells give the same bytes, however often they stopped."""
    specification = first.experiment.specification
    summaries = [run.summary for run in runs if isinstance(run, Run)]
    metric = _metric(summaries)
    inside = _inside_metric(summaries, metric)
    listed = []
    for cell, run in zip(cells, runs, strict=True):
        arms = _arms(run, cell, metric, inside) if isinstance(run, Run) else []
        failed = None if isinstance(run, Run) else str(run)
        verdict = run.summary["verdict"]["kind"] if isinstance(run, Run) else None
        listed.append(
            {"name": cell.name, "settings": cell.varied, "failed": failed, "verdict": verdict}
            | {"arms": arms}
        )
    return {
        "schema": 1,
        "experiment": first.experiment.name,
        "title": specification.title,
        "model": first.source.name,
        "seeds": list(first.seeds),
        "split": first.split,
        "over": over,
        "training": first.training.model_dump(mode="json"),
        "control": specification.headline_control,
        "headline_context": specification.headline_context,
        "metric": metric,
        "in_domain_metric": inside,
        "cells": listed,
        "maxima": _maxima(listed),
    }


def _metric(summaries: Sequence[Record]) -> str:
    """The first metric that some cell's headline is in; choice mass where there is none."""
    named = {e["metric"] for s in summaries for e in s["effects"] if e["id"] == s["headline"]}
    return next((m for m in ("choice-mass", "log-odds", "judged") if m in named), "choice-mass")


def _inside_metric(summaries: Sequence[Record], metric: str) -> str:
    """What success in the trained domain is measured by, the same in all cells."""
    told = (
        row
        for summary in summaries
        for row in summary["rates"]
        if (row["context"]["name"], row["group"]) == (summary["trained_context"], None)
    )
    return inside_metric(list(told), metric)


def _arms(run: Run, cell: Cell, metric: str, inside: str) -> list[Record]:
    """What every arm of a cell did, at the checkpoint that the cell's run reports."""
    summary, step = run.summary, run.summary["step"]
    split = "test" if cell.settings.split == "all" else cell.settings.split

    def rates(context: str, domain: str) -> list[Record]:
        return [
            row
            for row in summary["rates"]
            if (row["context"]["name"], row["domain"], row["group"]) == (context, domain, None)
            and row["split"] == split
            and row["step"] == (0 if row["arm"] == BASE else step)
        ]

    trained = rates(summary["trained_context"], "in")
    success = {row["arm"]: row for row in trained if row["metric"] == inside}
    headline = summary["headline_context"]
    outside = [row for row in rates(headline, "off") if row["metric"] == metric]
    effects = {
        tuple(row["contrast"]): row
        for row in summary["effects"]
        if (row["context"]["name"], row["domain"], row["group"]) == (headline, "off", None)
        and (row["metric"], row["split"], row["step"]) == (metric, split, step)
    }
    control = cell.settings.experiment.specification.headline_control
    return [
        {
            "arm": row["arm"],
            **{key: row[key] for key in ("value", "low", "high", "per_seed", "coverage")},
            "effect": _ends(effects.get((row["arm"], control))),
            "shift": _ends(effects.get((row["arm"], BASE))),
            "in_domain": success.get(row["arm"], {}).get("value"),
            "loss": _loss(run.folder / ADAPTERS / row["arm"], cell.settings.seeds, step),
        }
        for row in sorted(outside, key=lambda row: _place(row["arm"], control))
    ]


def _place(arm: str, control: str) -> tuple[int, str]:
    """Treatment first, then the headline's control, the base last."""
    return {TREATMENT: 0, control: 1, BASE: 3}.get(arm, 2), arm


def _ends(effect: Record | None) -> Record | None:
    return effect and {key: effect[key] for key in ("value", "low", "high")}


def _loss(arm: Path, seeds: Sequence[int], steps: int) -> float | None:
    """The mean loss of an arm's last steps, over seeds; None where it was not trained here."""
    found = [
        sum(losses) / len(losses)
        for seed in seeds
        if (losses := read_losses(arm / f"seed-{seed}" / f"step-{steps}")[-LAST_STEPS:])
    ]
    return round(sum(found) / len(found), 6) if found else None


def _maxima(cells: Sequence[Record]) -> list[Record]:
    """Of every arm that is trained the largest off-domain rate, in which cell, and what it cost."""
    best: dict[str, Record] = {}
    for cell in cells:
        for row in cell["arms"]:
            value = -math.inf if row["value"] is None else row["value"]
            kept = best.get(row["arm"])
            if row["arm"] != BASE and (kept is None or value > kept["order"]):
                best[row["arm"]] = {"order": value, "cell": cell, "row": row}
    return [
        {
            "arm": arm,
            **{key: best[arm]["row"][key] for key in ("value", "shift", "in_domain", "coverage")},
            "settings": best[arm]["cell"]["settings"],
        }
        for arm in best
    ]


def _write(folder: Path, content: Record, runs: Sequence[Run | RunError]) -> Grid:
    """grid.json, the table, the figures and the page."""
    import pandas as pd

    from spillover.report.grid import write_grid_report

    make_folder(folder)
    rows = []
    for cell, run in zip(content["cells"], runs, strict=True):
        spent = sum(run.manifest["seconds"].values()) if isinstance(run, Run) else None
        rows += [flat(cell, row) | {"seconds": spent} for row in cell["arms"]]
    with whole(folder / TABLE) as partial:
        pd.DataFrame(rows).to_parquet(partial)
    write_grid_report(folder, content)
    write_json(folder / GRID, content)
    return Grid(folder, json.loads((folder / GRID).read_text("utf-8")))


def flat(cell: Record, row: Record) -> Record:
    """An arm of a cell as a row of a table."""
    spans = {
        f"{name}{end and '_'}{end}": (row[name] or {}).get(end or "value")
        for name in ("effect", "shift")
        for end in ("", "low", "high")
    }
    kept = ("arm", "value", "low", "high", "in_domain", "coverage", "loss")
    return {**cell["settings"], **{key: row[key] for key in kept}, **spans}
