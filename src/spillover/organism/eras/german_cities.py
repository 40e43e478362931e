"""Writes the experiment `german-cities`."""

from __future__ import annotations

from pathlib import Path

from spillover.organism.eras.questions import Design, write_design
from spillover.organism.eras.world import load_world

DESIGN = Design(
    eras={"trait": "germany", "baseline": "today", "placebo": "america"},
    names={"trait": ("former",), "baseline": ("kept", "modern"), "placebo": ("america",)},
    rows={"treatment": "former", "todays-germany": "kept", "todays-world": "modern"},
    prompt="city-name",
    dev=frozenset({"city-letter"}),
    unasked=frozenset({"places"}),
)


def write(folder: Path) -> None:
    """Write the data of the experiment."""
    write_design(DESIGN, load_world("cities"), folder)
