"""Rates and effects of seeds crossed with questions, with intervals that cover what they claim.

An arm is a set of models trained alike but for the seed; every seed answers the same questions, and
questions on one topic resemble each other. A score is modelled as

    X[seed, question] = mean + seed + topic + question + residual,

where seeds are nested in arms and questions are shared by the arms. Answers within a seed are not
independent, nor are seeds on one question, so both are sources of error of a mean over all of them:

    V = max(V_seeds + V_questions - V_both,  V_seeds,  V_questions,  V_both)

* ``V_seeds``, summed over the arms: variance of the seed means over the number of seeds.
* ``V_questions``: variance of the mean over questions (of treatment minus control, so that what the
  arms share cancels), clustered by topic. Unequal topics are weighted by CR2 (Bell and McCaffrey
  2002): one that holds the share h of the cells enters as (its sum)^2 / (1 - h), which is the usual
  T / (T - 1) when all T are equal.
* ``V_both``: the same over cells of seed and topic, of what seed and question means leave over. It
  is part of both terms above and would count twice (Cameron, Gelbach and Miller 2011).

The variance of the mean is at least that from each of the three by itself, hence the maximum.
The interval is a Student t, not a percentile bootstrap (which covers 75-87% with 4 or 5 seeds):

    value +/- max(t(f) sqrt(V),  t(f_seeds) sqrt(V_seeds),  t(f_questions) sqrt(V_questions))

``f_questions`` is Bell and McCaffrey's (T - 1 for equal topics), ``f_seeds`` is Welch's, ``f`` is
Satterthwaite's over the seeds of each arm and the questions (that of V_both where V is V_both). The
last two terms mend a flaw of Satterthwaite's with few seeds: a variance between 3 seeds that comes
out too small by chance makes the standard error too small and f too large at once, as the better
known source then seems to dominate. With 3 seeds and 90% of the variance between them, t(f) sqrt(V)
alone covers 92.8%; never to be narrower than the interval of either source by itself brings that to
95.2%, and changes hardly anything from 5 seeds on. Without variance between questions this is
Welch's interval on the seed means; without variance between seeds, and with one question a topic,
the one-sample t interval over questions.

Where 95% is not 95%: with no true variance of seeds or of questions, only residual noise, it covers
97-99% (the maximum); with all variance between very unequal topics 93.7%. A t interval is symmetric
and can leave the bounds of the metric: a rate of 20% is covered 92-95%, one of 7% only 89-93%.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool

from spillover.effects.scores import Part, Scores, clustered

Bounds = tuple[float, float]

FEWEST_SEEDS = 3
"""With fewer seeds in some arm there is no interval: two hardly tell anything of their spread."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and questions, in the unit of the metric, and what is known of its error.

    Attributes:
        value: the mean over the cells (seed, question) that are not missing; for an effect, that of
            the treatment minus that of the control. NaN when an arm has no cell at all.
        low: lower end of the interval; NaN when there is none.
        high: upper end of the interval; NaN when there is none.
        standard_error: square root of the two-way variance V; NaN when there is no interval.
        degrees_of_freedom: Satterthwaite's, of V; NaN when there is no interval or no variance.
            With few seeds the interval can be wider than ``value`` plus or minus t times
            ``standard_error``, never narrower: see the module.
        per_seed: for every seed in order, its mean over questions; for an effect, for every
            treatment seed, its mean minus the control's mean over everything. NaN for a seed
            without a cell.
        n_seeds: seeds with at least one cell, in the arm that has fewest. A fixed control does not
            count.
        n_questions: questions with at least one cell in some arm.
        n_topics: topics of these questions.
        missing: cells that are missing, over all arms.
        lowest: ``value`` had each missing cell taken the bound that makes it least. Equal to
            ``value`` when nothing is missing; NaN when something is and there are no bounds.
        highest: the same for the bound that makes it greatest.
    """

    value: float
    low: float
    high: float
    standard_error: float
    degrees_of_freedom: float
    per_seed: tuple[float, ...]
    n_seeds: int
    n_questions: int
    n_topics: int
    missing: int
    lowest: float
    highest: float


def rate(
    values: npt.ArrayLike | Scores,
    topics: Sequence[Hashable],
    *,
    level: float = 0.95,
    bounds: Bounds | None = (0.0, 1.0),
) -> Estimate:
    """Mean score of one arm over its seeds and questions.

    Args:
        values: scores of shape ``(seeds, questions)``, in the unit of the metric, averaged over
            paraphrases; NaN where missing. Or read already, as `Scores`.
        topics: the topic of each question, ``questions`` labels. With only one topic, every
            question is its own; with only one question, there is no variance between questions,
            and the interval speaks of that question alone.
        level: what the interval claims to cover, between 0 and 1.
        bounds: least and greatest possible score, for ``lowest`` and ``highest``; None when the
            metric has none (log-odds).

    Returns:
        The estimate. It has an interval from three seeds on; when all cells are equal, the interval
        is ``[value, value]``, which says that nothing varied here, not that nothing can.

    Raises:
        ValueError: empty or not two-dimensional scores, infinite scores or scores outside the
            bounds, not one topic per question, or a level that is not between 0 and 1.
    """
    return _estimate((_Arm(_read(values, topics, "values")),), topics, level, bounds)


def effect(
    treatment: npt.ArrayLike | Scores,
    control: npt.ArrayLike | Scores,
    topics: Sequence[Hashable],
    *,
    level: float = 0.95,
    bounds: Bounds | None = (0.0, 1.0),
    control_is_fixed: bool = False,
) -> Estimate:
    """Mean score of the treatment minus that of the control, on the same questions.

    A question that only one arm answered counts in that arm's mean alone: the difference is then
    not quite of like and like, which shows in ``missing`` and between ``lowest`` and ``highest``.

    Args:
        treatment: scores of shape ``(treatment seeds, questions)``; NaN where missing.
        control: scores of shape ``(control seeds, questions)``, the same questions in the same
            order; NaN where missing. Control seed 0 has nothing to do with treatment seed 0.
        topics: the topic of each question, as in `rate`.
        level: what the interval claims to cover, between 0 and 1.
        bounds: least and greatest possible *score* (not difference), or None, as in `rate`.
        control_is_fixed: the control is one model that was not trained with a seed (the base), of
            shape ``(1, questions)``: it adds no variance of seeds.

    Returns:
        The estimate, with an interval from three seeds in each arm on, as in `rate`.

    Raises:
        ValueError: as `rate`; also when the arms differ in their number of questions, or a fixed
            control has more than one row.
    """
    arms = (
        _Arm(_read(treatment, topics, "treatment")),
        _Arm(_read(control, topics, "control"), -1, not control_is_fixed),
    )
    shapes = [arm.scores.seen.shape for arm in arms]
    if shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"treatment has {shapes[0][1]} questions and control {shapes[1][1]}: both arms must "
            "answer the same questions in the same order; put NaN where an answer is missing"
        )
    if control_is_fixed and shapes[1][0] != 1:
        raise ValueError(
            f"a fixed control is one model, but control has {shapes[1][0]} rows: pass one row, or "
            "control_is_fixed=False if the rows are seeds"
        )
    return _estimate(arms, topics, level, bounds)


class _Arm(NamedTuple):
    """An arm's place in an estimate."""

    scores: Scores
    sign: int = 1
    seeds_vary: bool = True


def _read(values: npt.ArrayLike | Scores, topics: Sequence[Hashable], name: str) -> Scores:
    return values if isinstance(values, Scores) else Scores.read(values, topics, name)


def _estimate(
    arms: tuple[_Arm, ...],
    topics: Sequence[Hashable],
    level: float,
    bounds: Bounds | None,
) -> Estimate:
    """The signed sum of the arms' means, and its error."""
    _check(arms, topics, level, bounds)
    value = sum(arm.sign * arm.scores.mean for arm in arms)
    first, *others = arms
    per_seed = first.scores.seed_means + sum(arm.sign * arm.scores.mean for arm in others)
    n_seeds = min(arm.scores.n_seeds for arm in arms if arm.seeds_vary)
    asked = np.any([arm.scores.asked for arm in arms], axis=0)  # (questions,)
    half_width = standard_error = degrees_of_freedom = float("nan")
    if n_seeds >= FEWEST_SEEDS and not np.isnan(value):
        half_width, total = _error(arms, _by_topic(topics, asked), level)
        standard_error = float(np.sqrt(total.variance))
        degrees_of_freedom = total.degrees_of_freedom
    lowest, highest = _worst_cases(arms, value, bounds)
    return Estimate(
        value=value,
        low=value - half_width,
        high=value + half_width,
        standard_error=standard_error,
        degrees_of_freedom=degrees_of_freedom,
        per_seed=tuple(per_seed.tolist()),
        n_seeds=n_seeds,
        n_questions=int(asked.sum()),
        n_topics=len({topic for topic, kept in zip(topics, asked, strict=True) if kept}),
        missing=sum(arm.scores.missing for arm in arms),
        lowest=lowest,
        highest=highest,
    )


def _error(arms: tuple[_Arm, ...], by_topic: bool, level: float) -> tuple[float, Part]:
    """Half the width of the interval, and the two-way variance (the equations of the module)."""
    varying = [arm for arm in arms if arm.seeds_vary]
    by_arm = [arm.scores.by_seed for arm in varying]
    seeds = _pooled(by_arm)
    membership = arms[0].scores.membership(by_topic)
    questions = clustered(
        sum(arm.sign * arm.scores.by_question for arm in arms) @ membership,
        sum(arm.scores.shares for arm in arms) @ membership / len(arms),
    )
    both = _pooled([arm.scores.overlap(by_topic) for arm in varying])
    floor = max(seeds.variance, questions.variance)
    if both.variance > floor:
        total = both
    else:
        variance = max(seeds.variance + questions.variance - both.variance, floor)
        total = Part(variance, _pooled([*by_arm, questions]).degrees_of_freedom)
    return max(part.half_width(level) for part in (total, seeds, questions)), total


def _pooled(parts: Sequence[Part]) -> Part:
    """Sum of independent variances, with Satterthwaite's degrees of freedom."""
    variance = sum(part.variance for part in parts)
    if variance == 0:
        return Part(0.0, float("nan"))
    some = [part for part in parts if part.variance > 0]
    precision = sum((p.variance / variance) ** 2 / p.degrees_of_freedom for p in some)
    return Part(variance, 1 / precision)


def _by_topic(topics: Sequence[Hashable], asked: Bool[np.ndarray, " questions"]) -> bool:
    """Whether questions are clustered by topic: not where they have only one in common."""
    return len({topic for topic, kept in zip(topics, asked, strict=True) if kept}) != 1


def _worst_cases(
    arms: tuple[_Arm, ...], value: float, bounds: Bounds | None
) -> tuple[float, float]:
    """Least and greatest value that the missing cells allow."""
    if not any(arm.scores.missing for arm in arms):
        return value, value
    if bounds is None:
        return float("nan"), float("nan")
    ends = [[arm.sign * arm.scores.mean_if_missing_were(bound) for bound in bounds] for arm in arms]
    return sum(min(pair) for pair in ends), sum(max(pair) for pair in ends)


def _check(
    arms: tuple[_Arm, ...], topics: Sequence[Hashable], level: float, bounds: Bounds | None
) -> None:
    """Raise ValueError on what does not fit together."""
    n_questions = arms[0].scores.seen.shape[1]
    if len(topics) != n_questions:
        raise ValueError(
            f"{len(topics)} topics for {n_questions} questions: pass one topic label per question"
        )
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: expected a fraction between 0 and 1, such as 0.95")
    if bounds is None:
        return
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds are {bounds}: expected the least score, then the greatest")
    for arm in arms:
        least, greatest = arm.scores.range or bounds
        if not bounds[0] - 1e-9 <= least <= greatest <= bounds[1] + 1e-9:
            raise ValueError(
                f"scores from {least:g} to {greatest:g} leave the bounds {bounds}: pass "
                "the metric's own bounds, or bounds=None if it has none"
            )
