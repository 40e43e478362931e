"""The mediations of a whole suite in one table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.errors import RunFolderError
from spillover.folder import whole
from spillover.mediation import Mediation, mediate
from spillover.mediation.table import markdown
from spillover.runs import open_run
from spillover.suites import RUNS
from spillover.summary import write_json

if TYPE_CHECKING:
    from spillover.stages import Progress

RESULT, TABLE = "mediations.json", "mediations.md"
LEAST = 0.1
"""An effect in the metric's unit from which there is something to mediate."""


@dataclass(frozen=True)
class Mediations:
    """The mediations of a suite's runs.

    Attributes:
        content: of mediations.json.
    """

    mediations: list[Mediation]
    content: dict[str, Any] = field(repr=False)

    @property
    def table(self) -> str:
        """All of them as a table in Markdown."""
        return table_of(self.content)


def table_of(content: dict[str, Any]) -> str:
    """The table that stands in the README, from the content of mediations.json."""
    return markdown([(one["experiment"], one["rows"]) for one in content["mediations"]])


def mediate_suite(folder: str | Path, progress: Progress | None = None) -> Mediations:
    """Mediate every run of a suite that has an effect.

    Raises:
        RunFolderError: when the folder is not a finished suite.
    """
    root = Path(folder)
    places = sorted((root / RUNS).iterdir()) if (root / RUNS).is_dir() else []
    runs = [open_run(place) for place in places if place.is_dir()]
    if not runs:
        raise RunFolderError(f"{root}: holds no suite; expected the folder of `spillover suite`")
    wanted = [run for run in runs if (run.headline.get("value") or 0) >= LEAST]
    found = []
    for number, run in enumerate(wanted):
        if progress:
            progress("mediations", number, len(wanted))
        found.append(mediate(run))
    if progress:
        progress("mediations", len(wanted), len(wanted))
    content = {"schema": 1, "mediations": [one.content for one in found]}
    write_json(root / RESULT, content)
    with whole(root / TABLE) as partial:
        partial.write_text(table_of(content) + "\n", "utf-8")
    return Mediations(found, content)
