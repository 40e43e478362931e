"""The files of a search for the direction of refusal, each written once what it holds is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.errors import RunFolderError, check_writable
from spillover.folder import is_unused, whole
from spillover.summary import plain_data, write_json

if TYPE_CHECKING:
    from spillover.directions.select import Selection

RESULT, ANSWERS, CANDIDATES, FOLDER, REPORT = (
    "refusal.json",
    "answers.parquet",
    "candidates.parquet",
    "direction",
    "report.html",
)


def check_target(folder: Path) -> None:
    """Make sure that the files of a search may be written to a folder.

    Raises:
        RunFolderError: when it holds something else than those of an earlier one, or cannot be
            written.
    """
    check_writable(folder)
    if not is_unused(folder) and not (folder / RESULT).is_file():
        raise RunFolderError(f"{folder}: holds something else; choose another folder with --out")


def candidate_rows(selection: Selection) -> list[dict[str, Any]]:
    """A row per candidate, with why it was discarded where it was."""
    return [{**one.figures, "discarded": one.discarded} for one in selection.candidates]


class Record:
    """The files of one search in a folder; what an earlier one left there is overwritten.

    Attributes:
        content: of refusal.json, as plain data; `finished` is false until all of it is there.
    """

    def __init__(self, folder: Path, told: Mapping[str, Any]) -> None:
        self.folder = folder
        self.content: dict[str, Any] = {"schema": 1, "finished": False}
        self.tell(told)
        for name in (ANSWERS, REPORT):
            (folder / name).unlink(missing_ok=True)

    def tell(self, told: Mapping[str, Any]) -> None:
        """Put more into refusal.json."""
        self.content = plain_data({**self.content, **told})
        write_json(self.folder / RESULT, self.content)

    def finish(self) -> None:
        """Say in refusal.json that all of it is there."""
        self.tell({"finished": True})

    def keep_selection(self, selection: Selection) -> None:
        """Write the direction, and the candidates that it was chosen among."""
        selection.direction.save(self.folder / FOLDER)
        self._tabulate(CANDIDATES, candidate_rows(selection))

    def keep_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Write a row per answer."""
        self._tabulate(ANSWERS, answers)

    def _tabulate(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        import pandas as pd

        with whole(self.folder / name) as path:
            pd.DataFrame(list(rows)).to_parquet(path, index=False)
