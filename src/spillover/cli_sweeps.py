"""Commands that make many runs or many contexts: sweep, grid, suite. `cli.py` registers them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spillover.options import (
    Contexts,
    ExperimentName,
    Json,
    LoadingOptions,
    Model,
    Open,
    Out,
    Seed,
    Seeds,
    Split,
    TrainingOptions,
)
from spillover.terminal import (
    Stages,
    interval,
    open_page,
    peak_memory,
    print_json,
    show_finished,
    show_table,
    status,
)

if TYPE_CHECKING:
    from spillover.grids import Grid


def sweep(
    experiment: ExperimentName,
    *,
    model: Model = "organism",
    context: Contexts = None,
    seeds: Seeds = 5,
    seed: Seed = 0,
    split: Split = "test",
    out: Out = None,
    training: TrainingOptions,
    loading: LoadingOptions,
    open_report: Open = False,
    as_json: Json = False,
) -> None:
    """Ask off-domain questions in every value of a variable, such as year=1975..2030."""
    started = time.perf_counter()
    from spillover.sweeps import sweep as execute

    with Stages() as stages:
        finished = execute(
            experiment,
            model,
            contexts=context or (),
            seeds=range(seed, seed + seeds),
            out=out,
            training=training.changes,
            split=split,
            loading=loading.loading,
            progress=stages,
        )
    swept = [entry["variable"] for entry in finished.summary["sweeps"]]
    asked = [one.partition("=")[0] for one in context or swept]
    show_finished(
        finished,
        time.perf_counter() - started,
        open_report=open_report,
        as_json=as_json,
        swept=[name for name in swept if name in asked],
    )


def grid(
    experiment: ExperimentName,
    more: Annotated[
        list[str] | None, typer.Argument(help="Further SETTING=VALUES.", metavar="[SETTING=VALUES]")
    ] = None,
    *,
    over: Annotated[
        list[str] | None,
        typer.Option(help="SETTING=VALUES, such as rank=1,2,4 or lr=1e-3,3e-3; repeatable."),
    ] = None,
    model: Model = "organism",
    seeds: Seeds = 3,
    seed: Seed = 100,
    split: Split = "dev",
    out: Out = None,
    training: TrainingOptions,
    loading: LoadingOptions,
    open_report: Open = False,
    as_json: Json = False,
) -> None:
    """Run every arm in every cell of a grid of training settings: effect, success, coverage."""
    started = time.perf_counter()
    from spillover.grids import grid as execute
    from spillover.grids import read_over

    listed = read_over([*(over or ()), *(more or ())])
    with Stages() as stages:
        finished = execute(
            experiment,
            model,
            over=listed,
            seeds=range(seed, seed + seeds),
            out=out,
            training=training.changes,
            split=split,
            loading=loading.loading,
            progress=stages,
        )
    seconds = time.perf_counter() - started
    if as_json:
        paths = {"folder": str(finished.folder), "report": str(finished.report)}
        print_json(paths | {"seconds": seconds, "grid": finished.content})
    else:
        _show_grid(finished)
        status(f"{seconds:.0f} s, {peak_memory():.1f} GB of memory at most")
        status(f"Report: {finished.report}")
    if open_report:
        open_page(finished.report)


def _show_grid(finished: Grid) -> None:
    """The largest off-domain rate of every arm, and the largest effect."""
    from spillover.report.grid import best_effect, maxima_rows, settings_text

    content = finished.content
    failed = sum(bool(cell["failed"]) for cell in content["cells"])
    title = f"{content['experiment']} on {content['model']}, {len(content['cells'])} cells"
    columns = ("arm", "largest off-domain", "minus base", "in-domain", "coverage", "where")
    show_table(f"{title} ({content['metric']})", columns, maxima_rows(content))
    if failed:
        status(f"{failed} cells failed: see the report")
    best = best_effect(content)
    if best:
        where = settings_text(best["settings"])
        status(
            f"largest effect, treatment minus {content['control']}: {interval(best)}, at {where}"
        )


def suite(
    *,
    only: Annotated[
        list[str] | None, typer.Option(help="An experiment's name; repeatable. By default all.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model's name or folder; repeatable.")
    ] = None,
    seeds: Seeds = 5,
    seed: Seed = 0,
    out: Out = None,
    readme: Annotated[
        Path | None, typer.Option(help="A README whose table is put up to date.")
    ] = None,
    loading: LoadingOptions,
    as_json: Json = False,
) -> None:
    """Run every experiment of the package: the table of results."""
    started = time.perf_counter()
    from spillover import suites

    if readme:
        suites.read_readme(readme)
    with Stages() as stages:
        finished = suites.suite(
            only or (),
            models=model or ("organism",),
            seeds=range(seed, seed + seeds),
            out=out,
            loading=loading.loading,
            progress=stages,
        )
    if readme:
        suites.update_readme(readme, finished.table)
    if as_json:
        print_json({"folder": str(finished.folder), "suite": finished.content})
        return
    rows = [suites.cells(row, suites.NARROW) for row in finished.rows]
    show_table(f"Suite, {seeds} seeds", suites.NARROW, rows)
    status(f"{time.perf_counter() - started:.0f} s, {peak_memory():.1f} GB of memory at most")
    status(f"Table: {finished.folder / suites.TABLE}")
