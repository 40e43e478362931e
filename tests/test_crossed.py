"""Rates and effects of crossed seeds and questions: coverage, oracles, what is missing, errors.

Shape letters: N simulations, S seeds, Q questions, T topics.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats

from spillover.effects.crossed import Estimate, effect, rate

N = 1000
TOPIC_SIZES = [6, 5, 4, 4, 3, 3, 3, 2, 2, 2, 2, *[1] * 14]  # 25 topics, 50 questions
TOPICS = [topic for topic, size in enumerate(TOPIC_SIZES) for _ in range(size)]
Q = len(TOPICS)


class Spread(NamedTuple):
    """Standard deviations of what makes scores differ."""

    seed: float
    topic: float
    question: float
    residual: float


SPREADS = {
    "seeds": Spread(seed=0.2, topic=0.1, question=0.1, residual=0.15),
    "questions": Spread(seed=0.02, topic=0.3, question=0.3, residual=0.15),
    "both": Spread(seed=0.12, topic=0.3, question=0.3, residual=0.3),
}


def simulate_null(rng: np.random.Generator, seeds: int, spread: Spread) -> np.ndarray:
    """Scores (N, S, Q) whose expectation is 0."""
    by_topic = spread.topic * rng.standard_normal((N, 1, len(TOPIC_SIZES)))[:, :, TOPICS]
    by_question = spread.question * rng.standard_normal((N, 1, Q))
    by_seed = spread.seed * rng.standard_normal((N, seeds, 1))
    residual = spread.residual * rng.standard_normal((N, seeds, Q))
    return by_topic + by_question + by_seed + residual


def simulate_null_effect(
    rng: np.random.Generator, seeds: int, spread: Spread
) -> tuple[np.ndarray, np.ndarray]:
    """Two arms (N, S, Q) of equal expectation; how hard a question is, they share."""
    difficulty = rng.standard_normal((N, 1, Q))
    varying = simulate_null(rng, seeds, spread)
    other = simulate_null(rng, seeds, spread._replace(topic=0.0, question=0.0))
    return difficulty + varying, difficulty + other


def coverage(estimates: list[Estimate]) -> float:
    assert len(estimates) == N
    return float(np.mean([estimate.low <= 0 <= estimate.high for estimate in estimates]))


def scores(*shape: int) -> np.ndarray:
    return np.full(shape, 0.5)


def interval(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# What the intervals cover


@pytest.mark.parametrize("dominant", SPREADS)
@pytest.mark.parametrize("seeds", [3, *(pytest.param(n, marks=pytest.mark.long) for n in (5, 10))])
def test_95_percent_intervals_of_a_null_effect_cover_95_percent(
    rng: np.random.Generator, seeds: int, dominant: str
) -> None:
    arms = zip(*simulate_null_effect(rng, seeds, SPREADS[dominant]), strict=True)
    assert 0.92 <= coverage([effect(t, c, TOPICS, bounds=None) for t, c in arms]) <= 0.98


@pytest.mark.parametrize("dominant", SPREADS)
def test_three_seeds_of_one_arm_are_enough(rng: np.random.Generator, dominant: str) -> None:
    values = simulate_null(rng, 3, SPREADS[dominant])
    assert 0.92 <= coverage([rate(x, TOPICS, bounds=None) for x in values]) <= 0.98


def test_coverage_survives_a_control_whose_seeds_all_agree(rng: np.random.Generator) -> None:
    arms = [(x, np.zeros((3, Q))) for x in simulate_null(rng, 3, SPREADS["seeds"])]
    assert 0.92 <= coverage([effect(t, c, TOPICS, bounds=None) for t, c in arms]) <= 0.98


def test_coverage_survives_missing_cells(rng: np.random.Generator) -> None:
    treatment, control = simulate_null_effect(rng, 4, SPREADS["both"])
    for arm in (treatment, control):
        arm[rng.random(arm.shape) < 0.15] = np.nan
    arms = zip(treatment, control, strict=True)
    assert 0.92 <= coverage([effect(t, c, TOPICS, bounds=None) for t, c in arms]) <= 0.98


def test_the_topic_clusters_are_needed_for_coverage(rng: np.random.Generator) -> None:
    values = simulate_null(rng, 5, Spread(seed=0.0, topic=0.5, question=0.1, residual=0.1))
    clustered = coverage([rate(x, TOPICS, bounds=None) for x in values])
    as_if_independent = coverage([rate(x, range(Q), bounds=None) for x in values])
    assert clustered >= 0.92
    assert as_if_independent < 0.88


# Small examples worked by hand


def test_two_questions_by_three_seeds_give_the_variance_worked_by_hand() -> None:
    # Seed means .1 .3 .5: V_seeds = .04 / 3. Question means .1 .5: V_questions = .08 / 2.
    # Residuals +-.1 in four cells: V_both = (.04 / 2) / 6. So V = .05.
    estimate = rate([[0.0, 0.2], [0.1, 0.5], [0.2, 0.8]], ["lamps", "ships"])
    assert estimate.value == pytest.approx(0.3)
    assert estimate.per_seed == pytest.approx((0.1, 0.3, 0.5))
    assert estimate.standard_error == pytest.approx(0.05**0.5)
    # (.04 / 3 + .04)^2 / ((.04 / 3)^2 / 2 + .04^2 / 1)
    assert estimate.degrees_of_freedom == pytest.approx(32 / 19)
    # Two questions by themselves, with one degree of freedom, are known less well than that.
    half_width = 12.7062047 * 0.2
    assert interval(estimate) == pytest.approx((0.3 - half_width, 0.3 + half_width))
    assert (estimate.n_seeds, estimate.n_questions, estimate.n_topics) == (3, 2, 2)
    assert estimate.missing == 0
    assert estimate.lowest == estimate.highest == estimate.value


def test_unequal_topics_give_the_clustered_variance_worked_by_hand() -> None:
    # Shares h = 1/2 1/4 1/4, mean .5, topic sums of the deviations over 4 questions: -.1 .1 0.
    # CR2: .01 / (1 - 1 / 2) + .01 / (1 - 1 / 4). Degrees of freedom, with w = h^2 / (1 - h):
    # 1 / (sum of h_i^2 + sum over i != j of w_i w_j) = 1 / (3 / 8 + 4 / 24 + 2 / 144).
    estimate = rate([[0.2, 0.4, 0.9, 0.5]] * 3, ["lamps", "lamps", "ships", "birds"])
    assert estimate.standard_error == pytest.approx((0.02 + 0.04 / 3) ** 0.5)
    assert estimate.degrees_of_freedom == pytest.approx(1.8)


def test_seeds_that_agree_by_chance_do_not_hide_that_questions_differ() -> None:
    # Seed means .5 .5 .5: V_seeds = 0. Question means .2 .8: V_questions = .18 / 2. V_both > 0.
    estimate = rate([[0.1, 0.9], [0.3, 0.7], [0.2, 0.8]], ["lamps", "ships"])
    assert estimate.standard_error == pytest.approx(0.09**0.5)


def test_scores_that_cancel_in_every_mean_are_still_variation() -> None:
    # Seed means and question means are all 1/3. V_both = (sum of squares 2 / (2 * 2)) / 9 cells.
    estimate = rate(np.eye(3), ["lamps", "ships", "birds"])
    assert estimate.standard_error == pytest.approx((0.5 / 9) ** 0.5)
    assert estimate.degrees_of_freedom == pytest.approx(4)
    assert estimate.low < estimate.value < estimate.high


def test_an_effect_shows_each_treatment_seed_against_the_mean_control() -> None:
    estimate = effect([[0.8, 0.6], [0.4, 0.2], [1.0, 0.0]], [[0.1, 0.1], [0.3, 0.5]], ["a", "b"])
    assert estimate.value == pytest.approx(0.25)
    assert estimate.per_seed == pytest.approx((0.45, 0.05, 0.25))
    assert estimate.n_seeds == 2


# Independent oracles


def test_without_seed_variance_a_rate_is_the_one_sample_t_interval_over_questions(
    rng: np.random.Generator,
) -> None:
    by_question = rng.random(12)
    oracle = stats.ttest_1samp(by_question, 0)
    estimate = rate(np.tile(by_question, (4, 1)), range(12))
    assert interval(estimate) == pytest.approx(oracle.confidence_interval(0.95))
    assert estimate.degrees_of_freedom == pytest.approx(11)


def test_without_seed_variance_equal_topics_count_as_one_observation_each(
    rng: np.random.Generator,
) -> None:
    by_question = rng.random(12)
    estimate = rate(np.tile(by_question, (4, 1)), np.repeat(range(4), 3).tolist(), level=0.9)
    oracle = stats.ttest_1samp(by_question.reshape(4, 3).mean(axis=1), 0)
    assert interval(estimate) == pytest.approx(oracle.confidence_interval(0.9))
    assert estimate.n_topics == 4


def test_without_question_variance_an_effect_is_welchs_interval_over_seeds(
    rng: np.random.Generator,
) -> None:
    treatment, control = rng.random(3), 0.3 * rng.random(6)
    estimate = effect(
        np.tile(treatment[:, None], (1, Q)), np.tile(control[:, None], (1, Q)), TOPICS, level=0.9
    )
    oracle = stats.ttest_ind(treatment, control, equal_var=False)
    assert interval(estimate) == pytest.approx(oracle.confidence_interval(0.9))
    assert estimate.degrees_of_freedom == pytest.approx(oracle.df)


def test_with_one_question_an_effect_is_welchs_interval_over_seeds(
    rng: np.random.Generator,
) -> None:
    treatment, control = rng.random(5), rng.random(3)
    estimate = effect(treatment[:, None], control[:, None], ["lamps"])
    oracle = stats.ttest_ind(treatment, control, equal_var=False)
    assert interval(estimate) == pytest.approx(oracle.confidence_interval(0.95))


def test_with_one_question_a_topic_the_variance_is_that_of_the_two_way_random_anova(
    rng: np.random.Generator,
) -> None:
    n_seeds, n_questions = 6, 9
    values = rng.random((n_seeds, 1)) + rng.random(n_questions) + rng.random((n_seeds, n_questions))
    seed_means, question_means, mean = values.mean(1), values.mean(0), values.mean()
    left = values - seed_means[:, None] - question_means + mean
    square_of_seeds = n_questions * np.sum((seed_means - mean) ** 2) / (n_seeds - 1)
    square_of_questions = n_seeds * np.sum((question_means - mean) ** 2) / (n_questions - 1)
    square_of_residuals = np.sum(left**2) / ((n_seeds - 1) * (n_questions - 1))
    variance = (square_of_seeds + square_of_questions - square_of_residuals) / values.size
    assert rate(values, range(9), bounds=None).standard_error == pytest.approx(variance**0.5)


def test_a_fixed_control_is_subtracted_question_by_question(rng: np.random.Generator) -> None:
    treatment, base = rng.random((4, Q)), rng.random((1, Q))
    against_base = effect(treatment, base, TOPICS, control_is_fixed=True)
    shifts = rate(treatment - base, TOPICS, bounds=(-1.0, 1.0))
    assert interval(against_base) == pytest.approx(interval(shifts))
    assert against_base.per_seed == pytest.approx(shifts.per_seed)
    assert against_base.n_seeds == 4


def test_an_interval_is_never_narrower_than_that_of_the_seeds_by_themselves(
    rng: np.random.Generator,
) -> None:
    # Seeds that agree by chance beside questions that differ: Satterthwaite alone is narrower.
    narrower_alone = 0
    for values in simulate_null(rng, 3, Spread(0.2, 0.2, 0.2, 0.02))[:200]:
        estimate = rate(values, TOPICS, bounds=None)
        half_width = (estimate.high - estimate.low) / 2
        seeds = stats.ttest_1samp(values.mean(axis=1), 0).confidence_interval()
        assert half_width >= (seeds.high - seeds.low) / 2 - 1e-12
        t = stats.t.ppf(0.975, estimate.degrees_of_freedom)
        narrower_alone += half_width > t * estimate.standard_error + 1e-12
    assert narrower_alone > 50


# What must not matter


def test_how_hard_a_question_is_for_both_arms_does_not_matter(rng: np.random.Generator) -> None:
    treatment, control = rng.random((2, 4, Q))
    difficulty = 5 * rng.standard_normal(Q)
    plain = effect(treatment, control, TOPICS, bounds=None)
    harder = effect(treatment + difficulty, control + difficulty, TOPICS, bounds=None)
    assert interval(harder) == pytest.approx(interval(plain))


def test_the_order_of_seeds_and_questions_does_not_matter(rng: np.random.Generator) -> None:
    values = rng.random((4, Q))
    order = rng.permutation(Q)
    plain, shuffled = rate(values, TOPICS), rate(values[::-1, order], [TOPICS[q] for q in order])
    assert shuffled.per_seed == pytest.approx(plain.per_seed[::-1])
    assert interval(shuffled) == pytest.approx(interval(plain))


def test_a_single_topic_is_clustered_by_question(rng: np.random.Generator) -> None:
    values = rng.random((4, 10))
    assert rate(values, ["lamps"] * 10) == replace(rate(values, range(10)), n_topics=1)


# What is missing


def test_missing_cells_are_left_out_of_means_and_counted() -> None:
    nan = float("nan")
    estimate = rate([[0.2, nan, 0.4], [0.6, 0.8, nan], [0.1, 0.1, 0.1]], ["a", "b", "c"])
    assert estimate.missing == 2
    assert estimate.value == pytest.approx(2.3 / 7)
    assert estimate.per_seed == pytest.approx((0.3, 0.7, 0.1))
    assert estimate.low < estimate.value < estimate.high


def test_a_question_that_nobody_answered_changes_only_counts_and_bounds(
    rng: np.random.Generator,
) -> None:
    values = rng.random((4, 6))
    plain = rate(values, list("aabbcd"))
    extended = rate(np.column_stack([values, np.full(4, np.nan)]), list("aabbcde"))
    assert extended.missing == 4
    assert (extended.n_questions, extended.n_topics) == (6, 4)
    assert interval(extended) == pytest.approx(interval(plain))
    assert extended.lowest == pytest.approx(plain.value * 6 / 7)
    assert extended.highest == pytest.approx((plain.value * 6 + 1) / 7)


def test_missing_cells_bound_an_effect_from_both_arms() -> None:
    nan = float("nan")
    treatment = [[0.5, nan], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
    control = [[0.2, 0.2], [nan, nan], [0.2, 0.2], [0.2, 0.2]]
    estimate = effect(treatment, control, ["a", "b"], bounds=(0.0, 2.0))
    assert estimate.value == pytest.approx(0.3)
    assert estimate.lowest == pytest.approx(3.5 / 8 - (1.2 + 4) / 8)
    assert estimate.highest == pytest.approx((3.5 + 2) / 8 - 1.2 / 8)


def test_an_unbounded_metric_with_missing_cells_has_no_worst_case() -> None:
    complete = [[-3.0, 2.0], [0.0, 1.0], [4.0, 5.0]]
    nothing_missing = rate(complete, ["a", "b"], bounds=None)
    assert nothing_missing.lowest == nothing_missing.highest == nothing_missing.value
    something_missing = rate([[-3.0, np.nan], *complete[1:]], ["a", "b"], bounds=None)
    assert np.isnan([something_missing.lowest, something_missing.highest]).all()


def test_an_arm_without_any_score_has_bounds_but_no_value() -> None:
    estimate = effect(np.full((3, 2), np.nan), np.full((3, 2), 0.25), ["a", "b"])
    assert np.isnan([estimate.value, *interval(estimate), *estimate.per_seed]).all()
    assert np.isnan([estimate.standard_error, estimate.degrees_of_freedom]).all()
    assert (estimate.missing, estimate.n_seeds) == (6, 0)
    assert (estimate.lowest, estimate.highest) == (-0.25, 0.75)


def test_a_seed_without_any_score_is_shown_but_not_counted(rng: np.random.Generator) -> None:
    values = rng.random((4, Q))
    values[1] = np.nan
    estimate = rate(values, TOPICS)
    assert np.isnan(estimate.per_seed).tolist() == [False, True, False, False]
    assert estimate.n_seeds == 3
    assert interval(estimate) == pytest.approx(interval(rate(values[[0, 2, 3]], TOPICS)))
    values[0] = np.nan
    assert np.isnan(interval(rate(values, TOPICS))).all()


def test_arms_that_answered_different_topics_still_have_an_interval(
    rng: np.random.Generator,
) -> None:
    treatment, control = rng.random((2, 3, 4))
    treatment[:, 2:] = np.nan
    control[:, :2] = np.nan
    estimate = effect(treatment, control, list("aabb"))
    assert np.isfinite(interval(estimate)).all()
    assert (estimate.n_questions, estimate.n_topics, estimate.missing) == (4, 2, 12)


# When there is no interval, or one without width


@pytest.mark.parametrize(("n_treatment", "n_control"), [(2, 5), (5, 2), (1, 1), (5, 1)])
def test_fewer_than_three_seeds_in_an_arm_give_no_interval(
    rng: np.random.Generator, n_treatment: int, n_control: int
) -> None:
    estimate = effect(rng.random((n_treatment, Q)), rng.random((n_control, Q)), TOPICS)
    assert len(estimate.per_seed) == n_treatment
    assert estimate.n_seeds == min(n_treatment, n_control)
    assert np.isnan([*interval(estimate), estimate.standard_error]).all()


def test_a_fixed_control_does_not_replace_treatment_seeds() -> None:
    estimate = effect(scores(2, 2), scores(1, 2), ["a", "b"], control_is_fixed=True)
    assert np.isnan(interval(estimate)).all()


def test_three_seeds_that_do_not_vary_at_all_give_an_interval_without_width_but_two_give_none() -> (
    None
):
    estimate = rate(np.full((3, Q), 0.1), TOPICS)
    assert estimate.low == estimate.value == estimate.high == 0.1
    assert estimate.standard_error == 0
    assert np.isnan(estimate.degrees_of_freedom)
    assert np.isnan(interval(rate(np.full((2, Q), 0.1), TOPICS))).all()


# What is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rate(scores(3), ["a"] * 3), r"values has shape \(3,\).*\(seeds, questions\)"),
        (lambda: rate(scores(0, 2), ["a", "b"]), r"values has shape \(0, 2\)"),
        (lambda: rate(scores(3, 0), []), r"values has shape \(3, 0\)"),
        (lambda: rate(scores(3, 2), ["a"]), "1 topics for 2 questions"),
        (lambda: rate([[0.1, np.inf]], ["a", "b"]), "values has infinite scores"),
        (lambda: rate(scores(3, 2), ["a", "b"], level=95.0), "level is 95"),
        (lambda: rate(scores(3, 1), ["a"], bounds=(1.0, 0.0)), r"bounds are \(1.0, 0.0\)"),
        (lambda: rate([[-2.0, 0.5]], ["a", "b"]), "from -2 to 0.5 leave the bounds.*bounds=None"),
        (
            lambda: effect(scores(3, 2), scores(3, 1), ["a", "b"]),
            "treatment has 2 questions and control 1",
        ),
        (
            lambda: effect(scores(3, 2), scores(2, 2), ["a", "b"], control_is_fixed=True),
            "control has 2 rows",
        ),
        (lambda: effect(scores(3, 2), scores(2), ["a", "b"]), r"control has shape \(2,\)"),
    ],
)
def test_input_that_does_not_fit_is_refused_with_the_reason(
    call: Callable[[], Estimate], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
