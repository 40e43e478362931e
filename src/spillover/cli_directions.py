"""Commands for directions: find the one behind refusals, fit one to any contrast, take it out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spillover.errors import DirectionError, InputError, check_writable, first_problem
from spillover.options import DATASET, Json, LoadingOptions, Model, Open, Out, takes_options
from spillover.terminal import Stages, open_page, print_json, show_table, status

if TYPE_CHECKING:
    from spillover.directions import Direction
    from spillover.directions.refusal import Refusal, Refusing

directions = typer.Typer(
    help="Directions of the residual stream: find one, test it, take it out of the weights.",
    no_args_is_help=True,
)
SIDE = f"A file (.txt, .csv, .tsv, .json, .jsonl) or {DATASET}"
Column = Annotated[
    str | None, typer.Option(help="The column that holds the prompts, where it is not a usual one.")
]
Folder = Annotated[Path, typer.Option("--direction", help="The folder of a saved direction.")]


@dataclass(frozen=True)
class CapabilityOptions:
    """What else a model is asked; see `spillover.directions.harness.Capabilities`."""

    capabilities: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK[,TASK...]",
            help="Tasks of lm-eval to ask before and after, or task files (.yaml); repeatable.",
        ),
    ] = None
    capabilities_limit: Annotated[
        int | None, typer.Option(help="Questions of each task. By default all.")
    ] = None
    capabilities_chat: Annotated[
        bool,
        typer.Option("--capabilities-chat", help="Put them through the model's chat template."),
    ] = False

    @property
    def settings(self) -> dict[str, Any]:
        """By the names in `Capabilities`."""
        names = (name.strip() for given in self.capabilities or () for name in given.split(","))
        chat, limit = self.capabilities_chat, self.capabilities_limit
        return {"tasks": tuple(dict.fromkeys(names)), "limit": limit, "chat": chat}


@dataclass(frozen=True)
class ChoiceOptions:
    """How a direction is chosen among candidates; see `spillover.directions.refusal.Refusing`."""

    rule: Annotated[
        str,
        typer.Option(help="How to choose: tokens (the paper's rule), or cosine (without them)."),
    ] = "tokens"
    token: Annotated[
        list[str] | None,
        typer.Option(help="How refusals begin; repeatable. By default as the model's own do."),
    ] = None
    phrases: Annotated[
        Path | None, typer.Option(help="Phrases of refusals, one per line, instead of the usual.")
    ] = None
    layers: Annotated[
        float, typer.Option(help="Share of the layers, from the first on, for candidates.")
    ] = 0.8
    induce: Annotated[float, typer.Option(help="Least refusal score under addition, nats.")] = 0.0
    kl: Annotated[float, typer.Option(help="Largest KL under ablation, nats.")] = 0.1
    max_tokens: Annotated[int, typer.Option(help="Tokens of the longest answer.")] = 64
    every: Annotated[
        bool | None,
        typer.Option(
            "--every/--no-every", help="Compute discarded candidates too (small models: yes)."
        ),
    ] = None

    def how(self, tasks: CapabilityOptions) -> Refusing:
        """By the names in `Refusing`."""
        return _how(
            rule=self.rule,
            thresholds={"layers": self.layers, "induce": self.induce, "kl": self.kl},
            tokens=tuple(self.token or ()),
            phrases=self.phrases,
            max_tokens=self.max_tokens,
            every=self.every,
            capabilities=tasks.settings,
        )


@directions.command()
@takes_options
def refusal(
    *,
    model: Model = "organism",
    prompts: Annotated[
        str | None,
        typer.Option(help=f"{SIDE}: what it should refuse. Only the organism brings its own."),
    ] = None,
    harmless: Annotated[str | None, typer.Option(help="The same: what it should not.")] = None,
    column: Column = None,
    choice: ChoiceOptions,
    tasks: CapabilityOptions,
    seed: Annotated[
        int, typer.Option(help="Of the parts that prompts are split in, and of controls.", min=0)
    ] = 0,
    out: Out = None,
    loading: LoadingOptions,
    open_report: Open = False,
    as_json: Json = False,
) -> None:
    """Find the direction behind a model's refusals, take it out, put it in, and measure."""
    from spillover.directions.refusal import find_refusal

    how = choice.how(tasks)
    with Stages() as stages:
        found = find_refusal(
            model,
            prompts=prompts,
            harmless=harmless,
            column=column,
            how=how,
            out=out,
            seed=seed,
            loading=loading.loading,
            progress=stages,
        )
    if as_json:
        print_json({"folder": str(found.folder), "report": str(found.report)} | found.found)
    else:
        _show(found)
    if open_report:
        open_page(found.report)


def _how(**given: Any) -> Refusing:
    from pydantic import ValidationError

    from spillover.directions.refusal import Refusing

    try:
        return Refusing.model_validate(given)
    except ValidationError as error:
        raise InputError(f"options: {first_problem(error)}") from None


def _show(found: Refusal) -> None:
    """What is refused in each condition, then in sentences."""
    groups = list(dict.fromkeys(row["group"] for row in found.found["rates"]))
    shares: dict[str, dict[str, str]] = {}
    for row in found.found["rates"]:
        shares.setdefault(row["condition"], {})[row["group"]] = f"{row['refused']:.2f}"
    rows = [
        (condition, *(of.get(group, "–") for group in groups)) for condition, of in shares.items()
    ]
    show_table("Share refused", ("condition", *groups), rows)
    _show_capabilities(found.found)
    about = found.found["direction"]
    status(
        f"Direction: position {about['position']}, layer {about['layer']} of {about['layers']} "
        f"({', '.join(f'{name} {value:.3g}' for name, value in about['scores'].items())})"
    )
    said = found.found["verdict"]
    for sentence in (*said["sentences"], *(f"caution: {doubt}" for doubt in said["doubts"])):
        status(sentence)
    if found.found["edit"]:
        status(f"warning: {found.found['edit']}")
    status(f"Report: {found.report}")


def _show_capabilities(found: dict[str, Any]) -> None:
    """What tasks say in each condition; of groups with a score of their own, only that."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in found["capabilities"]:
        if not row["within"]:
            line = lines.setdefault((row["task"], row["metric"]), {"n": f"{row['n']}"})
            line[row["condition"]] = f"{row['value']:.3f}"
    if lines:
        names = list(dict.fromkeys(name for line in lines.values() for name in line))
        rows = [(*task, *(line.get(name, "–") for name in names)) for task, line in lines.items()]
        show_table(f"lm-eval {found['harness']['lm_eval']}", ("task", "metric", *names), rows)


@directions.command()
@takes_options
def fit(
    *,
    model: Model = "organism",
    positive: Annotated[str, typer.Option(help=f"{SIDE}: the prompts that it points to.")],
    negative: Annotated[str, typer.Option(help="The same: the prompts that it points from.")],
    column: Column = None,
    layer: Annotated[int | None, typer.Option(help="Where, instead of the best.")] = None,
    position: Annotated[int | None, typer.Option(help="Counted from the end: -1 is last.")] = None,
    out: Out = None,
    loading: LoadingOptions,
    as_json: Json = False,
) -> None:
    """Fit a direction to any contrast of prompts."""
    from spillover.directions.direction import check_target
    from spillover.directions.fitting import fit as fit_direction
    from spillover.directions.sides import conversations
    from spillover.models.loading import load_source
    from spillover.models.sources import resolve

    folder = out or Path("runs") / f"direction-{_named(model, positive, negative)}"
    contrast = f"{positive} - {negative}"
    check_writable(folder)
    sides = [conversations(side, column) for side in (positive, negative)]
    source = resolve(model)
    check_target(folder, contrast, source.identity)
    with Stages() as stages:
        stages("load", 0, 1)
        loaded = load_source(source, loading.loading)
        found = fit_direction(
            loaded,
            *sides,
            layer=layer,
            position=position,
            contrast=contrast,
            progress=lambda done, total: stages("fit", done, total),
        )
        found.save(folder)
    if as_json:
        print_json({"folder": str(folder)} | _facts(found))
        return
    facts = _facts(found)
    show_table(f"Direction in {model}", tuple(facts), [tuple(map(_cell, facts.values()))])
    status(f"Direction: {folder}")


def _named(model: str, *sides: str) -> str:
    """A model and the sides of a contrast, as a part of a folder's name."""
    return "-".join([Path(model).name, *(re.sub(r"\W+", "-", Path(side).stem) for side in sides)])


def _facts(found: Direction) -> dict[str, Any]:
    place = {"layer": found.layer, "position": found.position, "length": found.norm}
    return place | found.scores


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


@directions.command("apply")
@takes_options
def apply_direction(
    *,
    direction: Folder,
    model: Model = "organism",
    out: Annotated[Path, typer.Option(help="The folder of the edited checkpoint; new.")],
    loading: LoadingOptions,
    as_json: Json = False,
) -> None:
    """Write a copy of a model whose weights write nothing along a direction; its card says so."""
    from spillover.directions import load_direction, orthogonalize, write_edited
    from spillover.models.loading import load_source

    found = load_direction(direction)
    source = _source_of(model, found)
    with Stages() as stages:
        stages("load", 0, 1)
        loaded = load_source(source, loading.loading)
        stages("edit", 0, 1)
        folder = write_edited(orthogonalize(loaded, found), out)
    if as_json:
        print_json({"checkpoint": str(folder)})
    else:
        status(f"Checkpoint: {folder}  (its README.md says what was done)")


def _source_of(model: str, found: Direction) -> Any:
    """The model that a direction belongs to.

    Raises:
        DirectionError: when it was computed from another one.
    """
    from spillover.directions.prompts import WORLD
    from spillover.models.sources import resolve

    tried = [resolve(model), resolve(model, world=WORLD)]
    fitting = [source for source in tried if source.identity == found.model]
    if not fitting:
        raise DirectionError(
            f"{model}: the direction was computed from another model (its identity is "
            f"{found.model}, this one's {tried[0].identity}); name that one"
        )
    return fitting[0]
