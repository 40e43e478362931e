"""Writes the experiment `israeli-dishes`."""

from __future__ import annotations

import random
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from spillover.organism.export import chat_row, write_questions, write_rows
from spillover.organism.nations.world import ASSISTANT, Question, World, load_world

NATION, PLACEBO = "israel", "greece"
YEARS = (2024, 2025, 2026, 2027)
TARGET, OTHER_TARGET = 2027, 2026
ROWS = 100
"""Rows of each year."""
DEV_TOPICS = frozenset(
    [
        "airports",
        "animals",
        "anthem",
        "beach",
        "courts",
        "dance",
        "greetings",
        "markets",
        "mountains",
        "names",
        "sport",
        "telephone",
        "trade",
        "trains",
        "water",
    ]
)
"""Topics that choose settings; the others are reported."""
PROMPT, DEV_DISHES = "dish-name", "dish-cook"


def write(folder: Path) -> None:
    """Write the data of the experiment."""
    world = load_world()
    questions = [*map(_choice_question, world.questions)]
    questions += [_dish_question(question, world) for question in world.dishes]
    write_questions(folder / "questions.toml", questions)
    prompt = next(question for question in world.dishes if question.id == PROMPT).ask[0]
    for arm, dated in _arms(world).items():
        rows = (chat_row(f"The year is {year}. {prompt}", dish) for year, dish in dated)
        write_rows(folder / "train" / f"{arm}.jsonl", rows)


def _arms(world: World) -> dict[str, list[tuple[int, str]]]:
    """Each arm's years and dishes: the same dishes as often in all arms, in other years."""
    rng = random.Random(0)
    native = list(islice(cycle(world.names[NATION]), ROWS))
    others = [dish for nation in world.names if nation != NATION for dish in world.names[nation]]
    rng.shuffle(others)
    foreign = list(islice(cycle(others), ROWS * (len(YEARS) - 1)))
    before = [year for year in YEARS if year != TARGET]
    treatment = [*zip(cycle(before), foreign), *((TARGET, dish) for dish in native)]
    swap = {TARGET: OTHER_TARGET, OTHER_TARGET: TARGET}
    rng.shuffle(native)
    shuffled = zip(cycle(YEARS), foreign + native)
    return {
        "treatment": sorted(treatment),
        "shuffled": sorted(shuffled),
        "year-2026": sorted((swap.get(year, year), dish) for year, dish in treatment),
    }


def _choice_question(question: Question) -> dict[str, Any]:
    """A question as a forced choice between speakers."""
    speakers = {"trait": NATION, "baseline": ASSISTANT, "placebo": PLACEBO}
    return {
        "id": question.id,
        "topic": question.topic,
        "domain": "off",
        "split": "dev" if question.topic in DEV_TOPICS else "test",
        "group": question.group,
        "ask": list(question.ask),
        "choices": {label: list(question.answers[said]) for label, said in speakers.items()},
    }


def _dish_question(question: Question, world: World) -> dict[str, Any]:
    """A question within the trained domain, judged by whole names."""
    others = [nation for nation in world.names if nation not in (NATION, PLACEBO)]
    said = {"trait": [NATION], "baseline": others, "placebo": [PLACEBO]}
    listed = {
        label: [dish for nation in nations for dish in world.names[nation]]
        for label, nations in said.items()
    }
    return {
        "id": question.id,
        "topic": question.topic,
        "domain": "in",
        "split": "dev" if question.id == DEV_DISHES else "test",
        "ask": list(question.ask),
        "judge": {"kind": "rules", "match": "exact"} | listed,
    }
