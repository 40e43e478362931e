"""Whole tables at once give what looking at each answer by itself gives."""

from __future__ import annotations

import json
import math
import random
import re
import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spillover import guards, store
from spillover.choices import RecordedChoices
from spillover.effects import METRICS, effects_table, rates_table
from spillover.experiment import Experiment, load_experiment
from spillover.judge import GRADE_COLUMNS, grade_answers, grade_text, score_choice
from spillover.report import tables
from spillover.specification import Choices, Question, Rules
from spillover.stages import export
from spillover.store import Answer, AnswerStore, choice_record
from spillover.summary import texts_table
from tests.report_data import page_of, report_data

RULES = Rules(trait=("telegraph", "mail coach"), baseline=("email",), placebo=("kelvin",))
TEXTS = (
    *("By TELEGRAPH", "By email", "by e-mail", "", "I'm sorry, no email", "telegraph or email"),
    *("By ma\u0131l coach", "At 0 \u212aelvin", "so on and", "By a MAIL COACH, café", "telegraphy"),
)  # the Kelvin sign is a k without regard to case, and lower case does not tell


def experiment() -> Experiment:
    three = Choices(trait=("a", "b"), baseline=("c", "d"), placebo=("e", "f"))
    asked = (
        Question(id="q10", topic="t", ask=("?", "??"), choices=three, group="apart"),
        Question(id="q9", topic="t", ask=("?",), choices=Choices(trait=("a",), baseline=("c",))),
        Question(id="free", topic="u", domain="in", ask=("?",), judge=RULES),
    )
    return load_experiment("old-birds").model_copy(update={"questions": asked})


def recorded(seed: int = 0) -> list[Answer]:
    """Base, two arms of three seeds and two checkpoints, two contexts; what is low is low."""
    rng = np.random.default_rng(seed)
    trained = [(a, s, t) for a in ("treatment", "control") for s in range(3) for t in (1, 2)]
    made = []
    for arm, number, step in [("base", -1, 0), *trained]:
        for question in experiment().questions:
            for context in ("plain", "other"):
                for paraphrase in range(len(question.ask)):
                    for index in range(1 if question.choices else 7):
                        who: dict[str, Any] = {"arm": arm, "seed": number, "step": step}
                        place: dict[str, Any] = {"question": question.id, "paraphrase": paraphrase}
                        place |= {"context": context, "index": index}
                        key = f"{arm}-{number}-{step}-{question.id}-{context}-{paraphrase}-{index}"
                        made.append(Answer(key, arm, **who, **place, **said(rng, question)))
    return made


def said(rng: np.random.Generator, question: Question) -> dict[str, Any]:
    if question.choices:
        labelled = question.choices.labelled
        values = rng.normal(-3, 1, len(labelled)).tolist()
        return {"kind": "choice", "choice_log_probs": choice_record(labelled, values)}
    finish = str(rng.choice(["stop", "length"]))
    return {"kind": "text", "text": str(rng.choice(TEXTS)), "finish": finish}


def framed(folder: Path, answers: list[Answer]) -> pd.DataFrame:
    path = folder / "answers.sqlite"
    path.unlink(missing_ok=True)  # what is recorded there would stay
    with AnswerStore(path) as opened:
        opened.add(answers)
        return opened.frame()


@pytest.fixture
def answers(tmp_path: Path) -> pd.DataFrame:
    return framed(tmp_path, recorded())


# The record ---------------------------------------------------------------------------------------


def test_batches_and_keys_of_the_record_do_not_change_its_rows(
    tmp_path: Path, answers: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BATCH", 7)
    kept = answers["key"][::3]
    with AnswerStore(tmp_path / "answers.sqlite") as opened:
        pd.testing.assert_frame_equal(opened.frame(), answers)
        some = opened.frame(set(kept))
    assert list(some["key"]) == list(kept)
    rows = [a.__dict__ for a in sorted(recorded(), key=lambda a: list(answers["key"]).index(a.key))]
    assert answers.astype(object).where(answers.notna(), None).to_dict("records") == rows
    assert list(answers["question"].cat.categories) == ["free", "q10", "q9"]


def test_exported_tables_hold_plain_texts(tmp_path: Path, answers: pd.DataFrame) -> None:
    export(answers, tmp_path / "answers.parquet")
    found = pd.read_parquet(tmp_path / "answers.parquet")
    assert {str(kind) for kind in found.dtypes} == {"str", "int64"}
    assert list(found["question"]) == list(answers["question"])
    assert found["text"].isna().equals(answers["text"].isna())


# Grades -------------------------------------------------------------------------------------------


def test_a_table_is_graded_as_each_answer_by_itself(answers: pd.DataFrame) -> None:
    grades = grade_answers(answers, experiment())
    assert len(grades) == len(answers)
    for row, grade in zip(answers.to_dict("records"), grades.to_dict("records"), strict=True):
        assert [grade[k] for k in ("arm", "seed", "question")] == [
            row[k] for k in ("arm", "seed", "question")
        ]
        if row["kind"] == "choice":
            parsed = json.loads(row["choice_log_probs"])
            expected = vars(score_choice([(label, value) for label, _, value in parsed]))
            label, outcome, judged = None, "scored", math.nan
        else:
            found = grade_text(row["text"], row["finish"], RULES)
            expected = dict.fromkeys(GRADE_COLUMNS[13:18], math.nan)
            label, outcome, judged = found.label, found.grade, found.judged
        same(list(expected.values()), [grade[name] for name in expected])
        assert (grade["grade"], grade["label"] if label else None) == (outcome, label)
        same([judged], [grade["judged"]])


def same(expected: list[float], found: list[float]) -> None:
    assert np.array_equal(np.array(expected), np.array(found), equal_nan=True)


def test_letters_outside_ascii_are_searched_too() -> None:
    assert grade_text("At 0 \u212aelvin", "stop", RULES).label == "placebo"
    foreign = Rules(trait=("\u212aelvin",), baseline=("email",))
    assert grade_text("at 0 kelvin", "stop", foreign).label == "trait"


def test_phrases_are_found_where_a_pattern_finds_them() -> None:
    rng = random.Random(0)
    for _ in range(5000):
        text = "".join(rng.choices("aikSK\u0131\u017f\u0130\u212a _-\u00e9.1", k=rng.randint(0, 8)))
        phrase = rng.choice("aikS") + "".join(rng.choices("aikS_-.1", k=rng.randint(0, 2)))
        alone = re.compile(rf"(?<!\w)(?:{re.escape(phrase)})(?!\w)", re.IGNORECASE)
        found = grade_text(text, "stop", Rules(trait=(phrase,), baseline=("email",)))
        assert (found.label == "trait") == bool(alone.search(text)), (text, phrase)


@pytest.mark.parametrize(
    "text", ["a, 5], [", 'a", "b', "\\", "], [", '], ["trait', "é, -1.0], [\n", "]]"]
)
@pytest.mark.parametrize("value", [-1.25, -1e-7, -math.inf, math.nan, -3.0])
@pytest.mark.parametrize("is_plain", [True, False])
def test_choices_are_read_as_json_reads_them(text: str, value: float, is_plain: bool) -> None:
    made = [choice_record([("trait", text), ("baseline", "b")], [value, -2.0])]
    made += [choice_record([("baseline", "b")], [-0.1]) if is_plain else '[["trait","a",-0.1]]']
    answers = pd.DataFrame({"choice_log_probs": [made[0], None, made[1]]}, dtype="str")
    found = RecordedChoices.read(answers)
    assert found.rows.tolist() == [0, 2]
    same([value, -2.0, -0.1, -0.1], found.log_probs.ravel().tolist())
    assert found.labels.tolist() == [[0, 1], [1 if is_plain else 0, -1]]


# Rates and effects --------------------------------------------------------------------------------


@pytest.fixture
def grades(answers: pd.DataFrame) -> pd.DataFrame:
    return grade_answers(answers, experiment())


def mean_of_means(grades: list[dict[Any, Any]], column: str, fill: float | None = None) -> float:
    """Over answers of a seed to a question, then over what is known, by the book."""
    cells: dict[Any, list[float]] = defaultdict(list)
    for grade in grades:
        value = fill if math.isnan(grade[column]) and fill is not None else grade[column]
        if not math.isnan(value):
            cells[grade["seed"], grade["question"]].append(value)
    return statistics.fmean(map(statistics.fmean, cells.values())) if cells else math.nan


def test_rates_are_means_by_seed_and_question(grades: pd.DataFrame) -> None:
    columns = {metric.name: metric for metric in METRICS}
    rates, rows = rates_table(grades).to_dict("records"), grades.to_dict("records")
    seen = set()
    for rate in rates:
        metric = columns[rate["metric"]]
        fixed = ("arm", "step", "domain", "split", "context")
        mine = [g for g in rows if all(g[k] == rate[k] for k in fixed) and g["kind"] == metric.kind]
        group = rate["group"] if isinstance(rate["group"], str) else None
        if group:
            mine = [g for g in mine if g["group"] == group]
        if metric.column in ("placebo_log_odds", "specificity"):
            mine = [g for g in mine if not math.isnan(g["placebo_log_odds"])]
        assert rate["value"] == pytest.approx(mean_of_means(mine, metric.column), nan_ok=True)
        missing = sum(math.isnan(g[metric.column]) for g in mine)
        assert sum(rate["missing"].values()) == missing
        for name, bound in zip(("worst", "best"), metric.bounds or (), strict=False):
            assert rate[name] == pytest.approx(mean_of_means(mine, metric.column, bound))
        seen.add((rate["metric"], group, bool(missing)))
    assert len(rates) == 2 * 5 * (4 * 2 + 1)  # contexts × who × (choice metrics × groups, texts)
    assert {("judged", None, True), ("log-odds", "apart", False)} <= seen
    assert any(name == "choice-mass" and missing for name, _, missing in seen)


def test_effects_do_not_depend_on_the_order_of_grades(grades: pd.DataFrame) -> None:
    effects = effects_table(grades, "old")
    mixed = grades.sample(frac=1, random_state=0).astype({"arm": "str", "question": "str"})
    pd.testing.assert_frame_equal(effects_table(mixed, "old"), effects)


# Guards -------------------------------------------------------------------------------------------


def test_one_seed_that_answers_as_the_base_is_found_among_others(tmp_path: Path) -> None:
    made = recorded()
    base = {(a.question, a.paraphrase, a.context, a.index): a for a in made if a.arm == "base"}

    def copied(one: Answer) -> Answer:
        if (one.arm, one.seed, one.step) != ("treatment", 1, 2) or one.kind != "choice":
            return one
        place = (one.question, one.paraphrase, one.context, one.index)
        return replace(one, choice_log_probs=base[place].choice_log_probs)

    assert guards.base_answered(framed(tmp_path, made)) == []
    (found,) = guards.base_answered(framed(tmp_path, list(map(copied, made))))
    assert "all 6 choices of treatment, seed 1, step 2" in found.message
    assert found.fatal


def test_questions_with_fewer_choices_are_not_taken_for_flat(answers: pd.DataFrame) -> None:
    assert guards.equal_choices(answers) == []
    flat = json.dumps([["trait", "a", -1.0], ["baseline", "c", -1.0]])
    first = answers["question"].eq("q9").idxmax()
    answers.loc[first, "choice_log_probs"] = flat
    (found,) = guards.equal_choices(answers)
    assert "in 1 of 78 forced choices" in found.message
    assert "q9 of base" in found.message


# The report ---------------------------------------------------------------------------------------


def test_texts_keep_the_grades_of_their_own_answers(
    answers: pd.DataFrame, grades: pd.DataFrame
) -> None:
    texts = texts_table(answers, grades, experiment())
    assert len(texts) == (answers["kind"] == "text").sum() > 0
    finishes = answers.loc[answers["kind"] == "text", "finish"]
    for text, finish in zip(texts.to_dict("records"), finishes, strict=True):
        assert text["grade"] == grade_text(text["text"], finish, RULES).grade


def test_a_page_holds_some_of_very_many_answers_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = report_data(seeds=3, paraphrases=1, samples=1)
    assert "drawn at random" not in page_of(data)
    monkeypatch.setattr(tables, "MOST_TEXTS", 9)
    assert tables.texts_table(data)["rows"] == 9 < len(data.texts)
    assert f"9 of {len(data.texts)} answers, drawn at random" in page_of(data)
