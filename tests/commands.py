"""Commands as a user gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from spillover import cli
from spillover.rows import Row, write_rows


def call(*arguments: object) -> int:
    """The exit code of `spillover ARGUMENTS`."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    return int(stopped.value.code or 0)


def rows_file(folder: Path, name: str, rows: list[Row]) -> str:
    """Write rows and name their file."""
    write_rows(rows, folder / name)
    return str(folder / name)
