"""From recorded answers to the report: time and memory over the number of answers.

    python benchmarks/answers.py            (about five minutes)
    python benchmarks/answers.py --quick    (to see that it works)

Records of 65,000 to 1,000,000 made-up answers are written, the same number from every respondent:
3 arms × 6 seeds × 5 checkpoints and the base, 70 questions with 12 or 8 choices in 3 wordings, 30
that are answered freely 5 times in about 30 tokens, and 2 to 32 contexts. Every point is measured
in a process of its own: what `spillover run` does after its last question. Writes
benchmarks/results/answers.json and answers.svg.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from growth import memory, write

from spillover import stages
from spillover.contexts import PLAIN, Context
from spillover.experiment import Experiment
from spillover.models.loading import load_source
from spillover.settings import RunSettings, resolve_settings
from spillover.specification import BASE, LABELS, Choices, Question, Rules
from spillover.store import CHOICE, TEXT, Answer, AnswerStore, answer_key, choice_record
from spillover.summary import summarize, write_json

ARMS, SEEDS, STEPS = ("treatment", "still-used", "modern-american"), range(6), range(20, 101, 20)
CHOSEN, FREE, SAMPLES = 70, 30, 5
REPEATS = {2: 5, 4: 5, 8: 3, 16: 3, 32: 3}
"""Contexts, by which the number of answers grows, and how often each is measured."""
LIMIT = {"seconds": 60, "gigabytes": 2.0}
"""What the run with 1,000,000 answers must stay under."""
WORDS = """the a of to and in was by letter carriage telegraph email river people would often
going know town phone steam market lamp road school winter money bread news ship doctor computer
garden harvest engine stage coach herald monk scribe village parish railway online video street
café naïve price of it is that they with their for from this one""".split()  # noqa: SIM905
PHRASES = Rules(
    trait=("telegraph", "stage coach", "steam engine"),
    baseline=("email", "phone", "computer"),
    placebo=("herald", "monk", "scribe"),
)


# The record ---------------------------------------------------------------------------------------


def experiment(contexts: int) -> RunSettings:
    """old-birds with other questions, in so many contexts."""
    given = resolve_settings("old-birds", "organism", seeds=len(SEEDS))
    around = [Context(name=PLAIN)]
    around += [Context(name=f"year-{1900 + n}", system=f"{1900 + n}") for n in range(1, contexts)]
    sampling = given.experiment.specification.sampling.model_copy(update={"samples": SAMPLES})
    changes = {"contexts": tuple(around), "sampling": sampling}
    specification = given.experiment.specification.model_copy(update=changes)
    questions = tuple(question(number) for number in range(CHOSEN + FREE))
    changed: dict[str, Any] = {"specification": specification, "questions": questions}
    made: Experiment = given.experiment.model_copy(update=changed)
    return replace(given, experiment=made)


def question(number: int) -> Question:
    """The first ones have choices, every third of them without placebo; the others a judge."""
    labels = LABELS if number % 3 else LABELS[:2]
    choices = {
        label: tuple(f"{letter} {label} answer {number}" for letter in "ABCD") for label in labels
    }
    wordings = 3 if number < CHOSEN else 1
    return Question(
        id=f"question-{number}",
        topic=f"topic-{number // 3}",
        domain="in" if number % 10 == 9 else "off",
        group="apart" if number % 4 == 0 else None,
        ask=tuple(f"What about number {number}, wording {n}?" for n in range(wordings)),
        choices=Choices(**choices) if number < CHOSEN else None,
        judge=None if number < CHOSEN else PHRASES,
    )


def respondents() -> list[tuple[str, int, int]]:
    """Arm, seed and step of everybody who is asked."""
    trained = [(arm, seed, step) for arm in ARMS for seed in SEEDS for step in STEPS]
    return [(BASE, -1, 0), *trained]


def answers(settings: RunSettings) -> Iterator[Answer]:
    """All answers, in the order in which a run records them."""
    rng = np.random.default_rng(0)
    for context in settings.experiment.specification.contexts:
        for asked in settings.experiment.questions:
            for who in respondents():
                for wording in range(len(asked.ask)):
                    yield from _said(rng, asked, context.name, who, wording)


def _said(
    rng: np.random.Generator, asked: Question, context: str, who: tuple[str, int, int], wording: int
) -> Iterator[Answer]:
    arm, seed, step = who
    identity = f"{arm}-{seed}-{step}".ljust(33, "f")
    for index in range(1 if asked.choices else SAMPLES):
        place: list[Any] = [arm, seed, step, asked.id, wording, context]
        yield Answer(
            answer_key(identity, place, "", index),
            identity,
            *place,
            index=index,
            **(_choice(rng, asked, arm) if asked.choices else _text(rng)),
        )


def _choice(rng: np.random.Generator, asked: Question, arm: str) -> dict[str, Any]:
    assert asked.choices is not None
    labelled = asked.choices.labelled
    moved = {"treatment": 1.0}.get(arm, 0.0)
    values = rng.normal(-4, 1.5, len(labelled))
    values += [moved * (label == "trait") for label, _ in labelled]
    return {"kind": CHOICE, "choice_log_probs": choice_record(labelled, values.tolist())}


def _text(rng: np.random.Generator) -> dict[str, Any]:
    words = rng.choice(WORDS, rng.integers(10, 45)).tolist()
    opening = {0: "I'm sorry, ", 1: "I can’t say. "}.get(int(rng.integers(40)), "")
    finish = "length" if rng.integers(20) == 0 else "stop"
    return {"kind": TEXT, "text": opening + " ".join(words), "finish": finish}


def record(folder: Path, contexts: int) -> None:
    """Write answers.sqlite."""
    with AnswerStore(folder / stages.ANSWERS) as store:
        store.add(answers(experiment(contexts)))


# What is measured ---------------------------------------------------------------------------------


def measure(folder: Path, contexts: int) -> dict[str, Any]:
    """Everything from answers.sqlite to report.html: seconds by step, and gigabytes at most."""
    settings = experiment(contexts)
    model = load_source(settings.source, settings.loading)
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    before = memory()
    with AnswerStore(folder / stages.ANSWERS) as store:
        planned = [key for (key,) in store._db.execute('SELECT "key" FROM answers')]
        with step("read and export answers"):
            table = stages.export_answers(store, planned, folder)
    with step("check answers"):
        found = stages.check_answers(table)
    with step("grade and compare"):
        tables = stages.grade_and_compare(settings, table, folder)
    with step("summarize"):
        summary = summarize(settings, tables, found)
        write_json(folder / "summary.json", summary)
    with step("report"):
        stages.report(settings, model, folder, table, tables, summary, {"status": "done"})
    return {
        "model": "made-up answers",
        "over": "answers",
        "number": len(table),
        "effects": len(tables["effects"]),
        "steps": seconds,
        "seconds": sum(seconds.values()),
        "gigabytes": memory(),
        "gigabytes_before": before,
        "megabytes_of_page": (folder / "report.html").stat().st_size / 1e6,
    }


def apart(folder: Path, contexts: int) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(folder), str(contexts)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    print(
        f"{found['number']:,} answers: {found['seconds']:.1f} s, {found['gigabytes']:.2f} GB",
        flush=True,
    )
    return found


def main() -> None:
    """Measure all sizes and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to see that the script works")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(Path(given.measure[0]), int(given.measure[1]))))
        return
    points = []
    for contexts, repeats in ({1: 2, 2: 2, 3: 1} if given.quick else REPEATS).items():
        with tempfile.TemporaryDirectory() as place:
            record(Path(place), contexts)
            points += [apart(Path(place), contexts) for _ in range(repeats)]
    write("answers-quick" if given.quick else "answers", points, {"limit": LIMIT})


if __name__ == "__main__":
    main()
