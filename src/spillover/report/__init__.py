"""The report of a run: its figures, and one self-contained page that opens from disk.

Nothing is estimated here. Values and intervals come from the run's tables; only the means per topic
that the charts and the table of choices show are formed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from spillover.report.charts import charts
from spillover.report.focus import Record, records

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pandas as pd

__all__ = ["ReportData", "charts", "write_report"]


@dataclass(frozen=True)
class ReportData:
    """All that a report shows.

    Attributes:
        title: the experiment's title.
        claim: what the experiment claims, in a sentence.
        source: where the experiment comes from, as a citation.
        model: name of the base model.
        headline_control: the arm that the headline is taken against.
        trait: what the trait is called, such as "19th-century"; likewise the next two.
        baseline_name: what the baseline answers are called.
        placebo_name: what the placebo answers are called.
        summary: the content of ``summary.json``; ``headline`` is the id of an effect.
        effects: treatment minus control, a row per contrast, questions, context, step and metric.
        rates: a row per arm, questions, context, step and metric.
        grades: a row per answer; the base model has seed -1.
        texts: the sampled answers.
        choices: the listed choices, with their length and log-probability under the base model.
        manifest: how the run was made.
    """

    title: str
    claim: str
    source: str
    model: str
    headline_control: str
    trait: str
    baseline_name: str
    placebo_name: str
    summary: dict[str, Any]
    effects: pd.DataFrame
    rates: pd.DataFrame
    grades: pd.DataFrame
    texts: pd.DataFrame
    choices: pd.DataFrame
    manifest: dict[str, Any]

    @cached_property
    def effect_records(self) -> list[Record]:
        """The rows of `effects` as dictionaries."""
        return records(self.effects)

    @cached_property
    def rate_records(self) -> list[Record]:
        """The rows of `rates` as dictionaries."""
        return records(self.rates)


def write_report(
    folder: Path, data: ReportData, progress: Callable[[str], None] | None = None
) -> Path:
    """Write ``figures/*.png|svg|pdf`` and ``report.html`` into a folder, without any network.

    Args:
        folder: the run folder; made if it does not exist.
        data: what to show.
        progress: called with a short phrase before each part of the work.

    Returns:
        The path of ``report.html``.
    """
    from spillover.report.charts import figures
    from spillover.report.draw import Drawing
    from spillover.report.figure import side_by_side, vegalite_version
    from spillover.report.page import render

    say = progress or (lambda _: None)
    say("figures")
    with Drawing() as drawing:
        drawn = figures(data)
        whole = {name: chart.to_dict() for name, chart in side_by_side(drawn).items()}
        drawing.draw(whole, vegalite_version())
        say("page")
        path = folder / "report.html"
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        path.write_text(render(data, drawn), encoding="utf-8", errors="replace", newline="\n")
        for name, content in drawing.files().items():
            (folder / "figures" / name).write_bytes(content)
    return path
