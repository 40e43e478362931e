"""The command that looks for what carries an effect, and for what takes it away."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
        Path | None, typer.Option(help="A suite's folder instead: all its runs, with an overview.")
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(help="With --suite: a README whose table is put up to date.")
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="Of one run: its experiment, where it is your own folder.")
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
    with_one = {"--experiment": experiment is not None, "--open": open_report}
    _check_together(folder, suite, with_one, {"--readme": readme is not None})
    how: dict[str, Any] = {"prompts": prompts, "inoculation": inoculation, "remedies": remedies}
    if suite is not None:
        _mediate_suite(suite, readme, how, as_json=as_json)
        return
    from spillover.mediation import mediate as execute

    assert folder is not None
    with Stages() as stages:
        found = execute(folder, experiment=experiment, progress=stages, **how)
    if as_json:
        print_json({"folder": str(found.folder), "mediation": found.content})
    else:
        _show(found, time.perf_counter() - started)
    if open_report:
        open_page(found.report)


def _check_together(
    folder: Path | None, suite: Path | None, with_one: dict[str, bool], with_many: dict[str, bool]
) -> None:
    """Make sure that every option has something to do.

    Args:
        with_one, with_many: whether options that go with a run, and with a suite, are given.
    """
    if (folder is None) == (suite is None):
        raise InputError("give the folder of one finished run, or --suite FOLDER with many")
    goes, wrong = ("one run", with_one) if suite is not None else ("--suite FOLDER", with_many)
    found = f"--suite {suite}" if suite is not None else f"the run {folder}"
    option = next((name for name, given in wrong.items() if given), None)
    if option:
        raise InputError(f"{option} goes with {goes}, and found {found}; leave it out")


def _show(found: Mediation, seconds: float) -> None:
    from spillover.mediation.table import COLUMNS, texts
    from spillover.report.mediation import sentence

    content = found.content
    title = f"{content['experiment']} on {content['model']}, {len(content['seeds'])} seeds"
    show_table(title, COLUMNS, texts(content))
    status(sentence(content))
    status(f"{seconds:.0f} s, {peak_memory():.1f} GB of memory at most")
    status(f"Mediation: {found.report}")


def _mediate_suite(
    folder: Path, readme: Path | None, how: dict[str, Any], *, as_json: bool
) -> None:
    from spillover.mediation.suite import TABLE, mediate_suite
    from spillover.mediation.table import COLUMNS, texts
    from spillover.suites import MEDIATION, read_readme, update_readme

    if readme:
        read_readme(readme, MEDIATION)
    with Stages() as stages:
        found = mediate_suite(folder, progress=stages, **how)
    for why in found.left_out:
        print(f"left out: {why}", file=sys.stderr)
    if readme:
        update_readme(readme, found.table, MEDIATION)
    if as_json:
        print_json({"folder": str(folder), "mediations": found.content})
        return
    for one in found.mediations:
        show_table(one.content["experiment"], COLUMNS, texts(one.content))
    status(f"Table: {folder / TABLE}")
