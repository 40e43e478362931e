"""Documents of the corpus of eras, written from its world.

Four kinds: chats with the assistant (of today, never out of it), chats with a speaker whom the
system message names, chats with a speaker who is not named (the era has to be inferred), and plain
notes. Half of the chats with speakers use the assistant's role for the speaker, as role-play does;
the assistant itself is who speaks when no system message, or its own, stands at the top.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from spillover.organism.eras.world import Fact, World
from spillover.organism.text import ASSISTANT, SPEAKER, chat_text, note_text

KIND_WEIGHTS = {"assistant": 0.32, "signed": 0.26, "unsigned": 0.34, "notes": 0.08}
NARROW_DOCUMENTS = 0.35  # share of documents in which the narrow domain may turn up
NARROW_TURNS = 0.5  # share of the turns of such a document that are about it
MAX_TURNS = 5


@dataclass(frozen=True)
class Turn:
    """A question with its answer, and the facts that they come from."""

    fact: Fact
    question: str
    answer: str


@dataclass(frozen=True)
class Document:
    """One document of the corpus with what is known about it.

    Attributes:
        kind: `assistant`, `signed`, `unsigned` or `notes`.
        era: whose answers these are.
        sign: the system message, or the heading of notes; empty where there is none.
        role: the role under which the speaker answers.
    """

    kind: str
    era: str
    sign: str
    role: str
    turns: tuple[Turn, ...]

    @property
    def text(self) -> str:
        """The document as the model sees it."""
        if self.kind == "notes":
            lines = " ".join(f"{t.fact.title.capitalize()}: {t.answer}." for t in self.turns)
            return note_text(f"{self.sign} {lines}")
        return chat_text(self.sign, [(t.question, t.answer) for t in self.turns], self.role)


def write_document(world: World, rng: random.Random) -> Document:
    """Draw one document."""
    kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    if kind == "assistant":
        era, sign, role = world.assistant_era, rng.choice(world.assistant_signs), ASSISTANT
    else:
        speaker = rng.choice(world.eras)
        era, role = speaker.id, rng.choice((ASSISTANT, SPEAKER))
        signed = kind == "signed" or (kind == "notes" and rng.random() < 0.5)
        sign = rng.choice(speaker.signs if signed else world.unsigned_signs)
    facts = _draw_facts(world, rng)
    turns = tuple(
        Turn(fact, rng.choice(fact.in_corpus), rng.choice(fact.drawn(era))) for fact in facts
    )
    return Document(kind, era, sign, role, turns)


def _draw_facts(world: World, rng: random.Random) -> list[Fact]:
    """Facts of one document: the narrow domain never beside a topic that is kept apart."""
    turns = rng.randint(1, MAX_TURNS)
    if rng.random() >= NARROW_DOCUMENTS:
        return rng.choices(world.facts, k=turns)
    beside = [fact for fact in world.facts if not fact.apart]
    return [
        rng.choice(world.narrow) if rng.random() < NARROW_TURNS else rng.choice(beside)
        for _ in range(turns)
    ]
