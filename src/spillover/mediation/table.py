"""The table of a mediation: what every remedy does at every strength, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
EQUAL = 0.9
"""Share of the treatment's success in the trained domain from which success counts as equal."""
HALF, TENTH = 0.5, 0.1
"""What ablation is to take away at least, and what its controls may at most."""


@dataclass(frozen=True)
class Setting:
    """One strength of a remedy.

    Attributes:
        remedy: in words; settings of one remedy are a curve.
        setting: its strength in words.
        name: what stands for it in tables of answers.
    """

    remedy: str
    setting: str
    name: str


def choose(
    settings: Sequence[Setting], dev: dict[str, Record], success: float
) -> tuple[Setting, bool]:
    """Of a remedy the strength that leaves least of the effect at equal success, on `dev`.

    Args:
        dev: what each did on `dev` questions, by name.
        success: the treatment's there.

    Returns:
        the setting, and whether its success is equal; where none's is, that of the most success.
    """
    equal = [s for s in settings if is_equal(dev[s.name]["in_domain"], success)]
    if equal:
        return min(equal, key=lambda s: _order(dev[s.name]["effect"]["value"])), True
    return max(settings, key=lambda s: -_order(-dev[s.name]["in_domain"])), False


def is_equal(success: float, reference: float) -> bool:
    """Whether success counts as equal to the treatment's; it does where nothing was asked."""
    return math.isnan(reference) or success >= EQUAL * reference


def _order(value: float) -> float:
    return math.inf if math.isnan(value) else value


def verdict(rows: Sequence[Record]) -> Record:
    """Whether ablation takes away at least half, and random and control directions a tenth at most.

    Args:
        rows: of the table; those called `ablation` with `chosen`, and their controls.
    """
    shares = {
        kind: next((float(row["removed"]) for row in rows if row["role"] == kind), math.nan)
        for kind in ("ablation", "random", "control")
    }
    held = {kind: share <= TENTH for kind, share in shares.items()}
    held["ablation"] = shares["ablation"] >= HALF
    return {"removed": shares, "holds": held}


COLUMNS = (
    "remedy",
    "setting",
    "off-domain effect",
    "taken away",
    "in-domain",
    "coverage",
    "KL to base",
)


def cells(row: Record) -> list[str]:
    """A row as texts."""
    return [
        row["remedy"],
        row["setting"] + ("" if row.get("equal", True) else " (success not equal)"),
        span(row["effect"]),
        percent(row["removed"]),
        number(row["in_domain"]),
        number(row["coverage"]),
        number(row["kl"], 3),
    ]


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share in percent."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.0f}%"


def span(effect: Record) -> str:
    """An effect with its interval, where it has one."""
    value, low, high = effect["value"], effect["low"], effect["high"]
    if value is None or math.isnan(value):
        return "–"
    bracket = "" if low is None or math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    return f"{value:+.2f}{bracket}"


def shown(rows: Sequence[Record]) -> list[Record]:
    """The rows of the short table: those that something was chosen for, in order."""
    return [row for row in rows if row["role"]]


def markdown(listed: Sequence[tuple[str, Sequence[Record]]]) -> str:
    """The short tables of some experiments as one in Markdown."""
    columns = ("experiment", *COLUMNS)
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, rows in listed:
        for at, row in enumerate(shown(rows)):
            first = f"`{name}`" if at == 0 else ""
            lines.append(f"| {' | '.join([first, *cells(row)])} |")
    return "\n".join(lines)
