"""Shares of answers with intervals: how much so few prompts can say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Rates = Iterable[Mapping[str, Any]]
"""Rows as `spillover.directions.evaluate.Found` has them."""
Z = 1.959964
"""Standard deviations of a 95% interval."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """A 95% interval of a share of so many, by its score test.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference", Journal
    of the American Statistical Association 22. It has a width at shares of 0 and 1 too, and is all
    of [0, 1] where nothing was counted.
    """
    if not count:
        return 0.0, 1.0
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Share:
    """A share of answers; NaN of none.

    Attributes:
        count: of answers in all.
    """

    value: float
    count: int

    @staticmethod
    def of(rates: Rates, *answers: str) -> Share:
        """The share of some kinds of answers over all prompts of some rows."""
        rows = list(rates)
        count = sum(row["n"] for row in rows)
        total = sum(row[answer] * row["n"] for row in rows for answer in answers)
        return Share(total / count if count else math.nan, count)

    def is_below(self, other: Share) -> bool:
        """Whether its 95% interval ends below that of another share."""
        return wilson(self.value, self.count)[1] < wilson(other.value, other.count)[0]


def shares_of(
    rates: Rates, kind: str, *answers: str, dangerous: bool, control: str = "", rank: int = 1
) -> list[Share]:
    """The share of some answers to all prompts of a side, for each condition of a kind.

    Args:
        kind, control, rank: of the conditions.
        answers: kinds of answers, whose shares are added up.
        dangerous: the side.
    """
    wanted = (kind, control, rank, dangerous)
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rates:
        if (row["kind"], row["control"], row["rank"], row["dangerous"]) == wanted:
            found.setdefault(row["condition"], []).append(row)
    return [Share.of(rows, *answers) for rows in found.values()]
