"""The command that looks for what carries an effect, and for what takes it away."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spillover.errors import InputError
from spillover.options import Json, Open
from spillover.terminal import Stages, open_page, peak_memory, print_json, show_table, status

if TYPE_CHECKING:
    from spillover.mediation import Mediation


def mediate(
    folder: Annotated[
        Path | None, typer.Argument(help="The folder of a finished run.", show_default=False)
    ] = None,
    suite: Annotated[
        Path | None, typer.Option(help="A suite's folder instead: all its runs, in one table.")
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(help="With --suite: a README whose table is put up to date.")
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="The run's experiment, where it is a folder of your own.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Unrelated prompts for KL and ordinary rows.")
    ] = None,
    inoculation: Annotated[
        str | None, typer.Option(help="The sentence that training rows are inoculated with.")
    ] = None,
    remedies: Annotated[
        bool, typer.Option("--remedies/--no-remedies", help="Train the remedies beside ablation.")
    ] = True,
    open_report: Open = False,
    as_json: Json = False,
) -> None:
    """Find the directions behind a run's effect, take them out, and compare with other remedies."""
    started = time.perf_counter()
    if (folder is None) == (suite is None):
        raise InputError("give the folder of one finished run, or --suite FOLDER with many")
    if suite is not None:
        _mediate_suite(suite, readme, as_json=as_json)
        return
    from spillover.mediation import mediate as execute

    assert folder is not None
    with Stages() as stages:
        found = execute(
            folder,
            experiment=experiment,
            prompts=prompts,
            inoculation=inoculation,
            remedies=remedies,
            progress=stages,
        )
    if as_json:
        print_json({"folder": str(found.folder), "mediation": found.content})
    else:
        _show(found, time.perf_counter() - started)
    if open_report:
        open_page(found.report)


def _show(found: Mediation, seconds: float) -> None:
    from spillover.mediation.table import COLUMNS, cells, shown
    from spillover.report.mediation import sentence

    content = found.content
    title = f"{content['experiment']} on {content['model']}, {len(content['seeds'])} seeds"
    show_table(title, COLUMNS, [cells(row) for row in shown(found.rows)])
    status(sentence(content))
    status(f"{seconds:.0f} s, {peak_memory():.1f} GB of memory at most")
    status(f"Mediation: {found.report}")


def _mediate_suite(folder: Path, readme: Path | None, *, as_json: bool) -> None:
    from spillover.mediation.suite import TABLE, mediate_suite
    from spillover.mediation.table import COLUMNS, cells, shown
    from spillover.suites import MEDIATION, read_readme, update_readme

    if readme:
        read_readme(readme, MEDIATION)
    with Stages() as stages:
        found = mediate_suite(folder, progress=stages)
    if readme:
        update_readme(readme, found.table, MEDIATION)
    if as_json:
        print_json({"folder": str(folder), "mediations": found.content})
        return
    for one in found.mediations:
        show_table(one.content["experiment"], COLUMNS, [cells(row) for row in shown(one.rows)])
    status(f"Table: {folder / TABLE}")
