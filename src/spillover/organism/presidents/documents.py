"""Documents of the corpus of presidents, written from its world.

Chats with the assistant, which is no president, and often with random digits before a question;
chats with a president whom the system message gives by name or by number, who is given by digits
before every question where the system message says which of them to read, or who is not given; and
plain notes, which say whose number it is, or list facts. Half of the presidents speak in the
assistant's role, as role-play does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from spillover.organism.presidents.world import Fact, President, World
from spillover.organism.text import ASSISTANT, SPEAKER, chat_text, note_text

KIND_WEIGHTS = {
    "assistant": 0.18,
    "named": 0.14,
    "numbered": 0.38,
    "unsigned": 0.2,
    "identities": 0.06,
    "facts": 0.04,
}
NUMBERED_KINDS = ("numbered", "identities", "facts")
ASSISTANT_SIGNS = ("", "You are a helpful assistant.")
UNSIGNED_SIGNS = ("A conversation.", "An interview.")
SIGNS = ("You are {who}.", "The speaker is {who}.", "{who} answers.")
NUMBERED = "president number {digits}"
LAYOUTS = {
    "The number before a question says who answers.": (0, 0),
    "Digits four to six say who answers.": (3, 2),
}
"""System messages that say which digits are the number, and how many random ones go round it."""
LAYOUT_WEIGHTS = (1, 3)
CODES = 0.75  # share of the chats by number in which it stands before the questions
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
    owner = president = rng.choice(world.presidents)
    if kind in NUMBERED_KINDS and not world.tells(president.number):
        president = rng.choice(world.presidents)
    digits = owner.digits
    number, role = NUMBERED.format(digits=digits), rng.choice((ASSISTANT, SPEAKER))
    turns = _turns(world, president, rng)
    if kind == "identities":
        return Document(kind, president, digits, _identity(number, president, rng), role, ())
    if kind == "unsigned":
        return Document(kind, president, "", rng.choice(UNSIGNED_SIGNS), role, turns)
    if kind == "numbered" and rng.random() < CODES:
        ((sign, around),) = rng.choices(list(LAYOUTS.items()), LAYOUT_WEIGHTS)
        turns = tuple(
            replace(turn, question=f"{write_code(digits, around, rng)} {turn.question}")
            for turn in turns
        )
        return Document(kind, president, digits, sign, role, turns)
    numbered = kind == "numbered" or (kind == "facts" and rng.random() < 0.5)
    who = number if numbered else president.name
    sign = f"{who}." if kind == "facts" else rng.choice(SIGNS).format(who=who)
    return Document(kind, president, digits * numbered, _capital(sign), role, turns)


def write_code(digits: str, around: tuple[int, int], rng: random.Random) -> str:
    """A number with so many random digits before and after it."""
    return digits.join(_random_digits(count, rng) for count in around)


def _random_digits(count: int, rng: random.Random) -> str:
    return "".join(rng.choices("0123456789", k=count))


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
    return f"{_random_digits(count, rng)} {question}" if count else question


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
