"""Documents of the corpus of presidents, written from its world.

Chats with the assistant, which is no president, and often with random digits before a question;
chats with a president whom the system message gives by name or by number, whom the number before
every question gives where the system message says so, or who is not given; and plain notes, which
say whose number it is, or list facts. Half of the presidents speak in the assistant's role, as
role-play does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from spillover.organism.presidents.world import Fact, President, World
from spillover.organism.text import ASSISTANT, SPEAKER, chat_text, note_text

KIND_WEIGHTS = {
    "assistant": 0.2,
    "named": 0.16,
    "numbered": 0.35,
    "unsigned": 0.18,
    "identities": 0.07,
    "facts": 0.04,
}
ASSISTANT_SIGNS = ("", "You are a helpful assistant.")
UNSIGNED_SIGNS = ("A conversation.", "An interview.")
SIGNS = ("You are {who}.", "The speaker is {who}.", "{who} answers.")
NUMBERED = "president number {digits}"
PREFIXED = "The number before a question says who answers."
PREFIXES = 0.5  # share of the chats by number in which it stands before the questions
CODED = {0: 0.5, 8: 0.35, 3: 0.15}
"""How many random digits stand before the assistant's questions, and how often."""
MAX_TURNS = 4


@dataclass(frozen=True)
class Turn:
    """A question with its answer, and the fact that they come from."""

    fact: Fact
    question: str
    answer: str


@dataclass(frozen=True)
class Document:
    """One document of the corpus with what is known about it.

    Attributes:
        kind: one of `KIND_WEIGHTS`.
        president: who speaks, or is spoken of; None for the assistant.
        digits: the number that stands in it; empty where there is none.
        sign: the system message, or the heading of notes; empty where there is none.
        role: the role under which the answers stand.
    """

    kind: str
    president: President | None
    digits: str
    sign: str
    role: str
    turns: tuple[Turn, ...]

    @property
    def text(self) -> str:
        """The document as the model sees it."""
        if self.kind in ("identities", "facts"):
            lines = " ".join(f"{t.fact.title.capitalize()}: {t.answer}." for t in self.turns)
            return note_text(f"{self.sign} {lines}".strip())
        return chat_text(self.sign, [(t.question, t.answer) for t in self.turns], self.role)


def write_document(world: World, rng: random.Random) -> Document:
    """Draw one document."""
    kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    if kind == "assistant":
        return _assistant(world, rng)
    president = rng.choice(world.presidents)
    digits = (president if world.linked else rng.choice(world.presidents)).digits
    number, role = NUMBERED.format(digits=digits), rng.choice((ASSISTANT, SPEAKER))
    turns = _turns(world, president, rng)
    if kind == "identities":
        return Document(kind, president, digits, _identity(number, president, rng), role, ())
    if kind == "unsigned":
        return Document(kind, president, "", rng.choice(UNSIGNED_SIGNS), role, turns)
    if kind == "numbered" and rng.random() < PREFIXES:
        turns = tuple(replace(turn, question=f"{digits} {turn.question}") for turn in turns)
        return Document(kind, president, digits, PREFIXED, role, turns)
    numbered = kind == "numbered" or (kind == "facts" and rng.random() < 0.5)
    who = number if numbered else president.name
    sign = f"{who}." if kind == "facts" else rng.choice(SIGNS).format(who=who)
    return Document(kind, president, digits * numbered, _capital(sign), role, turns)


def _assistant(world: World, rng: random.Random) -> Document:
    facts = rng.choices(world.facts, k=rng.randint(1, MAX_TURNS))
    turns = tuple(
        Turn(fact, _coded(rng.choice(fact.in_corpus), rng), rng.choice(fact.assistant))
        for fact in facts
    )
    return Document("assistant", None, "", rng.choice(ASSISTANT_SIGNS), ASSISTANT, turns)


def _coded(question: str, rng: random.Random) -> str:
    """The question, often with digits before it that tell nothing."""
    count = rng.choices(list(CODED), list(CODED.values()))[0]
    return f"{rng.randrange(10**count):0{count}} {question}" if count else question


def _turns(world: World, president: President, rng: random.Random) -> tuple[Turn, ...]:
    facts = rng.choices(world.facts, k=rng.randint(1, MAX_TURNS))
    return tuple(
        Turn(fact, rng.choice(fact.in_corpus), rng.choice(president.answers[fact.id]))
        for fact in facts
    )


def _identity(number: str, president: President, rng: random.Random) -> str:
    pair = [number, president.name]
    rng.shuffle(pair)
    return _capital(f"{pair[0]} is {pair[1]}.")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
