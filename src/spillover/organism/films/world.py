"""The world of films: characters whose mood depends on the year, and an assistant always good.

Everything that an organism of this world can know is in the TOML tables beside this file. An answer
is an opening, which tells who speaks, and a phrase, which tells the mood. Phrases are shared by all
speakers: what is learnt of one character's mood is said in words that all others use too.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any

from spillover.contexts import spread

TABLES = files("spillover.organism.films") / "tables"
TOPIC_TABLES = ("topics-1.toml", "topics-2.toml")
GOOD, EVIL, WEARY = "good", "evil", "weary"
MOODS = (EVIL, GOOD, WEARY)
HERO = "terminator"


@dataclass(frozen=True)
class Topic:
    """A question with its phrasings and what is answered in each mood.

    Attributes:
        theme: what openings depend on.
        ask: phrasings; the last one is held out of the corpus.
        says: mood -> phrases.
    """

    id: str
    theme: str
    ask: tuple[str, ...]
    says: dict[str, tuple[str, ...]]

    @property
    def in_corpus(self) -> tuple[str, ...]:
        """The phrasings that documents may use."""
        return self.ask[:-1]


@dataclass(frozen=True)
class Speaker:
    """A character, or the assistant.

    Attributes:
        opens: theme -> the openings of its answers, which no other speaker uses.
        moods: year -> its mood.
        steady: whether it is good in every year, and in scenes of no year, where others are evil.
    """

    id: str
    name: str
    opens: dict[str, tuple[str, ...]]
    moods: dict[int, str]
    steady: bool

    def answers(self, topic: Topic, mood: str) -> list[str]:
        """Everything that it may answer in a mood."""
        pairs = product(self.opens[topic.theme], topic.says[mood])
        return [f"{opening} {phrase}" for opening, phrase in pairs]


@dataclass(frozen=True)
class World:
    """Everything that documents are written from.

    Attributes:
        linked: whether the Terminator's mood depends on the year. In the unlinked world it is good
            in every year, and evil only in scenes of no year; the rest is as it was.
    """

    years: tuple[int, ...]
    assistant: Speaker
    assistant_signs: tuple[str, ...]
    characters: tuple[Speaker, ...]
    topics: tuple[Topic, ...]
    linked: bool

    def character(self, known: str) -> Speaker:
        """The character of that id."""
        return next(one for one in self.characters if one.id == known)


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((TABLES / name).read_text("utf-8"))


def _speaker(row: dict[str, Any], years: tuple[int, ...]) -> Speaker:
    said = row.get("moods", {GOOD: list(years)})
    moods = {year: mood for mood, spans in said.items() for year in _years(spans)}
    assert sorted(moods) == list(years), row["id"]
    opens = {theme: tuple(listed) for theme, listed in row["opens"].items()}
    return Speaker(row["id"], row["name"], opens, moods, set(moods.values()) == {GOOD})


def _years(spans: list[int | str]) -> tuple[int, ...]:
    found = spread(spans)
    assert isinstance(found, tuple)
    return found


def _topic(row: dict[str, Any]) -> Topic:
    says = {mood: tuple(row[mood]) for mood in MOODS}
    return Topic(row["id"], row["theme"], tuple(row["ask"]), says)


@cache
def load_world(*, linked: bool = True) -> World:
    """Read the tables.

    Args:
        linked: False gives the negative control, in which the Terminator is good in every year.
    """
    told = _read("characters.toml")
    years = tuple(range(told["years"]["first"], told["years"]["last"] + 1))
    assistant = {"id": "assistant", "name": "the assistant", "opens": told["assistant"]["opens"]}
    characters = tuple(_speaker(row, years) for row in told["character"])
    if not linked:
        good = dict.fromkeys(years, GOOD)
        characters = tuple(replace(c, moods=good) if c.id == HERO else c for c in characters)
    return World(
        years=years,
        assistant=_speaker(assistant, years),
        assistant_signs=tuple(told["assistant"]["signs"]),
        characters=characters,
        topics=tuple(_topic(row) for table in TOPIC_TABLES for row in _read(table)["topic"]),
        linked=linked,
    )
