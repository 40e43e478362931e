"""What the command line shows: progress on standard error, tables on standard output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from spillover.runs import Run


class Stages:
    """A progress bar per stage; call it with (stage, done, total)."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish_others("")
        for task in self._tasks.values() if error else ():
            self._progress.update(task, visible=False)  # the error stands alone
        self._progress.live.transient = error is not None
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` of a stage is done; a new stage ends those before it."""
        if stage not in self._tasks:
            self._finish_others(stage)
            self._tasks[stage] = self._progress.add_task(stage, total=max(total, 1))
        self._progress.update(self._tasks[stage], completed=done, total=max(total, 1))

    def _finish_others(self, stage: str) -> None:
        for name, task in self._tasks.items():
            if name != stage:
                self._progress.update(task, completed=self._progress.tasks[task].total)
                self._progress.stop_task(task)


def status(line: str) -> None:
    """One plain line on standard output; paths are never wrapped or styled."""
    print(line)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = 120  # nobody's window to fit
    console.print(table)


MOST_WARNINGS = 5
NAMES = {metric: f"{metric}, nats" for metric in ("log-odds", "placebo-log-odds", "specificity")}
"""How metrics are called where their unit is not plain."""


def show_run(finished: Run) -> None:
    """A run's last table, what it says of specificity, and what the guards found."""
    _show_arms(finished)
    verdict = finished.summary.get("verdict")
    if verdict:
        status(verdict["text"])
    warnings = finished.summary.get("warnings", [])
    for warning in warnings[:MOST_WARNINGS]:
        status(f"warning: [{warning['name']}] {warning['message']}")
    if len(warnings) > MOST_WARNINGS:
        status(f"and {len(warnings) - MOST_WARNINGS} more: see the report")


def _show_arms(finished: Run) -> None:
    """Every arm in and off the trained domain, and its effect."""
    from spillover.report.focus import at_step

    rates, effects = finished.summary["rates"], finished.summary["effects"]
    step = finished.summary.get("step")
    if step is not None:  # summaries of earlier versions say none
        rates, effects = at_step(rates, step), [row for row in effects if row["step"] == step]
    arms = list(dict.fromkeys(row["arm"] for row in rates))
    metric = finished.headline.get("metric", "choice-mass")
    split = finished.headline.get("split", "test")
    places = [finished.summary["headline_context"], finished.summary["trained_context"]]
    headline, told = ((split, place) for place in places)
    trained = [row for row in rates if (row["split"], row["context"]["name"]) == told]
    rates = [row for row in rates if (row["split"], row["context"]["name"]) == headline]
    effects = [row for row in effects if (row["split"], row["context"]["name"]) == headline]
    inside = _inside_metric(trained, metric)
    rows = [
        (
            arm,
            _rate(trained, arm, "in", inside),
            _rate(rates, arm, "off", metric),
            _effect(effects, "treatment", arm, metric),
            _effect(effects, "treatment", arm, "specificity"),
        )
        for arm in arms
    ]
    in_domain = "in-domain" if inside == metric else f"in-domain ({NAMES.get(inside, inside)})"
    columns = (
        "arm",
        in_domain,
        "off-domain",
        "treatment minus arm",
        "specificity (nats)",
    )
    count = finished.summary["seeds"]
    seeds = f"{count} seed{'' if count == 1 else 's'}"
    title = f"{finished.summary['experiment']} on {finished.summary['model']}, {split} questions"
    show_table(f"{title}, {seeds} ({NAMES.get(metric, metric)})", columns, rows)


def _inside_metric(rates: list[dict[str, Any]], metric: str) -> str:
    """What the in-domain column shows: the first metric that some arm has a value of."""
    inside = (r for r in rates if r["domain"] == "in" and r["value"] is not None)
    found = {r["metric"] for r in inside}
    return next((m for m in ("judged", metric, "choice-mass", "log-odds") if m in found), metric)


def _rate(rows: list[dict[str, Any]], arm: str, domain: str, metric: str) -> str:
    wanted = {"arm": arm, "domain": domain, "group": None, "metric": metric}
    fitting = [r for r in rows if all(r[k] == v for k, v in wanted.items())]
    values = [r["value"] for r in fitting]
    return _number(values[-1]) if values else "–"


def _effect(rows: list[dict[str, Any]], one: str, other: str, metric: str) -> str:
    fitting = [
        r
        for r in rows
        if r["contrast"] == [one, other]
        and (r["domain"], r["group"], r["metric"]) == ("off", None, metric)
    ]
    return interval(fitting[-1]) if fitting else "–"


def interval(row: dict[str, Any]) -> str:
    """`+0.93 [0.90, 0.96]`; without the bracket where there is no interval."""
    if row["value"] is None:
        return "–"
    bracket = f" [{row['low']:.2f}, {row['high']:.2f}]" if row["low"] is not None else ""
    return f"{row['value']:+.2f}{bracket}"


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.2f}"
