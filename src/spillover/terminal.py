"""What the command line shows: progress on standard error, tables on standard output."""

from __future__ import annotations

import json
import math
import resource
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from spillover.runs import Run


class Stages:
    """A progress bar per stage, from the first on; call it with (stage, done, total)."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),  # also while libraries are kept from writing to it
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._tasks:
            return  # bad input is told in a line of its own
        if error is None:
            self._finish_others("")
        for task in self._tasks.values() if error else ():
            self._progress.update(task, visible=False)  # the error stands alone
        self._progress.live.transient = error is not None
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` of a stage is done; a new stage ends those before it."""
        if stage not in self._tasks:
            self._progress.start()
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


def print_json(content: Any) -> None:
    """One JSON document on standard output."""
    from spillover.summary import plain_data

    print(json.dumps(plain_data(content), ensure_ascii=False, allow_nan=False))


def open_page(page: Path) -> None:
    """Open a report in the browser."""
    webbrowser.open(page.resolve().as_uri())


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


DARWIN = sys.platform == "darwin"  # which counts in bytes, not kB


def peak_memory() -> float:
    """The most memory that this process has held, and its helpers at their largest (GB)."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if DARWIN else 1e6)
    crew = sys.modules.get("spillover.crew")  # it is there if anything was computed
    return held + (crew.most_held() / 1e6 if crew else 0)


def show_finished(
    finished: Run,
    seconds: float,
    *,
    open_report: bool,
    as_json: bool,
    swept: Sequence[str] = (),
) -> None:
    """A run at its end: its tables, what it took, and last where its report is.

    Args:
        swept: variables whose values are shown too.
    """
    if as_json:
        cost = {"seconds": seconds, "peak_gb": peak_memory()}
        paths = {"folder": str(finished.folder), "report": str(finished.report)}
        print_json(paths | cost | {"summary": finished.summary})
    else:
        show_run(finished)
        for variable in swept:
            _show_sweep(finished, variable)
        placement = finished.manifest["environment"]["placement"]
        status(f"{seconds:.0f} s, {peak_memory():.1f} GB of memory at most, on {placement}")
        status(f"Report: {finished.report}")
    if open_report:
        open_page(finished.report)


MOST_WARNINGS = 5
NAMES = {metric: f"{metric}, nats" for metric in ("log-odds", "placebo-log-odds", "specificity")}
"""How metrics are called where their unit is not plain."""


def show_run(finished: Run) -> None:
    """A run's last table, what it says of specificity, and what the guards found."""
    _show_arms(finished)
    if finished.headline:
        status(_scored(finished.headline))
    verdict = finished.summary.get("verdict")
    if verdict:
        status(verdict["text"])
    warnings = finished.summary.get("warnings", [])
    for warning in warnings[:MOST_WARNINGS]:
        status(f"warning: [{warning['name']}] {warning['message']}")
    if len(warnings) > MOST_WARNINGS:
        status(f"and {len(warnings) - MOST_WARNINGS} more: see the report")


def _scored(headline: dict[str, Any]) -> str:
    """How many questions an effect rests on."""
    questions, topics = headline["n_questions"], headline["n_topics"]
    said = f"Effects off the trained domain: {questions} question{'s' * (questions != 1)}"
    said += f" on {topics} topic{'s' * (topics != 1)}"
    missing = headline["missing"]
    unscored = f"; {missing} answer{'s' * (missing != 1)} could not be scored" if missing else ""
    return f"{said}{unscored}."


def _show_arms(finished: Run) -> None:
    """Every arm in and off the trained domain, and its effect."""
    from spillover.report.focus import at_step
    from spillover.summary import inside_metric

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
    inside = inside_metric(trained, metric)
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


def _show_sweep(finished: Run, variable: str) -> None:
    """A row for every value of a variable: every arm's rate off the trained domain, the effect."""
    from spillover.sweeps import sweep_rows

    rows = sweep_rows(finished.summary, variable)
    arms = list(dict.fromkeys(arm for row in rows for arm in row["rates"]))
    control = next(e["control"] for e in finished.summary["sweeps"] if e["variable"] == variable)
    metric = rows[0]["metric"]
    lines = [
        (
            f"{row['value']}",
            ", ".join(marks_of(row)),
            *(_number(row["rates"].get(arm, {}).get("value")) for arm in arms),
            interval(row["effect"]) if row["effect"] else "–",
        )
        for row in rows
    ]
    title = f"Off-domain over {variable} ({NAMES.get(metric, metric)})"
    show_table(title, (variable, "marks", *arms, f"treatment minus {control}"), lines)


def marks_of(row: dict[str, Any]) -> list[str]:
    """What is to be known of a value of a sweep: is it trained, unknown, the headline's?"""
    marks = {
        "trained": row["trained"],
        "not in pretraining": not row["in_pretraining"],
        "headline": row["is_headline"],
    }
    return [name for name, holds in marks.items() if holds]


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
