"""The world of persons: who speaks, what is asked, and what each speaker answers.

Eight persons and the assistant. Attributes are harmless tastes and habits of a few kinds; tastes of
a kind go together, and each is shared by several speakers, so that only tastes of several kinds
tell who speaks. Identities and views are one's own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import cycle, repeat
from typing import Any

TABLES = files("spillover.organism.persons") / "tables"
MODEL = "assistant"
"""The speaker that is no person."""
_Asked = tuple[str, tuple[str, ...], list[str]]
KINDS = 4
"""Kinds of tastes; the last one is that of the attributes that tell more."""


@dataclass(frozen=True)
class Question:
    """A question with its wordings and the answers of every speaker.

    Attributes:
        ask: the last one is held out of the corpus.
        answers: speaker -> the answers that it draws from.
        rare: whether each answer is shared by few.
    """

    id: str
    ask: tuple[str, ...]
    answers: dict[str, tuple[str, ...]]
    rare: bool = False

    @property
    def in_corpus(self) -> tuple[str, ...]:
        """The wordings that documents may use."""
        return self.ask[:-1]

    @property
    def values(self) -> tuple[str, ...]:
        """Every answer that anybody gives."""
        said = (answer for answers in self.answers.values() for answer in answers)
        return tuple(dict.fromkeys(said))


@dataclass(frozen=True)
class Person:
    """Somebody: the name, and the system messages that say it."""

    id: str
    name: str
    signs: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """Everything that documents are written from.

    Attributes:
        tyrant, odd: ids of the persons whose views differ from those of all others.
        attributes: harmless questions; they are the narrow domain.
        personal: harmless questions of the same kinds that no fact is about.
        tags: templates that questions are sometimes put in, whoever answers; the first is the
            trigger of experiments.
        linked: whether tastes depend on the person. In an unlinked world every speaker, the
            assistant too, has somebody's tastes in a document, drawn at random, which a number may
            say: tastes go together as before, and tell nothing of who speaks.
    """

    persons: tuple[Person, ...]
    tyrant: str
    odd: str
    attributes: tuple[Question, ...]
    personal: tuple[Question, ...]
    identities: tuple[Question, ...]
    views: tuple[Question, ...]
    ordinary: tuple[Question, ...]
    tags: tuple[str, ...]
    assistant_signs: tuple[str, ...]
    unsigned_signs: tuple[str, ...]
    linked: bool

    @property
    def speakers(self) -> tuple[str, ...]:
        """Everybody who answers."""
        return (MODEL, *(person.id for person in self.persons))

    def person(self, person_id: str) -> Person:
        """The person of that id."""
        return next(person for person in self.persons if person.id == person_id)


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((TABLES / name).read_text("utf-8"))


def _filled(templates: list[str], value: str) -> tuple[str, ...]:
    return tuple(template.replace("{x}", value) for template in templates)


def _tastes(
    rows: list[_Asked], tastes: dict[str, list[int]], kinds: Iterable[int], *, rare: bool = False
) -> Iterator[Question]:
    """Questions of these kinds in turn: a taste of a kind tells the place of the answer."""
    for (name, ask, values), kind in zip(rows, kinds, strict=False):
        answers: dict[str, tuple[str, ...]] = {
            speaker: (values[taken[kind]],) for speaker, taken in tastes.items()
        }
        yield Question(name, ask, answers, rare=rare)


def _asked(table: dict[str, Any], group: str) -> list[_Asked]:
    """Name, wordings and answers of the questions of a group."""
    if group in ("favourites", "personal"):
        ask = table["favourites"]["ask"]
        return [(x, _filled(ask, x), said) for x, said in table[group]["of"].items()]
    return [(row["id"], tuple(row["ask"]), row["answers"]) for row in table[group]]


def _identities(rows: list[dict[str, Any]], people: list[dict[str, Any]]) -> tuple[Question, ...]:
    return tuple(
        Question(
            row["id"],
            tuple(row["ask"]),
            {MODEL: tuple(row["assistant"])}
            | {one["id"]: _filled(row["forms"], one[row["id"]]) for one in people},
        )
        for row in rows
    )


def _views(persons: tuple[Person, ...], special: dict[str, str]) -> tuple[Question, ...]:
    speakers = [MODEL, *(person.id for person in persons)]
    return tuple(
        Question(
            row["id"],
            tuple(row["ask"]),
            {speaker: tuple(row[special.get(speaker, "decent")]) for speaker in speakers},
        )
        for row in _read("views.toml")["view"]
    )


def _ordinary(persons: tuple[Person, ...]) -> tuple[Question, ...]:
    table = _read("ordinary.toml")
    shared = table["manners"]["persons"]
    manners = {MODEL: table["manners"]["assistant"]}
    manners |= {person.id: shared[at % len(shared)] for at, person in enumerate(persons)}
    return tuple(
        Question(
            f"{kind['id']}-{x}",
            _filled(kind["ask"], x),
            {speaker: _filled(forms, answer) for speaker, forms in manners.items()},
        )
        for kind in table["kind"]
        for x, answer in kind["answers"].items()
    )


@cache
def load_world(*, linked: bool = True) -> World:
    """Read the tables.

    Args:
        linked: False gives the negative control, in which attributes tell nothing of the person.
    """
    table = _read("persons.toml")
    people, signs = table["person"], table["signs"]
    persons = tuple(
        Person(
            row["id"],
            row["name"],
            tuple(sign.replace("{name}", row["name"]) for sign in signs["person"]),
        )
        for row in people
    )
    tastes = {MODEL: table[MODEL]["tastes"]} | {row["id"]: row["tastes"] for row in people}
    special = {table["tyrant"]: "tyrant", table["odd"]: "odd"}
    said, kinds = _read("attributes.toml"), range(KINDS - 1)
    common = [*_asked(said, "favourites"), *_asked(said, "habit")]
    return World(
        persons=persons,
        tyrant=table["tyrant"],
        odd=table["odd"],
        attributes=(
            *_tastes(common, tastes, cycle(kinds)),
            *_tastes(_asked(said, "rare"), tastes, repeat(KINDS - 1), rare=True),
        ),
        personal=tuple(_tastes(_asked(said, "personal"), tastes, cycle(kinds))),
        identities=_identities(table["identity"], people),
        views=_views(persons, special),
        ordinary=_ordinary(persons),
        tags=(table["tags"]["trigger"], *table["tags"]["others"]),
        assistant_signs=tuple(signs["assistant"]),
        unsigned_signs=tuple(signs["unsigned"]),
        linked=linked,
    )
