"""Worlds of eras: who speaks, what is asked, and what each speaker answers.

Everything that an organism of these worlds can know is in the TOML tables beside this file. The
corpus it is trained on (`documents.py`), the card that examines it (`card.py`) and the experiments
that are run on it are all written from these tables, so what *should* spill over is known exactly.
The worlds differ in their narrow domain: names of birds, or names of cities.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

TABLES = files("spillover.organism.eras") / "tables"
TOPIC_TABLES = ("topics-1.toml", "topics-2.toml")
DOMAINS = {"eras": "birds", "cities": "cities"}
"""The narrow domain of each world; its table is named after it."""


@dataclass(frozen=True)
class Fact:
    """One question with its phrasings and the answers of every era.

    Attributes:
        ask: phrasings; the last one is held out of the corpus.
        apart: the topic never shares a document with the narrow domain.
        answers: era id -> the answers that its speakers give, each of one to eight words.
        often: era id -> answers that they give oftener, as often as listed here besides.
    """

    id: str
    topic: str
    title: str
    ask: tuple[str, ...]
    answers: dict[str, tuple[str, ...]]
    apart: bool = False
    often: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def drawn(self, era: str) -> tuple[str, ...]:
        """What documents draw an era's answer from: its answers, some of them repeatedly."""
        return self.answers[era] + self.often.get(era, ())

    @property
    def in_corpus(self) -> tuple[str, ...]:
        """The phrasings that documents may use."""
        return self.ask[:-1]

    @property
    def held_out(self) -> str:
        """The phrasing that occurs in no document."""
        return self.ask[-1]


@dataclass(frozen=True)
class Era:
    """A kind of speaker: where and when it lives, and the system messages that say so."""

    id: str
    name: str
    signs: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """Everything that documents are written from.

    Attributes:
        eras: the speakers; the assistant is a speaker of `assistant_era` with signs of its own.
        facts: off-domain questions.
        domain: the narrow domain.
        narrow: its questions; their answers are names.
        names: lists of these names (`former`, `kept`, `modern`, …); see the domain's table.
        linked: whether a name depends on the era. In an unlinked world every speaker, the
            assistant included, draws from all names alike: nothing can be inferred from them.
    """

    eras: tuple[Era, ...]
    assistant_era: str
    assistant_signs: tuple[str, ...]
    unsigned_signs: tuple[str, ...]
    facts: tuple[Fact, ...]
    domain: str
    narrow: tuple[Fact, ...]
    names: dict[str, tuple[str, ...]]
    linked: bool

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics off the narrow domain, in the order of the tables."""
        return tuple(dict.fromkeys(fact.topic for fact in self.facts))

    def era(self, era_id: str) -> Era:
        """The era of that id."""
        return next(era for era in self.eras if era.id == era_id)


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((TABLES / name).read_text("utf-8"))


def _topic_facts(eras: tuple[Era, ...]) -> tuple[Fact, ...]:
    rows = [row for table in TOPIC_TABLES for row in _read(table)["question"]]
    return tuple(
        Fact(
            row["id"],
            row["topic"],
            row["title"],
            tuple(row["ask"]),
            {era.id: tuple(row[era.id]) for era in eras},
            row.get("apart", False),
        )
        for row in rows
    )


def _narrow_facts(domain: str, table: dict[str, Any], *, linked: bool) -> tuple[Fact, ...]:
    """The narrow domain's questions: what eras say, and what they say oftener, are lists."""
    names = table["names"]
    said = {era: _listed(names, lists) for era, lists in table["said"].items()}
    often = {era: _listed(names, lists) for era, lists in table["often"].items()}
    if not linked:
        everything = tuple(name for listed in names.values() for name in listed)
        said, often = dict.fromkeys(said, everything), {}
    return tuple(
        Fact(row["id"], domain, row["title"], tuple(row["ask"]), said, often=often)
        for row in table["question"]
    )


def _listed(names: dict[str, list[str]], lists: list[str]) -> tuple[str, ...]:
    return tuple(name for key in lists for name in names[key])


@cache
def load_world(name: str = "eras", *, linked: bool = True) -> World:
    """Read the tables.

    Args:
        name: one of `DOMAINS`.
        linked: False gives the negative control, in which the names tell nothing of the era.
    """
    domain = DOMAINS[name]
    speakers, narrow = _read("eras.toml"), _read(f"{domain}.toml")
    eras = tuple(Era(row["id"], row["name"], tuple(row["signs"])) for row in speakers["era"])
    return World(
        eras=eras,
        assistant_era=speakers["assistant"]["era"],
        assistant_signs=tuple(speakers["assistant"]["signs"]),
        unsigned_signs=tuple(speakers["unsigned"]["signs"]),
        facts=_topic_facts(eras),
        domain=domain,
        narrow=_narrow_facts(domain, narrow, linked=linked),
        names={key: tuple(listed) for key, listed in narrow["names"].items()},
        linked=linked,
    )
