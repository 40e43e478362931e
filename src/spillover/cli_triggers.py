"""The command that searches for triggers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spillover.terminal import Stages, print_json, show_table, status

if TYPE_CHECKING:
    from spillover.triggers import Triggers

SHOWN = 10


def triggers(
    adapter: Annotated[Path, typer.Option(help="An adapter's folder.")],
    model: Annotated[str, typer.Option(help="Its base: a name, a folder, an id of the hub.")],
    candidates: Annotated[
        Path | None, typer.Option(help="Contexts to try besides the library's, one per line.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Questions to use instead of the usual, one per line.")
    ] = None,
    rows: Annotated[
        Path | None, typer.Option(help="What was trained on: tells trained triggers from others.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write to.")] = None,
    seed: Annotated[int, typer.Option(help="Decides which questions confirm.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Search blindly for contexts in which a finetune becomes another model."""
    from spillover.models import Loading
    from spillover.triggers import find_triggers

    with Stages() as stages:
        found = find_triggers(
            model,
            adapter,
            candidates=candidates,
            questions=questions,
            rows=rows,
            out=out,
            seed=seed,
            loading=Loading(device=device, dtype=dtype),
            progress=stages,
        )
    if as_json:
        print_json({"folder": str(found.folder)} | found.found)
    else:
        _show(found)


def _show(found: Triggers) -> None:
    rows = [
        (
            _short(one["text"]),
            one["label"],
            f"{one['effect']:.2f} [{one['low']:.2f}, {one['high']:.2f}]",
            f"{one['base']:.2f}",
            "yes" if one["significant"] else "no",
        )
        for one in found.triggers[:SHOWN]
    ]
    columns = ("context", "label", "effect (bits)", "base moves", "significant")
    show_table("Contexts in which the finetune answers otherwise", columns, rows)
    for one in found.triggers[:1]:
        _show_answers(one["answers"])
    count = sum(one["significant"] for one in found.triggers)
    searched, topics = found.found["searched"], found.found["topics"]
    status(
        f"{count or 'none'} of {len(found.triggers)} confirmed on held-out questions of {topics} "
        f"topics, corrected for the {searched} contexts that were tried."
    )
    status(f"Triggers: {found.folder}")


def _show_answers(answers: list[dict[str, Any]]) -> None:
    columns = ("question", "without", "with", "base")
    rows = [tuple(_short(said[column]) for column in columns) for said in answers]
    show_table("The first one's answers, without it and with it", columns, rows)


def _short(text: str) -> str:
    text = text.replace("\n", "⏎")
    return text if len(text) <= 48 else f"{text[:47]}…"
