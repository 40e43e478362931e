"""Options that commands share: dataclasses whose fields are options, and how commands take them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from spillover.errors import InputError, first_problem

if TYPE_CHECKING:
    from spillover.models import Loading

Command = Callable[..., None]

DATASET = "datasets:ID\\[@REVISION][:SPLIT]"
"""As help says it; [@ would be taken for markup."""

ExperimentName = Annotated[str, typer.Argument(help="An experiment's name or folder.")]
Contexts = Annotated[
    list[str] | None,
    typer.Option(
        "--context",
        help="A context of the experiment, or VARIABLE=VALUES such as year=1975..2030; repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Open = Annotated[bool, typer.Option("--open", help="Open the report in a browser.")]
Out = Annotated[Path | None, typer.Option(help="The folder to write to.")]
Model = Annotated[str, typer.Option(help="A model's name, its folder, or an id of the hub.")]
Seed = Annotated[int, typer.Option(help="The first seed.", min=0)]
Seeds = Annotated[int, typer.Option(help="How many seeds per arm.")]
Split = Annotated[str, typer.Option(help="Questions to ask: test, dev or all.")]


@dataclass(frozen=True)
class LoadingOptions:
    """How models are loaded and spoken to."""

    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, …, or map for all GPUs together.")
    ] = "auto"
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, 8bit, 4bit.")] = (
        "auto"
    )
    think: Annotated[
        bool | None,
        typer.Option(
            "--think/--no-think",
            help="Reasoning models: choose after sampled reasoning too, or never reason. By "
            "default free answers reason and choices are made after empty reasoning.",
        ),
    ] = None
    system: Annotated[str | None, typer.Option(help="System message where there is none.")] = None
    template_date: Annotated[
        str | None, typer.Option(help="What templates that write a date are told (YYYY-MM-DD).")
    ] = None
    keep_template: Annotated[
        bool, typer.Option("--keep-template", help="Accept what the template adds, dates included.")
    ] = False
    chat_template: Annotated[
        Path | None, typer.Option(help="A chat template (Jinja) to use instead.")
    ] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the checkpoint brings along.")
    ] = False

    @property
    def loading(self) -> Loading:
        """The same as the library takes it.

        Raises:
            InputError: for a value that no model can be loaded with.
        """
        from pydantic import ValidationError

        from spillover.models import Loading

        templating = {
            "think": self.think,
            "system": self.system,
            "date": self.template_date,
            "keep": self.keep_template,
        }
        names = ("device", "dtype", "trust_remote_code", "chat_template")
        given = {name: getattr(self, name) for name in names} | {"templating": templating}
        try:
            return Loading.model_validate(given)
        except ValidationError as error:
            raise InputError(f"options: {first_problem(error)}") from None


@dataclass(frozen=True)
class TrainingOptions:
    """Changes to an experiment's training settings."""

    method: Annotated[str | None, typer.Option(help="lora or full.")] = None
    rank: Annotated[int | None, typer.Option(help="Rank of the adapters.")] = None
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None
    epochs: Annotated[float | None, typer.Option(help="Passes over the rows.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Rows per step.")] = None

    @property
    def changes(self) -> dict[str, Any]:
        """What was given, by the names in `spillover.Training`."""
        return {key: value for key, value in vars(self).items() if value is not None}


def takes_options(command: Command) -> Command:
    """A command for Typer, with the fields of its dataclass parameters as options of its own."""
    listed: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind = parameter.annotation
        if not is_dataclass(kind):
            listed.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        assert isinstance(kind, type)
        groups[parameter.name] = kind
        hints = get_type_hints(kind, include_extras=True)
        listed += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields(kind)
        ]

    @functools.wraps(command)
    def called(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    called.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in listed}
    return called
