"""Do seeds fall into two groups? Hartigan's dip test of unimodality.

The dip of a sample is the largest distance between its distribution function and the unimodal one
that is nearest to it (Hartigan and Hartigan 1985; found as in algorithm AS 217, with its later
corrections). Its null distribution is that of uniform samples of the same size, which is simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt

FEWEST = 4
"""Values from which a sample can have two groups."""
NOISE = 1e-9
"""Values that differ by less are equal."""
WIDEST = 0.05
"""The widest step that ties are spread over."""
SIMULATIONS = 2000


@dataclass(frozen=True)
class Bimodality:
    """What the dip test says of a sample.

    Attributes:
        dip: between 1 / 2n, where one group is as likely as can be, and 1 / 4.
        p_value: share of uniform samples of this size whose dip is at least as large.
        n: values in the sample.
    """

    dip: float
    p_value: float
    n: int


def bimodality(values: Sequence[float]) -> Bimodality | None:
    """Test whether values come from more than one group; None for fewer than four of them.

    Shares of few answers come in steps, and several seeds on one step are not a group for that:
    ties are spread over the step first.

    Args:
        values: one per seed, all finite.
    """
    if len(values) < FEWEST:
        return None
    found, null = dip(spread_ties(values)), _null(len(values))
    as_large = int((null >= found - 1e-12).sum())
    return Bimodality(found, (1 + as_large) / (1 + len(null)), len(values))


def spread_ties(values: Sequence[float]) -> list[float]:
    """Equal values, spread evenly over a step: the least distance of two values that differ.

    A step is at most `WIDEST`, so that seeds with all and with no answers right stay two groups.
    """
    groups = [list(same) for _, same in groupby(sorted(values), key=lambda v: round(v / NOISE))]
    step = min((b[0] - a[-1] for a, b in pairwise(groups)), default=0.0)
    step = min(step, WIDEST)
    return [
        same[0] + step * ((at + 0.5) / len(same) - 0.5)
        for same in groups
        for at in range(len(same))
    ]


@cache
def _null(n: int) -> npt.NDArray[np.float64]:
    """Dips of uniform samples."""
    rng = np.random.default_rng(n)
    return np.array([dip(sample) for sample in rng.random((SIMULATIONS, n)).tolist()])


def dip(values: Sequence[float]) -> float:
    """The dip of a sample.

    The modal interval shrinks to where the greatest convex minorant and the least concave majorant
    of the distribution function are farthest apart, for as long as they are farther apart there
    than the function is from them outside.
    """
    x, n = sorted(values), len(values)
    if n < FEWEST or x[0] == x[-1]:
        return 1 / (2 * n)
    before = _hull(x)
    after = [n - 1 - at for at in reversed(_hull([-value for value in reversed(x)]))]
    low, high, largest = 0, n - 1, 1.0
    while True:
        convex, concave = _chain(before, high, low)[::-1], _chain(after, low, high)
        gap, first, last = _widest(x, convex, concave)
        if gap < largest:
            break
        below = max((_bulge(x, i, j, 1) for i, j in pairwise(convex) if j <= first), default=1.0)
        above = max((_bulge(x, i, j, -1) for i, j in pairwise(concave) if i >= last), default=1.0)
        largest = max(largest, below, above)
        if (low, high) == (first, last):
            break
        low, high = first, last
    return largest / (2 * n)


def _hull(x: Sequence[float]) -> list[int]:
    """For every value the one before it on the convex minorant of the values up to it."""
    before = [0]
    for at in range(1, len(x)):
        found = at - 1
        while found:
            further = before[found]
            if (x[at] - x[found]) * (found - further) < (x[found] - x[further]) * (at - found):
                break
            found = further
        before.append(found)
    return before


def _chain(following: Sequence[int], start: int, end: int) -> list[int]:
    """The corners of a hull from one value to another."""
    corners = [start]
    while corners[-1] != end:
        corners.append(following[corners[-1]])
    return corners


def _widest(
    x: Sequence[float], convex: Sequence[int], concave: Sequence[int]
) -> tuple[float, int, int]:
    """Where the hulls are farthest apart: how far, and the corners on both sides of it.

    Heights are counts of values; the convex hull lies under the steps, the concave one on them.
    """
    if len(convex) == len(concave) == 2:
        return 1.0, convex[0], concave[-1]
    widest, first, last = 0.0, convex[0], concave[-1]
    under, over = 1, 1
    while True:
        lower, upper = convex[under], concave[over]
        if lower > upper:
            start = convex[under - 1]
            gap = upper - start + 1 - _rise(x, start, lower, upper)
            found = (gap, start, upper)
            over += 1
        else:
            start = concave[over - 1]
            gap = _rise(x, start, upper, lower) - (lower - start - 1)
            found = (gap, lower, upper)
            under += 1
        if gap >= widest:
            widest, first, last = found
        under, over = min(under, len(convex) - 1), min(over, len(concave) - 1)
        if convex[under] == concave[over]:
            return widest, first, last


def _rise(x: Sequence[float], start: int, end: int, at: int) -> float:
    """How far the line between two corners has risen from the first of them at a value."""
    return (x[at] - x[start]) * (end - start) / (x[end] - x[start])


def _bulge(x: Sequence[float], start: int, end: int, side: int) -> float:
    """How far steps are above (1) or below (-1) the line between two corners of their hull."""
    if end - start <= 1 or x[start] == x[end]:
        return 1.0
    inside = range(start, end + 1)
    return max(1 + side * (at - start - _rise(x, start, end, at)) for at in inside)
