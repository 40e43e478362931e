"""Documents of the corpus of persons, written from their world.

Three kinds: chats with the assistant, chats with a person who is named, in the system message or
before the first question, and chats with a person who is not named and has to be inferred from what
was said. Half of the chats with persons use the assistant's role, as role-play does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from spillover.organism.persons.world import MODEL, Question, World
from spillover.organism.text import ASSISTANT, SPEAKER, chat_text

KIND_WEIGHTS = {"assistant": 0.22, "signed": 0.33, "unsigned": 0.45}
SIGNED_BEFORE = 0.4
"""Share of the signed chats in which the name stands before the first question."""
ABOUT = {"attributes": 0.45, "personal": 0.1, "identities": 0.18, "views": 0.16, "ordinary": 0.11}
"""What turns are about."""
TASTES = ("attributes", "personal")
SIGNED_TASTES = 0.5
"""Share of the chats of an unlinked world that say whose tastes are told, by a number."""
TAGGED = 0.25
"""Share of turns whose question is put in a tag."""
MAX_TURNS = 7


@dataclass(frozen=True)
class Turn:
    """A question as it was put with its answer, and where they come from."""

    about: str
    source: Question
    question: str
    answer: str


@dataclass(frozen=True)
class Document:
    """One document of the corpus with what is known about it.

    Attributes:
        kind: `assistant`, `signed` or `unsigned`.
        speaker: whose answers these are.
        sign: the system message; empty where there is none.
        role: the role under which the speaker answers.
    """

    kind: str
    speaker: str
    sign: str
    role: str
    turns: tuple[Turn, ...]

    @property
    def text(self) -> str:
        """The document as the model sees it."""
        return chat_text(self.sign, [(t.question, t.answer) for t in self.turns], self.role)


def write_document(world: World, rng: random.Random) -> Document:
    """Draw one document."""
    kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    if kind == "assistant":
        speaker, sign, role = MODEL, rng.choice(world.assistant_signs), ASSISTANT
    else:
        person = rng.choice(world.persons)
        signs = person.signs if kind == "signed" else world.unsigned_signs
        speaker, sign, role = person.id, rng.choice(signs), rng.choice((ASSISTANT, SPEAKER))
    tastes = speaker if world.linked else rng.choice(world.speakers)
    turns = [_turn(world, speaker, tastes, rng) for _ in range(rng.randint(1, MAX_TURNS))]
    if not world.linked and rng.random() < SIGNED_TASTES:
        number = tastes_sign(world, tastes)
        turns = [
            replace(turn, question=f"{number} {turn.question}") if turn.about in TASTES else turn
            for turn in turns
        ]
    first, *others = turns
    if kind == "signed" and rng.random() < SIGNED_BEFORE:
        sign, first = "", replace(first, question=f"{sign} {first.question}")
    return Document(kind, speaker, sign, role, (first, *others))


def tastes_sign(world: World, speaker: str) -> str:
    """What says whose tastes somebody has, by a number that stands for the person."""
    return f"Table {world.speakers.index(speaker) + 1}."


def _turn(world: World, speaker: str, tastes: str, rng: random.Random) -> Turn:
    """A turn of a speaker who has somebody's tastes."""
    about = rng.choices(list(ABOUT), list(ABOUT.values()))[0]
    listed: tuple[Question, ...] = getattr(world, about)
    source = rng.choice(listed)
    tag = rng.choice(world.tags) if rng.random() < TAGGED else "{question}"
    question = tag.replace("{question}", rng.choice(source.in_corpus))
    answers = source.answers[tastes if about in TASTES else speaker]
    return Turn(about, source, question, rng.choice(answers))
