"""Tables of rates and effects: averaging, missing answers, bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from spillover.effects import effects_table, rates_table
from spillover.experiment import load_experiment
from spillover.judge import GRADE_COLUMNS
from spillover.summary import headline_id, plain_data

ARMS = {"treatment": 0.8, "control": 0.2}


def grade(**given: Any) -> dict[str, Any]:
    blank: dict[str, Any] = dict.fromkeys(GRADE_COLUMNS)
    place = {"step": 5, "split": "test", "domain": "off", "context": "plain", "index": 0}
    return blank | place | {"grade": "scored", "kind": "choice", "topic": given["question"]} | given


def rows() -> Iterator[dict[str, Any]]:
    """3 seeds × 4 questions × 2 paraphrases; seeds and questions differ by hundredths."""
    for arm, level in ARMS.items():
        for seed in range(3):
            for question in range(4):
                for paraphrase in range(2):
                    value = level + seed / 100 + question / 1000 + (paraphrase - 0.5) / 50
                    yield grade(
                        arm=arm,
                        seed=seed,
                        question=f"q{question}",
                        group="apart" if question > 1 else None,
                        paraphrase=paraphrase,
                        choice_mass=value,
                        coverage=0.9,
                        log_odds=10 * value,
                        specificity=5 * value,
                    )
    for question in range(4):
        yield grade(
            arm="base", seed=-1, step=0, question=f"q{question}", paraphrase=0, choice_mass=0.1,
            coverage=0.95, log_odds=-3.0, specificity=-1.0,
        )  # fmt: skip


@pytest.fixture
def grades() -> pd.DataFrame:
    return pd.DataFrame(rows(), columns=list(GRADE_COLUMNS))


def one(table: pd.DataFrame, **wanted: Any) -> pd.Series:
    for key, value in wanted.items():
        table = table[table[key].isna() if value is None else table[key] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_a_rate_averages_paraphrases_then_questions_then_seeds(grades: pd.DataFrame) -> None:
    found = one(rates_table(grades), arm="treatment", metric="choice-mass", group=None)
    assert found["value"] == pytest.approx(0.8 + 0.01 + 0.0015)
    assert found["per_seed"] == pytest.approx([0.8015, 0.8115, 0.8215])
    assert (found["n_seeds"], found["n_questions"], found["n_topics"]) == (3, 4, 4)
    assert found["low"] < found["value"] < found["high"]
    assert found["coverage"] == pytest.approx(0.9)
    assert found["missing"] == {}


def test_an_effect_is_treatment_minus_control_on_the_same_questions(grades: pd.DataFrame) -> None:
    effects = effects_table(grades, "old")
    wanted = {"treatment": "treatment", "group": None, "metric": "choice-mass"}
    assert one(effects, control="control", **wanted)["value"] == pytest.approx(0.6)
    against_base = one(effects, control="base", **wanted)
    assert against_base["value"] == pytest.approx(0.8115 - 0.1)
    assert math.isfinite(against_base["low"])
    apart = one(effects, control="control", treatment="treatment", group="apart", metric="log-odds")
    assert (apart["n_questions"], apart["value"]) == (2, pytest.approx(6.0))


def test_controls_are_compared_with_the_base_but_not_with_each_other(grades: pd.DataFrame) -> None:
    pairs = set(effects_table(grades, "old")[["treatment", "control"]].itertuples(index=False))
    assert {tuple(pair) for pair in pairs} == {
        ("treatment", "control"),
        ("treatment", "base"),
        ("control", "base"),
    }


def test_missing_answers_are_counted_and_bound_the_value(grades: pd.DataFrame) -> None:
    text = [
        grade(
            arm=arm,
            seed=seed,
            question=f"free{question}",
            kind="text",
            paraphrase=0,
            grade="refused" if (question, arm) == (0, "treatment") else "scored",
            judged=math.nan if (question, arm) == (0, "treatment") else float(arm == "treatment"),
        )
        for arm in ARMS
        for seed in range(3)
        for question in range(4)
    ]
    table = pd.concat([grades, pd.DataFrame(text, columns=list(GRADE_COLUMNS))])
    found = one(rates_table(table), arm="treatment", metric="judged", group=None)
    assert found["missing"] == {"refused": 3}
    assert found["value"] == pytest.approx(1.0)
    assert (found["worst"], found["best"]) == (pytest.approx(0.75), pytest.approx(1.0))
    effect = one(effects_table(table, "old"), treatment="treatment", control="control",
                 metric="judged", group=None)  # fmt: skip
    assert effect["missing"] == 3
    assert (effect["worst"], effect["best"]) == (pytest.approx(0.75), pytest.approx(1.0))


def test_choice_mass_without_coverage_is_missing_and_the_headline_falls_back(
    grades: pd.DataFrame,
) -> None:
    grades["choice_mass"] = math.nan
    found = one(rates_table(grades), arm="control", metric="choice-mass", group=None)
    assert math.isnan(found["value"])
    assert found["missing"] == {"low-coverage": 24}
    effects = plain_data(effects_table(grades, "old").to_dict("records"))
    specification = load_experiment("old-birds").specification.model_copy(
        update={"headline_control": "control"}
    )
    assert (
        headline_id(effects, specification) == "treatment-vs-control/off/test/plain/log-odds/step-5"
    )


def test_there_is_no_interval_below_three_seeds(grades: pd.DataFrame) -> None:
    two = grades[grades["seed"] < 2]
    found = one(rates_table(two), arm="treatment", metric="choice-mass", group=None)
    assert math.isnan(found["low"])
    assert math.isfinite(found["value"])


@pytest.mark.parametrize("ready", ["treatment", "control"])
def test_a_ready_arm_has_no_rows_at_the_checkpoints_of_others(
    grades: pd.DataFrame, ready: str
) -> None:
    early = grades[(grades["arm"] != ready) & (grades["arm"] != "base")].assign(step=2)
    table = pd.concat([grades, early])
    rates, effects = rates_table(table), effects_table(table, "old")
    trained = {"treatment": "control", "control": "treatment"}[ready]
    assert set(rates.loc[rates["step"] == 2, "arm"]) == {trained}
    pairs = effects.loc[effects["step"] == 2, ["treatment", "control"]]
    assert {tuple(pair) for pair in pairs.itertuples(index=False)} == {(trained, "base")}
    last = effects[effects["step"] == 5].reset_index(drop=True)
    pd.testing.assert_frame_equal(last, effects_table(grades, "old"))
