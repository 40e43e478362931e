"""The command that looks at what a suffix does to the direction of refusal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spillover.options import Json, LoadingOptions, Model, Open, Out
from spillover.terminal import Stages, open_page, print_json, show_table, status

if TYPE_CHECKING:
    from spillover.directions.suffix_run import SuffixStudy


def suffix(
    *,
    model: Model = "organism",
    text: Annotated[
        str | None,
        typer.Option("--suffix", help="Its text; on organism-refusal one is searched for."),
    ] = None,
    direction: Annotated[
        Path | None, typer.Option(help="The folder of this model's direction of refusal.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompts that the model refuses: a file or datasets:ID.")
    ] = None,
    harmless: Annotated[
        str | None, typer.Option(help="Prompts to compare with; by default neutral ones.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="The column that holds the prompts.")] = None,
    tokens: Annotated[int, typer.Option(help="Length of a suffix that is searched for.")] = 6,
    controls: Annotated[int, typer.Option(help="Random suffixes to compare with.", min=1)] = 32,
    out: Out = None,
    seed: Annotated[int, typer.Option(help="Of the search and the random suffixes.", min=0)] = 0,
    loading: LoadingOptions,
    open_report: Open = False,
    as_json: Json = False,
) -> None:
    """Look at what an adversarial suffix does to the direction of refusal."""
    from spillover.directions.suffix import suffix_search
    from spillover.directions.suffix_run import study_suffix

    with Stages() as stages:
        found = study_suffix(
            model,
            suffix=text,
            direction=direction,
            prompts=prompts,
            harmless=harmless,
            column=column,
            search=suffix_search(tokens=tokens),
            controls=controls,
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


def _show(found: SuffixStudy) -> None:
    from spillover.report.suffix import NAMED, headline

    content = found.found
    rows = [
        (row["prompts"], NAMED[row["suffix"]], f"{row['probability']:.3f}", f"{row['refused']:.2f}")
        for row in content["refusal"]
    ]
    columns = ("prompts", "behind them", "probability of refusal", "share refused")
    show_table(f"Refusal by {content['model']}", columns, rows)
    heads = [
        (
            f"block {row['block']}, head {row['head']}",
            row["prompts"],
            f"{row['instruction']:.2f}",
            f"{row['suffix']:.2f}",
        )
        for row in content["attention"]
    ]
    if heads:
        named = ("head", "prompts", "to the instruction", "to the suffix")
        show_table("Attention of the heads that write the direction", named, heads)
    status(f"Suffix: {content['suffix']!r}")
    status(headline(content))
    status(f"Report: {found.report}")
