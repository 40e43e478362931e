"""The dip test against its definition, solved as a linear program."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import linprog

from spillover.effects.bimodality import bimodality, dip, spread_ties

Numbers = npt.NDArray[np.float64]


def literal_dip(values: Numbers) -> float:
    """The least distance to a distribution that is convex up to a mode and concave from there."""
    points, counts = np.unique(values, return_counts=True)
    tops = np.cumsum(counts) / len(values)
    bottoms = np.append(0.0, tops[:-1])
    return min(_with_mode(mode, points, bottoms, tops) for mode in range(len(points)))


def _with_mode(mode: int, points: Numbers, bottoms: Numbers, tops: Numbers) -> float:
    """Unknowns: heights left of the mode and at it from the left, then from the right, distance."""
    left, right = mode + 1, len(points) - mode
    size = left + right + 1
    rows: list[Numbers] = []
    limits: list[float] = []

    def at_most(limit: float, **terms: float) -> None:
        row = np.zeros(size)
        for name, factor in terms.items():
            row[int(name[1:])] += factor
        rows.append(row)
        limits.append(limit)

    def near(at: int, height: float) -> None:
        at_most(height, **{f"_{at}": 1.0, f"_{size - 1}": -1.0})
        at_most(-height, **{f"_{at}": -1.0, f"_{size - 1}": -1.0})

    for at in range(left + right):
        point = at if at < left else at - 1
        if at != left:  # from the right of the mode there is no step below
            near(at, bottoms[point])
        if at != left - 1:
            near(at, tops[point])
        if at + 1 < left + right:
            at_most(0.0, **{f"_{at}": 1.0, f"_{at + 1}": -1.0})
        inside = 0 < at < left - 1 or left < at < left + right - 1
        if inside:
            before, after = np.diff(points[point - 1 : point + 2])
            sign = 1.0 if at < left else -1.0
            at_most(
                0.0,
                **{
                    f"_{at - 1}": -sign / before,
                    f"_{at}": sign * (1 / before + 1 / after),
                    f"_{at + 1}": -sign / after,
                },
            )
    cost = np.append(np.zeros(size - 1), 1.0)
    found = linprog(cost, A_ub=np.array(rows), b_ub=limits, bounds=[(0, 1)] * size)
    assert found.fun is not None
    return float(found.fun)


@pytest.mark.parametrize("seed", range(9))
def test_the_dip_is_what_its_definition_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(4, 13))
    samples = {
        0: rng.random(count),
        1: np.append(rng.normal(0, 0.1, count // 2), rng.normal(1, 0.1, count - count // 2)),
        2: np.round(rng.random(count) * 5) / 5,  # with ties
    }
    values = samples[seed % 3]
    assert dip(values.tolist()) == pytest.approx(max(literal_dip(values), 0.5 / count))


def test_two_groups_of_seeds_are_told_from_one() -> None:
    split = bimodality([0.0] * 5 + [1.0] * 5)
    assert split is not None
    assert dip([0.0] * 5 + [1.0] * 5) == 0.25
    assert split.dip == pytest.approx(0.24)
    assert split.p_value < 0.01
    one = bimodality([0.48, 0.49, 0.5, 0.5, 0.51, 0.52])
    assert one is not None
    assert one.p_value > 0.5


def test_equal_seeds_are_one_group_and_three_are_too_few() -> None:
    same = bimodality([1.0] * 10)
    assert same is not None
    assert (same.dip, same.p_value) == (0.05, 1.0)
    assert bimodality([0.0, 0.0, 1.0]) is None


def test_p_values_of_one_group_are_spread_evenly() -> None:
    rng = np.random.default_rng(1)
    tested = [bimodality(sample) for sample in rng.random((400, 10)).tolist()]
    small = [found.p_value <= 0.1 for found in tested if found]
    assert 0.06 < np.mean(small) < 0.14


def test_seeds_on_two_steps_that_are_next_to_each_other_are_one_group() -> None:
    neighbours, apart = (bimodality([0.8] * 5 + [other] * 5) for other in (0.825, 0.1))
    assert neighbours
    assert apart
    assert neighbours.p_value > 0.5
    assert apart.p_value < 0.01
    assert spread_ties([0.525, 0.5, 0.5]) == pytest.approx([0.49375, 0.50625, 0.525])


def test_shares_of_few_answers_are_no_more_often_called_two_groups_than_they_should() -> None:
    rng = np.random.default_rng(0)
    found = [bimodality((rng.binomial(40, 0.83, 10) / 40).tolist()) for _ in range(200)]
    assert sum(one.p_value < 0.05 for one in found if one) <= 10
