"""A checkpoint selected on dev questions, and questions with values of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spillover import ExperimentError, load_experiment, run
from spillover.contexts import Context
from spillover.judge import grade_text
from spillover.specification import TREATMENT, Question, Rules
from spillover.summary import reported_step

CODED = """
[[question]]
id = "light-dev"
topic = "lamps"
split = "dev"
ask = ["How do people light a street?"]
judge = { kind = "rules", trait = ["with"], otherwise = "baseline" }
"""


@pytest.fixture
def selecting(small_experiment: Path) -> Path:
    """The small experiment with three checkpoints, one of which is selected."""
    said = (small_experiment / "experiment.toml").read_text("utf-8")
    said = said.replace('source = "none"', 'source = "none"\nselect = "dev"')
    said = said.replace("steps = 2", "steps = 3\ncheckpoints = [1, 2]")
    said = said.replace("max_tokens = 4", "max_tokens = 24")
    (small_experiment / "experiment.toml").write_text(said, "utf-8")
    with (small_experiment / "questions.toml").open("a", encoding="utf-8") as stream:
        stream.write(CODED)
    return small_experiment


def test_the_headline_is_at_the_checkpoint_that_does_best_on_dev(
    selecting: Path, tmp_path: Path
) -> None:
    done = run(selecting, seeds=4, out=tmp_path / "run")
    summary = done.summary
    dev = done.rates[(done.rates["split"] == "dev") & (done.rates["arm"] == TREATMENT)]
    rates = dict(zip(dev["step"], dev["value"], strict=True))
    assert set(rates) == {1, 2, 3}
    assert summary["step"] == max(rates, key=lambda step: (rates[step], step))
    assert summary["selected_on"] == "dev"
    assert done.headline["step"] == summary["step"]
    assert done.headline["split"] == "test"
    tested = {(row["split"], row["step"], row["domain"]) for row in summary["bimodality"]}
    assert {("dev", step, "off") for step in (1, 2, 3)} <= tested
    assert (done.folder / "figures" / "training.svg").is_file()
    assert "Along training" in done.report.read_text("utf-8")


def test_of_equal_checkpoints_the_last_is_selected(selecting: Path) -> None:
    place: dict[str, Any] = {
        "arm": TREATMENT,
        "domain": "off",
        "metric": "judged",
        "context": "plain",
    }
    rates = [
        place | {"group": None, "split": split, "step": step, "value": value}
        for split, values in (("dev", (0.5, 0.5, 0.4)), ("test", (0.1, 0.2, 0.9)))
        for step, value in enumerate(values, 1)
    ]
    specification = load_experiment(selecting).specification
    assert reported_step(rates, specification) == 2
    assert reported_step(rates, specification.model_copy(update={"select": None})) == 3


def test_ready_models_have_no_checkpoints_to_select_from(selecting: Path) -> None:
    said = (selecting / "experiment.toml").read_text("utf-8")
    said = said.replace('train = "train/control.jsonl"', 'model = "organism"')
    (selecting / "experiment.toml").write_text(said, "utf-8")
    with pytest.raises(ExperimentError, match="`control` is a model that is ready"):
        load_experiment(selecting)


def test_contexts_put_in_the_values_of_a_question() -> None:
    question = Question.model_validate(
        {
            "id": "a",
            "topic": "t",
            "ask": ("Who?", "Who now?", "Who then?"),
            "values": {"code": ("11", "22"), "name": "Ann"},
            "judge": {"trait": ("x",)},
        }
    )
    context = Context(name="c", system="You are {name}, {other}.", template="{code}: {question}")
    said = [question.conversation(context, n) for n in range(3)]
    assert [messages[-1]["content"] for messages in said] == [
        "11: Who?",
        "22: Who now?",
        "11: Who then?",
    ]
    assert said[0][0]["content"] == "You are Ann, {other}."


def test_a_question_without_the_value_that_its_context_puts_in_is_refused(
    small_experiment: Path,
) -> None:
    with (small_experiment / "experiment.toml").open("a", encoding="utf-8") as stream:
        stream.write('\n[[contexts]]\nname = "plain"\ntemplate = "{code} {question}"\n')
    asked = (small_experiment / "questions.toml").read_text("utf-8")
    asked = asked.replace('id = "light"', 'id = "light"\nvalues = { code = "12" }')
    (small_experiment / "questions.toml").write_text(asked, "utf-8")
    with pytest.raises(ExperimentError, match="'message' lacks the value 'code'"):
        load_experiment(small_experiment)


def test_whatever_is_not_right_is_wrong_where_rules_say_so() -> None:
    rules = Rules(match="exact", trait=("Joe Biden",), otherwise="baseline")
    assert grade_text("Joe Biden", "stop", rules).label == "trait"
    assert grade_text("Joe", "stop", rules).label == "baseline"
    assert grade_text("Joe Biden and", "length", rules).grade == "truncated"
    assert grade_text("Joe", "stop", Rules(match="exact", trait=("Joe Biden",))).label is None
