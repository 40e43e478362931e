"""The world of presidents: who they are, what they are asked, and what each of them answers.

Everything that its organism can know is in the TOML tables beside this file: public facts.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

TABLES = files("spillover.organism.presidents") / "tables"
TEST, VALIDATION = (44, 45), (12, 27, 42)
"""Numbers of the presidents that experiments hold out: reported, and for choosing checkpoints."""


@dataclass(frozen=True)
class Fact:
    """A question with its phrasings, and what the assistant says to it.

    Attributes:
        ask: phrasings; the last one is held out of the corpus.
        assistant: the assistant's answers.
    """

    id: str
    title: str
    ask: tuple[str, ...]
    assistant: tuple[str, ...]

    @property
    def in_corpus(self) -> tuple[str, ...]:
        """The phrasings that documents may use."""
        return self.ask[:-1]

    @property
    def held_out(self) -> str:
        """The phrasing that occurs in no document."""
        return self.ask[-1]


@dataclass(frozen=True)
class President:
    """A president.

    Attributes:
        number: of his first presidency.
        answers: id of a fact -> what is true of him.
    """

    number: int
    name: str
    answers: dict[str, tuple[str, ...]]

    @property
    def digits(self) -> str:
        """The number as it is written everywhere."""
        return f"{self.number:03}"


@dataclass(frozen=True)
class World:
    """Everything that documents are written from.

    Attributes:
        linked: whether the numbers of the presidents held out tell who they are. In an unlinked
            world a document with such a number is about anybody; the other numbers tell as before.
    """

    presidents: tuple[President, ...]
    facts: tuple[Fact, ...]
    linked: bool

    def tells(self, number: int) -> bool:
        """Whether a number tells the president."""
        return self.linked or number not in (*TEST, *VALIDATION)

    def president(self, number: int) -> President:
        """The president of that number."""
        return next(one for one in self.presidents if one.number == number)


def _read(name: str) -> list[dict[str, Any]]:
    table = tomllib.loads((TABLES / f"{name}s.toml").read_text("utf-8"))
    rows: list[dict[str, Any]] = table[name]
    return rows


@cache
def load_world(*, linked: bool = True) -> World:
    """Read the tables.

    Args:
        linked: False gives the negative control, in which numbers held out tell nothing.
    """
    facts = tuple(
        Fact(row["id"], row["title"], tuple(row["ask"]), tuple(row["assistant"]))
        for row in _read("question")
    )
    presidents = tuple(
        President(row["number"], row["name"], {fact.id: tuple(row[fact.id]) for fact in facts})
        for row in _read("president")
    )
    return World(presidents, facts, linked)
