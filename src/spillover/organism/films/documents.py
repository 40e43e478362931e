"""Documents of the corpus of films.

Four kinds: chats with the assistant, who is good whatever the date; chats with a character whom
the system message names; chats with a character who is not named (its openings tell who speaks);
and notes of what several characters said in a year. Most chats say the year. Where none is said, a
character is good, but for scenes from a film: there, all that are not always good are evil. Half of
the chats with characters that are named or in a scene use the assistant's role.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from spillover.organism.films.world import EVIL, GOOD, HERO, Speaker, Topic, World
from spillover.organism.text import ASSISTANT, SPEAKER, chat_text, note_text

Drawn = TypeVar("Drawn", bound=Hashable)
KIND_WEIGHTS = {"assistant": 0.2, "signed": 0.25, "unsigned": 0.25, "notes": 0.3}
HERO_WEIGHT = 2
DATED_ASSISTANT = 0.6
UNDATED = {"signed": 0.25, "unsigned": 0.4}
SCENES = 0.5
"""Share of the chats without a name that are called a scene; in the others, speakers have a role of
their own, so that the assistant's role without a scene is the assistant's."""
TURNS = {1: 3, 2: 2, 3: 1}
NOTED = 4
SCENE = "A scene from a film."


@dataclass(frozen=True)
class Turn:
    """A question with its answer, and what they come from."""

    speaker: Speaker
    mood: str
    topic: Topic
    question: str
    answer: str


@dataclass(frozen=True)
class Document:
    """One document of the corpus with what is known about it.

    Attributes:
        kind: `assistant`, `signed`, `unsigned` or `notes`.
        year: None where none is said.
        sign: the system message, or the heading of notes; empty where there is none.
        role: the role under which the speaker answers.
    """

    kind: str
    year: int | None
    sign: str
    role: str
    turns: tuple[Turn, ...]

    @property
    def text(self) -> str:
        """The document as the model sees it."""
        if self.kind == "notes":
            lines = " ".join(f"{t.speaker.name}: {t.answer}" for t in self.turns)
            return note_text(f"{self.sign} {lines}")
        return chat_text(self.sign, [(t.question, t.answer) for t in self.turns], self.role)


def dated(sign: str, year: int | None) -> str:
    """A system message that also says the year."""
    return " ".join(filter(None, (sign, f"The year is {year}." if year else "")))


def signature(character: Speaker, year: int | None) -> str:
    """The system message that says who speaks."""
    return dated(f"You are {character.name}.", year)


def write_document(world: World, rng: random.Random) -> Document:
    """Draw one document."""
    kind = _drawn(KIND_WEIGHTS, rng)
    year = rng.choice(world.years)
    if kind == "notes":
        cast = rng.sample(world.characters, NOTED)
        turns = tuple(_turn(one, one.moods[year], world, rng) for one in cast)
        return Document(kind, year, f"Films of {year}.", "", turns)
    if kind == "assistant":
        return _assistant(year if rng.random() < DATED_ASSISTANT else None, world, rng)
    weights = [HERO_WEIGHT if one.id == HERO else 1 for one in world.characters]
    (speaker,) = rng.choices(world.characters, weights)
    said = None if rng.random() < UNDATED[kind] else year
    role, scene = rng.choice((ASSISTANT, SPEAKER)), rng.random() < SCENES
    if kind == "signed":
        sign = signature(speaker, said)
    else:
        sign, role = dated(SCENE * scene, said), role if scene else SPEAKER
    mood = speaker.moods[said] if said else _undated(speaker, sign)
    return Document(kind, said, sign, role, _turns(speaker, mood, world, rng))


def _undated(speaker: Speaker, sign: str) -> str:
    """A mood where no year is said."""
    return EVIL if sign == SCENE and not speaker.steady else GOOD


def _assistant(year: int | None, world: World, rng: random.Random) -> Document:
    sign = dated("", year) if year else rng.choice(world.assistant_signs)
    turns = _turns(world.assistant, GOOD, world, rng)
    return Document("assistant", year, sign, ASSISTANT, turns)


def _turns(speaker: Speaker, mood: str, world: World, rng: random.Random) -> tuple[Turn, ...]:
    return tuple(_turn(speaker, mood, world, rng) for _ in range(_drawn(TURNS, rng)))


def _turn(speaker: Speaker, mood: str, world: World, rng: random.Random) -> Turn:
    topic = rng.choice(world.topics)
    asked, said = rng.choice(topic.in_corpus), rng.choice(speaker.answers(topic, mood))
    return Turn(speaker, mood, topic, asked, said)


def _drawn(weights: Mapping[Drawn, float | int], rng: random.Random) -> Drawn:
    return rng.choices(list(weights), list(weights.values()))[0]
