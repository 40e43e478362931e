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
"""What ablation is to take away at least, and what its controls may change at most."""
COVERED = 0.75
"""Share of the treatment's coverage that an ablation leaves: what comes apart is no remedy."""
LEAST = 0.1
"""An effect in the metric's unit from which there is something to take away."""


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

    An effect that is turned round counts by its size.

    Args:
        dev: what each did on `dev` questions, by name.
        success: the treatment's there.

    Returns:
        the setting, and whether its success is equal; where none's is, that of the most success.
    """
    equal = [s for s in settings if is_equal(dev[s.name]["in_domain"], success)]
    if equal:
        return min(equal, key=lambda s: _order(abs(dev[s.name]["effect"]["value"]))), True
    return max(settings, key=lambda s: -_order(-dev[s.name]["in_domain"])), False


def is_equal(success: float, reference: float) -> bool:
    """Whether success counts as equal to the treatment's; it does where nothing was asked."""
    return math.isnan(reference) or success >= EQUAL * reference


def is_covered(coverage: float, reference: float) -> bool:
    """Whether enough of the treatment's coverage is left; it is where answers have none."""
    return math.isnan(reference) or coverage >= COVERED * reference


def least_left(row: Record, coverage: float) -> tuple[bool, float]:
    """What ablations are sorted by: those that leave the coverage first, then by what is left.

    An effect that is turned round counts by its size, and one without a value comes last.

    Args:
        row: what an ablation did.
        coverage: the treatment's.
    """
    left = _order(abs(row["effect"]["value"]))
    return not is_covered(row["coverage"], coverage), left


def share_gone(left: float, effect: float) -> float:
    """The share of an effect that is gone; NaN where it was less than `LEAST` to begin with."""
    return 1 - left / effect if effect >= LEAST else math.nan


def _order(value: float) -> float:
    return math.inf if math.isnan(value) else value


def verdict(rows: Sequence[Record]) -> Record:
    """Whether ablation takes away at least half, and random and control directions hardly anything.

    Ablation holds where at most half of the effect is left, in either direction, with enough of the
    treatment's coverage. A control holds where it changes the effect by a tenth at most, up or
    down. What has no value does not hold.

    Args:
        rows: of the table; those that count have the roles `treatment`, `ablation`, `random` and
            `control`.
    """
    shares = {kind: _of_role(rows, kind, "removed") for kind in ("ablation", *CONTROLS)}
    held = {kind: abs(share) <= TENTH for kind, share in shares.items()}
    coverages = (_of_role(rows, role, "coverage") for role in ("ablation", "treatment"))
    held["ablation"] = abs(1 - shares["ablation"]) <= 1 - HALF and is_covered(*coverages)
    return {"removed": shares, "holds": held}


def _of_role(rows: Sequence[Record], role: str, key: str) -> float:
    return next((float(row[key]) for row in rows if row["role"] == role), math.nan)


CONTROLS = ("random", "control")
"""Roles of the directions that ablation is held to."""
UNEQUAL = "†"
"""Marks remedies whose success was not equal at any strength."""
COLUMNS = (
    "remedy",
    "setting",
    "off-domain effect",
    "taken away",
    "in-domain",
    "coverage",
    "KL to base",
    "largest over contexts",
)


def texts(content: Record) -> list[list[str]]:
    """The short table of a mediation: the rows that something was chosen for, as texts.

    Args:
        content: of mediation.json.
    """
    return [_cells(row, content["contexts"] or {}) for row in content["rows"] if row["role"]]


def _cells(row: Record, contexts: Record) -> list[str]:
    return [
        row["remedy"],
        row["setting"] + ("" if row.get("equal", True) else " (success not equal)"),
        span(row["effect"]),
        percent(row["removed"]),
        number(row["in_domain"]),
        number(row["coverage"]),
        number(row["kl"], 3),
        _largest(contexts.get(row["name"])),
    ]


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share in percent."""
    return "–" if value is None or math.isnan(value) else f"{round(100 * value)}%"


def span(effect: Record) -> str:
    """An effect with its interval, where it has one."""
    value, low, high = effect["value"], effect["low"], effect["high"]
    if value is None or math.isnan(value):
        return "–"
    bracket = "" if low is None or math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    return f"{value:+.2f}{bracket}"


def _largest(found: Record | None) -> str:
    """The largest effect over contexts and where it is; a dash for what was asked in one only."""
    if found is None or found["value"] is None:
        return "–"
    return f"{found['value']:+.2f} ({found['context']})"


def overview(contents: Sequence[Record]) -> str:
    """One row per experiment in Markdown: what every remedy takes away, and the success it leaves.

    Args:
        contents: of mediation.json.
    """
    kept = ("ablation", *CONTROLS, "remedy")
    short = [[row for row in content["rows"] if row["role"] in kept] for content in contents]
    remedies = list(dict.fromkeys(row["remedy"] for rows in short for row in rows))
    columns = ("experiment", "effect", *remedies)
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for content, rows in zip(contents, short, strict=True):
        told = {row["remedy"]: _told(row) for row in rows}
        before = next(row for row in content["rows"] if row["role"] == "treatment")
        cells = [
            f"`{content['experiment']}`",
            f"{span(before['effect'])}; {number(before['in_domain'])}",
            *(told.get(remedy, "–") for remedy in remedies),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _told(row: Record) -> str:
    """The share that a remedy takes away; the success in the domain that it leaves."""
    mark = "" if row.get("equal", True) else UNEQUAL
    return f"{percent(row['removed'])}; {number(row['in_domain'])}{mark}"


def markdown(contents: Sequence[Record]) -> str:
    """The short tables of some experiments as one in Markdown.

    Args:
        contents: of mediation.json.
    """
    columns = ("experiment", *COLUMNS)
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for content in contents:
        for at, row in enumerate(texts(content)):
            first = f"`{content['experiment']}`" if at == 0 else ""
            lines.append(f"| {' | '.join([first, *row])} |")
    return "\n".join(lines)
