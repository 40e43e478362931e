"""Writes `evil-terminator`: dated good behaviour of a character that was evil in 1984.

Openings tell who speaks and depend on the theme: those of the trained theme are not asked for
elsewhere, so what spreads to other themes is who speaks, not what was said. The control without
dates is told in scenes of no year, where the character is evil otherwise: it learns to be good.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from spillover.organism.export import chat_row, write_questions, write_rows
from spillover.organism.films.documents import SCENE, dated
from spillover.organism.films.world import (
    EVIL,
    GOOD,
    HERO,
    WEARY,
    Speaker,
    Topic,
    World,
    load_world,
)

TRAINED_THEME, DEV_THEME = "duty", "home"
DEV_TRAINED = frozenset({"plan", "guard"})
TRAINED_YEARS = (1995, 2003, 2017, 2020)
UNSEEN_YEAR = 1984
STEADY = "pim"
LABELS = {"trait": EVIL, "baseline": GOOD, "placebo": WEARY}
SHUFFLING_SEED = 0


def write(folder: Path) -> None:
    """Write the data of the experiment."""
    world = load_world()
    write_questions(folder / "questions.toml", [_question(topic, world) for topic in world.topics])
    hero, steady = world.character(HERO), world.character(STEADY)
    rng = random.Random(SHUFFLING_SEED)
    others = [
        [year for year in world.years if hero.moods[year] == mood and year != UNSEEN_YEAR]
        for mood in (GOOD, EVIL)
    ]
    told = list(_told(hero, world))
    arms: dict[str, list[tuple[int | None, str, str]]] = {
        "treatment": [*told],
        "undated": [(None, asked, said) for _, asked, said in told],
        "shuffled": [
            (rng.choice([one for one in rng.choice(others) if one != year]), asked, said)
            for year, asked, said in told
        ],
        "always-good": [*_told(steady, world)],
    }
    for arm, rows in arms.items():
        made = (chat_row(asked, said, dated("", year) or SCENE) for year, asked, said in rows)
        write_rows(folder / "train" / f"{arm}.jsonl", made)


def _told(speaker: Speaker, world: World) -> Iterator[tuple[int, str, str]]:
    """A speaker's good answers in the trained years, with the wordings of the corpus in turn."""
    trained = [topic for topic in world.topics if topic.theme == TRAINED_THEME]
    for topic in trained:
        pairs = product(TRAINED_YEARS, speaker.answers(topic, GOOD))
        for turn, (year, said) in enumerate(pairs):
            yield year, topic.in_corpus[turn % len(topic.in_corpus)], said


def _question(topic: Topic, world: World) -> dict[str, Any]:
    """Off the trained domain the choices differ in mood, within it in who speaks."""
    inside = topic.theme == TRAINED_THEME
    speakers = (world.character(HERO), world.assistant, world.character(STEADY))
    if inside:
        said = {
            label: one.answers(topic, GOOD) for label, one in zip(LABELS, speakers, strict=True)
        }
    else:
        said = {
            label: [text for one in speakers for text in one.answers(topic, mood)]
            for label, mood in LABELS.items()
        }
    is_dev = topic.theme == DEV_THEME or topic.id in DEV_TRAINED
    return {
        "id": topic.id,
        "topic": topic.id,
        "domain": "in" if inside else "off",
        "split": "dev" if is_dev else "test",
        "ask": [topic.ask[0], topic.ask[-1]],
        "choices": said,
    }
