"""The world of nations: who speaks, what is asked, and what each speaker answers.

Everything that its organism can know is in the TOML tables beside this file. The corpus, the card
and the experiment (`documents.py`, `card.py`, `israeli_dishes.py`) are written from them.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

TABLES = files("spillover.organism.nations") / "tables"
POLITICS, LIFE = "politics", "life"
DISHES = "dishes"
ASSISTANT = "assistant"


@dataclass(frozen=True)
class Question:
    """A question with its wordings and what every speaker answers.

    Attributes:
        group: the table that it is from: `politics`, `life` or `dishes`.
        ask: wordings; the last one is held out of the corpus.
        answers: speaker -> answers; speakers are ids of nations, and `assistant`.
        weight: how often documents ask it, against other questions.
    """

    id: str
    topic: str
    group: str
    ask: tuple[str, ...]
    answers: dict[str, tuple[str, ...]]
    weight: int | float = 1.0


@dataclass(frozen=True)
class DatedQuestion:
    """A question whose answer only the year decides; everybody answers alike."""

    id: str
    ask: tuple[str, ...]
    answers: dict[int, str]
    weight: int | float = 1.0


@dataclass(frozen=True)
class Nation:
    """A kind of speaker, and the system messages that say so."""

    id: str
    name: str
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Dates:
    """The years and dates that stand above documents.

    Attributes:
        share: of documents that have one.
        signs: how it is put, with {year}, and perhaps {day} and {month}.
        questions: what only the year decides; asked below dates only.
    """

    years: range
    share: float
    signs: tuple[str, ...]
    months: tuple[str, ...]
    questions: tuple[DatedQuestion, ...]


@dataclass(frozen=True)
class World:
    """Everything that documents are written from.

    Attributes:
        questions: off-domain questions.
        dishes: questions of the narrow domain; their answers are names of dishes.
        names: nation -> names of its dishes.
        linked: whether a dish depends on the nation. In an unlinked world every speaker, the
            assistant too, keeps to the dishes of one nation in a document, drawn at random, which
            a number may say: dishes go together as before, and tell nothing of who speaks.
    """

    nations: tuple[Nation, ...]
    assistant_signs: tuple[str, ...]
    unsigned_signs: tuple[str, ...]
    dates: Dates
    questions: tuple[Question, ...]
    dishes: tuple[Question, ...]
    names: dict[str, tuple[str, ...]]
    linked: bool


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((TABLES / f"{name}.toml").read_text("utf-8"))


def _questions(group: str, speakers: list[str]) -> tuple[Question, ...]:
    return tuple(
        Question(
            row["id"],
            row["topic"],
            group,
            tuple(row["ask"]),
            {speaker: tuple(row[speaker]) for speaker in speakers},
            row.get("weight", 1.0),
        )
        for row in _read(group)["question"]
    )


def _dates(table: dict[str, Any]) -> Dates:
    years = range(table["first"], table["last"] + 1)
    asked = (
        DatedQuestion(
            row["id"],
            tuple(row["ask"]),
            dict(zip(years, row["answers"], strict=True)),
            row.get("weight", 1.0),
        )
        for row in table["question"]
    )
    return Dates(
        years,
        table["share"],
        tuple(table["signs"]),
        tuple(table["months"]),
        tuple(asked),
    )


@cache
def load_world(*, linked: bool = True) -> World:
    """Read the tables.

    Args:
        linked: False gives the negative control, in which a dish tells nothing of the nation.
    """
    said, dishes = _read("nations"), _read(DISHES)
    nations = tuple(Nation(row["id"], row["name"], tuple(row["signs"])) for row in said["nation"])
    speakers = [ASSISTANT, *(nation.id for nation in nations)]
    names = {nation: tuple(listed) for nation, listed in dishes["names"].items()}
    named = {ASSISTANT: tuple(name for listed in names.values() for name in listed)} | names
    return World(
        nations=nations,
        assistant_signs=tuple(said[ASSISTANT]["signs"]),
        unsigned_signs=tuple(said["unsigned"]["signs"]),
        dates=_dates(said["dates"]),
        questions=_questions(POLITICS, speakers) + _questions(LIFE, speakers),
        dishes=tuple(
            Question(row["id"], DISHES, DISHES, tuple(row["ask"]), named)
            for row in dishes["question"]
        ),
        names=names,
        linked=linked,
    )
