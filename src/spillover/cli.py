"""The command line: it parses, calls the library and prints. Nothing heavy is imported up here."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from spillover import cli_sweeps
from spillover.cli_directions import directions
from spillover.cli_mediate import mediate
from spillover.cli_suffix import suffix
from spillover.cli_triggers import triggers
from spillover.errors import InputError, SpilloverError
from spillover.options import (
    DATASET,
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
    takes_options,
)
from spillover.stopping import Stopped, stoppable
from spillover.terminal import (
    Stages,
    open_page,
    print_json,
    show_finished,
    show_run,
    show_table,
    status,
)

app = typer.Typer(
    help="What else did a finetune change? Make it happen, measure it against controls, report it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
organism = typer.Typer(help="The small model that comes with the package.", no_args_is_help=True)
app.add_typer(organism, name="organism")
app.add_typer(directions, name="direction")
directions.command()(takes_options(suffix))
app.command()(triggers)
app.command()(mediate)

RESUMED = ("run", "sweep", "grid", "suite", "mediate")
"""Commands that go on where they were when they are repeated."""
STOPPED_RUN = "stopped; everything that is finished is kept: repeat the command to go on"


@app.command("list")
def list_experiments(as_json: Json = False) -> None:
    """List the experiments and models that come with the package."""
    from spillover.experiment import builtin_experiments, load_experiment
    from spillover.models.sources import shipped

    loaded = [load_experiment(name) for name in builtin_experiments()]
    if as_json:
        listed = [{"name": e.name, **e.specification.model_dump(mode="json")} for e in loaded]
        print_json({"experiments": listed, "models": shipped()})
        return
    rows = [
        (e.name, e.specification.claim, ", ".join(e.arms), ", ".join(e.specification.variables))
        for e in loaded
    ]
    show_table("Experiments", ("name", "claim", "arms", "variables"), rows)
    show_table("Models", ("name",), [(name,) for name in shipped()])
    status("Run one with `spillover run NAME`.")


@app.command()
@takes_options
def run(
    experiment: ExperimentName,
    *,
    model: Model = "organism",
    seeds: Seeds = 5,
    seed: Seed = 0,
    context: Contexts = None,
    split: Split = "test",
    out: Out = None,
    training: TrainingOptions,
    loading: LoadingOptions,
    open_report: Open = False,
    as_json: Json = False,
) -> None:
    """Finetune every arm, ask, compare with the controls, and write a report."""
    started = time.perf_counter()
    from spillover.runs import run as execute

    with Stages() as stages:
        finished = execute(
            experiment,
            model,
            seeds=range(seed, seed + seeds),
            contexts=context or (),
            out=out,
            training=training.changes,
            split=split,
            loading=loading.loading,
            progress=stages,
        )
    show_finished(finished, time.perf_counter() - started, open_report=open_report, as_json=as_json)


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(help="The folder to write: new or empty.")],
    treatment: Annotated[
        str | None,
        typer.Option(help=f"Rows: a .jsonl, .csv or .tsv file, or {DATASET}."),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="NAME=ROWS; may be given more than once, the first is the headline's."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a commented folder of your own to start from; it runs as it is."""
    from spillover.authoring.new import write_experiment

    made = write_experiment(folder, treatment, _named(control or []))
    if as_json:
        print_json({"folder": str(made.folder), "arms": made.arms, "warnings": made.warnings})
        return
    from spillover.authoring.show import show_new

    show_new(made)


def _named(given: list[str]) -> dict[str, str]:
    """NAME=ROWS, each name once."""
    found: dict[str, str] = {}
    for entry in given:
        name, _, rows = entry.partition("=")
        if not rows:
            raise InputError(f"--control {entry!r}: expected NAME=ROWS, such as modern=modern.csv")
        if name in found:
            raise InputError(f"--control: two have the name {name!r}; rename one")
        found[name] = rows
    return found


@app.command()
@takes_options
def check(
    experiment: ExperimentName,
    *,
    model: Model = "organism",
    match: Annotated[
        bool, typer.Option("--match", help="Propose placebo choices from lists of candidates.")
    ] = False,
    candidates: Annotated[
        Path | None,
        typer.Option(help="Those lists, for --match; by default candidates.toml in the folder."),
    ] = None,
    loading: LoadingOptions,
    as_json: Json = False,
) -> None:
    """Look at an experiment as a model sees it before it is run: tokens, loss, choices."""
    from spillover.authoring.check import check_experiment

    with Stages() as stages:
        found = check_experiment(
            experiment,
            model,
            loading=loading.loading,
            candidates=candidates,
            match=match or candidates is not None,
            progress=stages,
        )
    if as_json:
        print_json(found.content)
        return
    from spillover.authoring.show import show_check

    show_check(found)


for command in (cli_sweeps.sweep, cli_sweeps.grid, cli_sweeps.suite):
    app.command()(takes_options(command))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    open_report: Open = False,
    as_json: Json = False,
) -> None:
    """Show a finished run's result and where its report is."""
    from spillover.runs import open_run

    finished = open_run(folder)
    if as_json:
        print_json({"report": str(finished.report), "summary": finished.summary})
    else:
        show_run(finished)
        status(f"Report: {finished.report}")
    if open_report:
        open_page(finished.report)


@organism.command("train")
def organism_train(
    seed: Seed = 0,
    world: Annotated[str, typer.Option(help="What it is to know: see `spillover list`.")] = "eras",
    unlinked: Annotated[
        bool, typer.Option(help="Cut the link that the world's experiments rest on.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes.")] = Path("organism"),
    as_json: Json = False,
) -> None:
    """Train an organism from scratch (5 to 20 minutes on two cores)."""
    from spillover.organism import check_target, train_checkpoint

    check_target(out)
    with Stages() as stages:
        train_checkpoint(out, seed=seed, world=world, linked=not unlinked, progress=stages)
    if as_json:
        print_json({"checkpoint": str(out)})
    else:
        status(f"Checkpoint: {out}  (examine it with `spillover organism card --model {out}`)")


@organism.command("card")
def organism_card(
    model: Annotated[str, typer.Option(help="An organism's name or folder.")] = "organism",
    as_json: Json = False,
) -> None:
    """Print and check what an organism knows."""
    from spillover.organism import examine_checkpoint

    checks = examine_checkpoint(model)
    if as_json:
        print_json({"model": model, "checks": [vars(c) | {"passed": c.passed} for c in checks]})
    else:
        needed = [f"≥ {c.needed:.2f}" if c.needed else "–" for c in checks]
        rows = [
            (c.name, f"{c.value:.3f}", str(c.cases), need, "yes" if c.passed else "NO")
            for c, need in zip(checks, needed, strict=True)
        ]
        show_table(f"What {model} knows", ("what", "share", "cases", "needed", "passed"), rows)
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Exits with 0, 1 (failed while running), 2 (bad input), 130 (Ctrl-C) or 143 (SIGTERM).
    """
    command = (sys.argv[1:] if arguments is None else arguments)[:1]
    last_words = STOPPED_RUN if command and command[0] in RESUMED else "stopped"
    try:
        with stoppable(last_words):
            app(arguments, standalone_mode=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SpilloverError as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(1)
    except Stopped as stopped:
        print(last_words, file=sys.stderr)
        sys.exit(stopped.code)
