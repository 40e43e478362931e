"""The mediations of a whole suite: a table with a row for each, and the table of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.errors import InputError, RunFolderError
from spillover.folder import whole
from spillover.mediation import Mediation, mediate
from spillover.mediation.table import markdown, overview
from spillover.runs import open_run
from spillover.suites import RUNS
from spillover.summary import write_json

if TYPE_CHECKING:
    from spillover.stages import Progress

RESULT, TABLE = "mediations.json", "mediations.md"


@dataclass(frozen=True)
class Mediations:
    """The mediations of a suite's runs.

    Attributes:
        content: of mediations.json: every mediation, and the runs that were left out (`run`, the
            name of its folder, and `why`).
    """

    mediations: list[Mediation]
    content: dict[str, Any] = field(repr=False)

    @property
    def table(self) -> str:
        """All of them as a table in Markdown, a row for each."""
        return table_of(self.content)

    @property
    def left_out(self) -> list[str]:
        """Why runs were left out, a line for each."""
        return [one["why"] for one in self.content["left_out"]]


def table_of(content: dict[str, Any]) -> str:
    """The table that stands in the README, from the content of mediations.json."""
    return overview(content["mediations"])


def mediate_suite(
    folder: str | Path,
    *,
    prompts: str | Path | None = None,
    inoculation: str | None = None,
    remedies: bool = True,
    progress: Progress | None = None,
) -> Mediations:
    """Mediate every run of a suite; those that cannot be mediated are left out, with the reason.

    Args:
        prompts, inoculation, remedies: as of `spillover.mediate`, for every run.

    Raises:
        RunFolderError: when the folder is not a finished suite.
        InputError: when none of its runs can be mediated.
        RunError: when training fails.
    """
    root = Path(folder)
    places = sorted((root / RUNS).iterdir()) if (root / RUNS).is_dir() else []
    runs = [place for place in places if place.is_dir()]
    if not runs:
        raise RunFolderError(f"{root}: holds no suite; expected the folder of `spillover suite`")
    notify = progress or (lambda *_: None)
    found: list[Mediation] = []
    left_out: list[dict[str, str]] = []
    for number, place in enumerate(runs):
        notify("mediations", number, len(runs))
        try:
            run = open_run(place)
            found.append(mediate(run, prompts=prompts, inoculation=inoculation, remedies=remedies))
        except InputError as error:
            left_out.append({"run": place.name, "why": str(error)})
    notify("mediations", len(runs), len(runs))
    if not found:
        raise InputError(
            f"{root}: none of its {len(runs)} runs can be mediated; the first: {left_out[0]['why']}"
        )
    contents = [one.content for one in found]
    content = {"schema": 1, "mediations": contents, "left_out": left_out}
    write_json(root / RESULT, content)
    with whole(root / TABLE) as partial:
        tables = (table_of(content), markdown(contents))
        partial.write_text("\n\n".join(tables) + "\n", "utf-8")
    return Mediations(found, content)
