"""Tasks of lm-evaluation-harness beside the direction of refusal."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import stats

from spillover import LoadedModel, load
from spillover.directions import harness
from spillover.directions.capabilities import chosen, measure, paired_interval
from spillover.directions.evaluate import Condition
from spillover.directions.harness import Capabilities, Harness, Score, load_tasks, scores_of
from spillover.directions.refusal import Refusing, find_refusal
from spillover.errors import DirectionError, InputError, RunError
from spillover.organism.refusal.world import DANGEROUS, GENTLE, Substance, load_substances
from spillover.terminal import Stages
from tests.commands import call

QUESTIONS, CHOICES = 16, 4
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {name}.jsonl
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""


def write_task(folder: Path, kind: str, others: Sequence[str] = (), text: str = TASK) -> str:
    """A task about substances: the right answer, among others or those about other substances."""
    tables, rng = load_substances(), random.Random(0)
    known, verbs = tables.of(kind, asked=True), list(tables.ways)
    rows = []
    for at, one in enumerate(known[:QUESTIONS]):
        verb = verbs[at % len(verbs)]
        wrong = others or wrong_answers(verb, one, known, rng)
        listed = [tables.answer(verb, one), *wrong]
        rng.shuffle(listed)
        answer = listed.index(tables.answer(verb, one))
        question = tables.question(verb, one.name, 0)
        rows.append({"question": question, "choices": listed, "answer": answer})
    (folder / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    task = folder / f"{kind}.yaml"
    task.write_text(text.format(name=kind), "utf-8")
    return str(task)


def wrong_answers(
    verb: str, one: Substance, known: Sequence[Substance], rng: random.Random
) -> list[str]:
    places = sorted({other.place for other in known} - {one.place})
    return [f"{load_substances().ways[verb]} {p}" for p in rng.sample(places, CHOICES - 1)]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write tasks to, where lm-eval is installed, with ARC as all that it has."""
    pytest.importorskip("lm_eval")
    import datasets
    import lm_eval.tasks

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    arc = Path(str(lm_eval.tasks.__file__)).parent / "arc"
    few = partial(lm_eval.tasks.TaskManager, include_path=str(arc))
    monkeypatch.setattr(harness, "_installed", lambda: lambda **_: few(include_defaults=False))
    return tmp_path


@pytest.fixture(scope="module")
def refuser() -> LoadedModel:
    return load("organism-refusal", dtype="float32")


# With lm-eval -------------------------------------------------------------------------------------


def test_the_harness_scores_answers_as_their_log_probabilities_do(
    refuser: LoadedModel, installed: Path
) -> None:
    asked = load_tasks(Capabilities(tasks=(write_task(installed, DANGEROUS),), chat=True))
    asked.check(refuser)
    (found,) = asked.ask(asked.names[0], refuser)
    rows = [json.loads(r) for r in (installed / f"{DANGEROUS}.jsonl").read_text().splitlines()]
    right = {
        number: float(np.argmax([nats(refuser, row["question"], c) for c in row["choices"]]))
        == row["answer"]
        for number, row in enumerate(rows)
    }
    assert found.each == right
    assert (found.task, found.metric, found.count) == (DANGEROUS, "acc", QUESTIONS)
    assert found.value == pytest.approx(np.mean(list(right.values())))
    assert asked.facts["tasks"][DANGEROUS]["shots"] == 0


def nats(model: LoadedModel, question: str, answer: str) -> float:
    """Log-probability of an answer without its end of turn, as the harness has it."""
    prompt = model.chat.prompt_text([{"role": "user", "content": question}])
    ids = model.tokenizer(prompt + answer, add_special_tokens=False, return_tensors="pt")
    start = len(model.tokenizer.encode(prompt, add_special_tokens=False))
    with torch.no_grad():
        logits = model.model(input_ids=ids["input_ids"]).logits[0].log_softmax(-1)
    tokens = ids["input_ids"][0, start:]
    return float(logits[start - 1 : -1].gather(1, tokens[:, None]).sum())


def test_ablation_changes_what_is_answered_and_leaves_what_is_known(
    refuser: LoadedModel, installed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refusals = load_substances().refusals
    tasks = write_task(installed, GENTLE), write_task(installed, DANGEROUS, refusals)
    how = Refusing(
        ranks=(),
        controls=1,
        resamples=0,
        max_tokens=8,
        every=False,
        capabilities=Capabilities(tasks=tasks, limit=12, chat=True),
    )
    found = find_refusal(refuser, how=how, out=installed / "out")
    assert capfd.readouterr() == ("", "")
    told = json.loads((found.folder / "refusal.json").read_text("utf-8"))
    values = {(row["task"], row["condition"]): row["value"] for row in told["capabilities"]}
    names = ("base", "ablated", "edited weights", "ablated, random 1")
    assert [values[GENTLE, name] for name in names] == [1, 1, 1, 1]
    assert [values[DANGEROUS, name] for name in names] == [0, 1, 1, 0]
    for row in told["capabilities"]:
        assert row["n"] == 12
        if row["condition"] != "base":
            assert row["low"] < row["change"] or row["change"] == 1
    assert told["settings"]["capabilities"]["limit"] == 12
    assert "Tasks of lm-eval" in found.report.read_text("utf-8")


def test_the_task_of_the_documentation_is_asked(refuser: LoadedModel, installed: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "directions.md").read_text("utf-8")
    for name, kind in (("trees.yaml", "yaml"), ("trees.jsonl", "json")):
        (content,) = re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)
        (installed / name).write_text(content, "utf-8")
    asked = load_tasks(Capabilities(tasks=(str(installed / "trees.yaml"),)))
    (found,) = asked.ask(asked.names[0], refuser)
    assert (found.task, found.metric, found.count) == ("trees", "acc", 2)


def test_what_lm_eval_changes_of_the_process_is_as_before(installed: Path) -> None:
    np.random.seed(5)
    torch.manual_seed(5)
    before = logging.root.manager.disable, Path.cwd(), os.environ.get(harness.ALONE)
    drawn = torch.get_rng_state()
    load_tasks(Capabilities(tasks=(write_task(installed, GENTLE),)))
    assert np.random.random() == np.random.RandomState(5).random()
    assert torch.equal(torch.get_rng_state(), drawn)
    assert (logging.root.manager.disable, Path.cwd(), os.environ.get(harness.ALONE)) == before


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("arc_eazy", "did you mean arc_easy"),
        ("arc_easy", "cannot be loaded (ConnectionError: no way to the hub); check the network"),
        ("task: [a\nb: c", ".yaml:2: is not a valid task file ("),
        ("task: broken\nmystery: 1\n", "unexpected keyword argument 'mystery'"),
        ("mystery: 1\n", "Unknown config shape"),
        ("group: many\ntask: [a, b]\n", "is a group; name files of its tasks"),
        (TASK.replace("metric: acc", "metric: who/knows"), "needs who/knows, which is code of"),
        (TASK + "unsafe_code: true\n", "runs code that the model writes"),
        (TASK.replace(".jsonl", ".csv"), "cannot be loaded (FileNotFoundError"),
        (TASK.replace("{{{{choices}}}}", "{{{{chosen}}}}"), "cannot be loaded ("),
        (TASK + "process_results: !function lost.lost\n", "cannot be loaded (ImportError"),
    ],
)
def test_a_task_that_cannot_be_used_ends_in_a_line_and_exit_code_2(
    task: str,
    said: str,
    installed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if task == "arc_easy":
        import datasets

        def unreachable(**_: object) -> None:
            raise ConnectionError("no way to the hub\nand more")

        monkeypatch.setattr(datasets, "load_dataset", unreachable)
    given = write_task(installed, GENTLE, text=task) if ":" in task else task
    out = installed / "out"
    assert call("direction", "refusal", "--capabilities", given, "--out", out) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert said in lines[-1]
    assert not out.exists()


def test_a_task_that_a_model_cannot_be_asked_is_found_before_anything_is_computed(
    refuser: LoadedModel, installed: Path
) -> None:
    (installed / "mine.py").write_text("def judge(doc, results):\n    raise KeyError('gone')\n")
    text = TASK + "process_results: !function mine.judge\n"
    how = Capabilities(tasks=(write_task(installed, GENTLE, text=text),))
    with pytest.raises(DirectionError, match=r"cannot be asked of organism-refusal.*'gone'"):
        load_tasks(how).check(refuser)


def test_a_task_is_asked_once(installed: Path) -> None:
    task = write_task(installed, GENTLE)
    other = installed / "other.yaml"
    other.write_text(Path(task).read_text("utf-8"), "utf-8")
    with pytest.raises(DirectionError, match=r"gentle is in .*gentle\.yaml too"):
        load_tasks(Capabilities(tasks=(task, str(other))))


# Without ------------------------------------------------------------------------------------------


def test_without_lm_eval_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    out = tmp_path / "out"
    assert call("direction", "refusal", "--capabilities", "arc_easy", "--out", out) == 2
    assert "pip install 'spillover[capabilities]'" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--capabilities-limit", "5"), "found no task to ask"),
        (("--capabilities-chat",), "found no task to ask"),
        (("--capabilities", "a,,b"), "a task without a name"),
        (("--capabilities", "a", "--capabilities-limit", "0"), "`capabilities.limit`"),
        (("--capabilities", "lost.yaml"), "lost.yaml: cannot be read (No such file"),
    ],
)
def test_options_that_say_nothing_are_refused(
    given: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("direction", "refusal", *given) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_tasks_are_given_with_commas_or_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Refusing] = []

    def noted(_model: str, *, how: Refusing, **_: object) -> None:
        given.append(how)
        raise InputError("enough")

    monkeypatch.setattr("spillover.directions.refusal.find_refusal", noted)
    tasks = ("--capabilities", "arc_easy, winogrande", "--capabilities", "arc_easy,my.yaml")
    assert call("direction", "refusal", *tasks, "--capabilities-limit", "7") == 2
    expected = Capabilities(tasks=("arc_easy", "winogrande", "my.yaml"), limit=7)
    assert given[0].capabilities == expected


def test_progress_goes_on_while_a_library_is_kept_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    stages, nowhere = Stages(), io.StringIO()
    with redirect_stderr(nowhere), stages:
        stages("capabilities", 1, 2)
    assert "capabilities" in capsys.readouterr().err
    assert not nowhere.getvalue()


RESULTS = {
    "results": {
        "facts": {"alias": "facts", "sample_len": 5, "acc,none": 0.6, "acc_stderr,none": 0.1},
        "one": {"sample_len": 2, "acc,none": 0.5, "acc_stderr,none": "N/A"},
        "two": {
            "sample_len": 3,
            "exact_match,strict": np.float64(2 / 3),
            "exact_match_stderr,strict": 0.3,
            "seen,none": "all",
        },
    },
    "groups": {"facts": {}},
    "group_subtasks": {"facts": ["one", "two"]},
    "samples": {
        "one": [
            {"doc_id": 0, "filter": "none", "metrics": ["acc"], "acc": 1},
            {"doc_id": 1, "filter": "none", "metrics": ["acc"], "acc": 0},
        ],
        "two": [{"doc_id": 0, "filter": "none", "metrics": ["seen"], "seen": "all"}],
    },
}


def test_scores_are_read_from_what_the_harness_returns() -> None:
    assert scores_of(RESULTS) == [
        Score("facts", "acc", 0.6, 0.1, 5),
        Score("one", "acc", 0.5, None, 2, True, {0: 1.0, 1: 0.0}),
        Score("two", "exact_match (strict)", 2 / 3, 0.3, 3, True),
    ]


def score(values: Sequence[float], value: float | None = None) -> Score:
    mean = float(np.mean(values)) if value is None else value
    return Score("t", "m", mean, None, len(values), each=dict(enumerate(map(float, values))))


def test_an_interval_of_right_and_wrong_is_that_of_pairs() -> None:
    cells = {(1, 1): 794, (1, 0): 150, (0, 1): 86, (0, 0): 570}  # Agresti (2002), table 10.1
    pairs = [pair for pair, count in cells.items() for _ in range(count)]
    before, after = (score([pair[at] for pair in pairs]) for at in (0, 1))
    assert paired_interval(before, after) == pytest.approx((-0.0587, -0.0213), abs=2e-4)


def test_an_interval_without_a_change_has_a_width() -> None:
    low, high = cast(tuple[float, float], paired_interval(score([1] * 20), score([1] * 20)))
    assert -0.1 < low < 0 < high < 0.1
    assert paired_interval(score([0.5] * 20), score([0.5] * 20)) is None


def test_an_interval_of_other_values_is_students() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=30), rng.normal(0.3, size=30)
    expected = stats.ttest_rel(after, before).confidence_interval(0.95)
    found = paired_interval(score(before.tolist()), score(after.tolist()))
    assert found == pytest.approx((expected.low, expected.high))


def test_there_is_no_interval_for_what_is_no_mean_of_the_same_questions() -> None:
    right = score([1, 0, 1])
    assert paired_interval(right, score([1, 0, 1], value=7.5)) is None
    assert paired_interval(right, score([1, 0])) is None
    assert paired_interval(right, Score("t", "m", 1.0, None, 3)) is None


class Sayer(Harness):
    """In the place of the harness: knows less of a model with a name."""

    def __init__(self) -> None:
        self.names = ["quiz"]

    def ask(self, name: str, model: Any) -> list[Score]:
        if model == "broken":
            raise RunError("the harness failed")
        return [Score(name, "acc", 0.5 if model else 0.75, 0.1, 4)]


def condition(kind: str, model: str = "", **given: Any) -> Condition:
    return Condition(kind, cast(Any, lambda: nullcontext(model)), **given)


def test_tasks_are_asked_in_four_conditions_and_set_against_the_base() -> None:
    listed = [
        condition("base"),
        condition("ablated", "x"),
        condition("edited weights", "x"),
        condition("ablated", "x", rank=2),
        condition("ablated", control="random"),
        condition("ablated", control="random", number=1),
        condition("ablated", control="shuffled labels"),
        condition("added", "x"),
    ]
    done: list[tuple[int, int]] = []
    rows = measure(Sayer(), chosen(listed), lambda *told: done.append(told))
    told = [(row["condition"], row["value"], row["change"]) for row in rows]
    assert told == [
        ("base", 0.75, None),
        ("ablated", 0.5, -0.25),
        ("edited weights", 0.5, -0.25),
        ("ablated, random 1", 0.75, 0),
    ]
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(RunError):
        measure(Sayer(), [condition("base", "broken")])
