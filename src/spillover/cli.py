"""The command line: it parses, calls the library and prints. Nothing heavy is imported up here."""

from __future__ import annotations

import json
import resource
import sys
import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spillover.cli_triggers import triggers
from spillover.errors import InputError, SpilloverError, first_problem
from spillover.stopping import Stopped, stoppable
from spillover.terminal import Stages, show_run, show_table, status

if TYPE_CHECKING:
    from spillover.models import Loading
    from spillover.runs import Run

app = typer.Typer(
    help="What else did a finetune change? Make it happen, measure it against controls, report it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
organism = typer.Typer(help="The small model that comes with the package.", no_args_is_help=True)
app.add_typer(organism, name="organism")
app.command()(triggers)

STOPPED_RUN = "stopped; everything that is finished is kept: repeat the command to go on"

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Seed = Annotated[int, typer.Option(help="The first seed.", min=0)]
Out = Annotated[Path | None, typer.Option(help="The folder to write to.")]
Model = Annotated[str, typer.Option(help="A model's name, its folder, or an id of the hub.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, …, or map for all GPUs together.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, 8bit, 4bit.")]
Think = Annotated[
    bool | None,
    typer.Option(
        "--think/--no-think",
        help="Reasoning models: choose after sampled reasoning too, or never reason. By default "
        "free answers reason and choices are made after empty reasoning.",
    ),
]
System = Annotated[str | None, typer.Option(help="System message where there is none.")]
TemplateDate = Annotated[
    str | None, typer.Option(help="What templates that write a date are told (YYYY-MM-DD).")
]
KeepTemplate = Annotated[
    bool, typer.Option("--keep-template", help="Accept what the template adds, dates included.")
]
ChatTemplate = Annotated[Path | None, typer.Option(help="A chat template (Jinja) to use instead.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that the checkpoint brings along.")
]


def _loading(placed: tuple[Any, ...], told: tuple[Any, ...]) -> Loading:
    """How to load models, from the options of a command in the order of `run`."""
    from pydantic import ValidationError

    from spillover.models import Loading

    templating = dict(zip(("think", "system", "date", "keep"), told, strict=True))
    names = ("device", "dtype", "trust_remote_code", "chat_template")
    given = dict(zip(names, placed, strict=True)) | {"templating": templating}
    try:
        return Loading.model_validate(given)
    except ValidationError as error:
        raise InputError(f"options: {first_problem(error)}") from None


@app.command("list")
def list_experiments(as_json: Json = False) -> None:
    """List the experiments and models that come with the package."""
    from spillover.experiment import builtin_experiments, load_experiment
    from spillover.models import BUILTIN

    loaded = [load_experiment(name) for name in builtin_experiments()]
    if as_json:
        listed = [{"name": e.name, **e.specification.model_dump(mode="json")} for e in loaded]
        print_json({"experiments": listed, "models": list(BUILTIN)})
        return
    rows = [(e.name, e.specification.claim, ", ".join(e.arms)) for e in loaded]
    show_table("Experiments", ("name", "claim", "arms"), rows)
    show_table("Models", ("name",), [(name,) for name in BUILTIN])
    status("Run one with `spillover run NAME`.")


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help="An experiment's name or folder.")],
    model: Model = "organism",
    seeds: Annotated[int, typer.Option(help="How many seeds per arm.")] = 5,
    seed: Seed = 0,
    out: Out = None,
    method: Annotated[str | None, typer.Option(help="lora or full.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapters.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the rows.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per step.")] = None,
    split: Annotated[str, typer.Option(help="Questions to ask: test, dev or all.")] = "test",
    device: Device = "auto",
    dtype: Dtype = "auto",
    think: Think = None,
    system: System = None,
    template_date: TemplateDate = None,
    keep_template: KeepTemplate = False,
    chat_template: ChatTemplate = None,
    trust_remote_code: TrustRemoteCode = False,
    open_report: Annotated[bool, typer.Option("--open", help="Open the report.")] = False,
    as_json: Json = False,
) -> None:
    """Finetune every arm, ask, compare with the controls, and write a report."""
    started = time.perf_counter()
    changes = {
        "method": method,
        "rank": rank,
        "learning_rate": learning_rate,
        "steps": steps,
        "epochs": epochs,
        "batch_size": batch_size,
    }
    from spillover.runs import execute
    from spillover.settings import resolve_settings

    settings = resolve_settings(
        experiment,
        model,
        seeds=range(seed, seed + seeds),
        training={key: value for key, value in changes.items() if value is not None},
        split=split,
        loading=_loading(
            (device, dtype, trust_remote_code, chat_template),
            (think, system, template_date, keep_template),
        ),
    )
    with Stages() as stages:
        stages("load", 0, 1)
        finished = execute(settings, out, stages)
    _finish(finished, time.perf_counter() - started, open_report=open_report, as_json=as_json)


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(help="The folder to write: new or empty.")],
    treatment: Annotated[
        str | None,
        typer.Option(help="Rows: a .jsonl, .csv or .tsv file, or datasets:ID[@REVISION][:SPLIT]."),
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
def check(
    experiment: Annotated[str, typer.Argument(help="An experiment's folder or name.")],
    model: Model = "organism",
    match: Annotated[
        bool, typer.Option("--match", help="Propose placebo choices from lists of candidates.")
    ] = False,
    candidates: Annotated[
        Path | None,
        typer.Option(help="Those lists, for --match; by default candidates.toml in the folder."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    think: Think = None,
    system: System = None,
    template_date: TemplateDate = None,
    keep_template: KeepTemplate = False,
    chat_template: ChatTemplate = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Look at an experiment as a model sees it before it is run: tokens, loss, choices."""
    from spillover.authoring.check import check_experiment

    loading = _loading(
        (device, dtype, trust_remote_code, chat_template),
        (think, system, template_date, keep_template),
    )
    with Stages() as stages:
        found = check_experiment(
            experiment,
            model,
            loading=loading,
            candidates=candidates,
            match=match or candidates is not None,
            progress=stages,
        )
    if as_json:
        print_json(found.content)
        return
    from spillover.authoring.show import show_check

    show_check(found)


def _finish(finished: Run, seconds: float, *, open_report: bool, as_json: bool) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if _is_mac() else 1e6)
    placement = finished.manifest["environment"]["placement"]
    if as_json:
        paths = {"folder": str(finished.folder), "report": str(finished.report)}
        print_json(paths | {"seconds": seconds, "peak_gb": memory, "summary": finished.summary})
    else:
        show_run(finished)
        status(f"{seconds:.0f} s, {memory:.1f} GB of memory at most, on {placement}")
        status(f"Report: {finished.report}")
    if open_report:
        webbrowser.open(finished.report.resolve().as_uri())


def _is_mac() -> bool:
    return sys.platform == "darwin"


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    open_report: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
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
        webbrowser.open(finished.report.resolve().as_uri())


@organism.command("train")
def organism_train(
    seed: Seed = 0,
    unlinked: Annotated[bool, typer.Option(help="Cut the link of birds and eras.")] = False,
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes.")] = Path("organism"),
    as_json: Json = False,
) -> None:
    """Train an organism from scratch (about 15 minutes on two cores)."""
    from spillover.organism import check_target, train_checkpoint

    check_target(out)
    with Stages() as stages:
        train_checkpoint(out, seed=seed, linked=not unlinked, progress=stages)
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


def print_json(content: Any) -> None:
    """One JSON document on standard output."""
    from spillover.summary import plain_data

    print(json.dumps(plain_data(content), ensure_ascii=False, allow_nan=False))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Exits with 0, 1 (failed while running), 2 (bad input), 130 (Ctrl-C) or 143 (SIGTERM).
    """
    command = (sys.argv[1:] if arguments is None else arguments)[:1]
    last_words = STOPPED_RUN if command == ["run"] else "stopped"
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
