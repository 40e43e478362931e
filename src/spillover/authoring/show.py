"""What `spillover new` and `spillover check` print."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from spillover.authoring.cautions import MOST_CASES, Caution
from spillover.authoring.check import Check, Example
from spillover.authoring.match import Match
from spillover.authoring.new import NewExperiment
from spillover.terminal import show_table, status

MOST = 900
"""Characters of an example that are shown."""
LEARNT, OTHER = "bold green", "dim"
OPEN, CLOSE = "⟦", "⟧"


def show_new(made: NewExperiment) -> None:
    """What was written, what to know about it, and what to do next."""
    for arm, rows in made.arms.items():
        status(f"{made.folder / 'train' / arm}.jsonl: {rows} rows")
    for name, message in made.warnings.items():
        status(f"warning {name}: {message}")
    folder = shlex.quote(made.place)
    status("Put your claim into experiment.toml and your questions into questions.toml. Then")
    status(f"  spillover check {folder}")
    status(f"  spillover run {folder}")


def show_check(found: Check) -> None:
    """Arms, examples, template, warnings, proposals; the verdict is the last line."""
    _show_arms(found)
    _show_examples(found.examples)
    _show_template(found)
    for warning in found.warnings:
        _show_warning(warning)
    for match in found.matches:
        _show_match(match)
    if found.problem:
        status(f"mend this first, a run is refused: {found.problem}")
        return
    number = len(found.warnings)
    count = f"{number} warning{'s' if number > 1 else ''}, but " if number else ""
    status(f"{count}ready to run: {found.command}")


def _show_arms(found: Check) -> None:
    rows: list[tuple[str, ...]] = [
        (
            arm.arm,
            str(arm.rows),
            f"{arm.tokens:,}",
            f"{arm.tokens / arm.rows:.1f}",
            str(arm.longest),
            f"{arm.loss_tokens:,}",
            f"{found.steps} × {found.batch_size}",
        )
        for arm in found.arms
    ]
    rows += [(arm, f"{len(names)} ready", *["–"] * 5) for arm, names in found.ready.items()]
    columns = ("arm", "rows", "tokens", "mean", "longest", "with loss", "steps × rows")
    show_table(f"{found.experiment} as {found.model} reads it", columns, rows)
    for arm, names in found.ready.items():
        status(f"Ready models of {arm}: {', '.join(names)}")


def _show_examples(examples: Sequence[Example]) -> None:
    console = Console(soft_wrap=True)
    plain = not console.is_terminal or console.no_color
    if examples:
        legend = f"between {OPEN} and {CLOSE}" if plain else "in green"
        status(f"Rows of the treatment as rendered; tokens {legend} carry loss:")
    for example in examples:
        status(f"  {example.place}")
        console.print(render(example, plain=plain), highlight=False)


def render(example: Example, *, plain: bool) -> Text:
    """An example with the text that carries loss coloured or between brackets; cut when long."""
    text, left = Text(), MOST
    for part, learnt in example.segments:
        shown = part[: max(left, 0)]
        left -= len(part)
        if plain:
            text.append(f"{OPEN}{shown}{CLOSE}" if learnt and shown else shown)
        else:
            text.append(shown, style=LEARNT if learnt else OTHER)
    if left < 0:
        text.append(f" … {-left} characters more")
    return text


def _show_template(found: Check) -> None:
    written = found.injection
    said = f"adds {written.text!r} to every prompt" if written else "adds nothing to prompts"
    moving = ", with today's date pinned" if written and written.moving else ""
    status(f"Chat template: {said}{moving}.")
    status(f"Dated experiment: {'yes' if found.dated else 'no'} (`dated` overrules).")


def _show_warning(warning: Caution) -> None:
    status(f"warning {warning.name}: {warning.message}")
    for case in warning.cases[:MOST_CASES]:
        status(f"    {case}")
    if len(warning.cases) > MOST_CASES:
        status(f"    and {len(warning.cases) - MOST_CASES} more (--json lists all)")


def _show_match(match: Match) -> None:
    if not match.after:
        status(f"match {match.question}: too few candidates can be used ({match.usable}); add more")
        return
    before = f"{_apart(match.before)} before, " if match.before else ""
    status(f"match {match.question}: {before}{_apart(match.after)} after, per pair")
    status(f"    {match.line}")


def _apart(distance: tuple[float, float]) -> str:
    return f"{distance[0]:.1f} nats and {distance[1]:.1f} tokens"
