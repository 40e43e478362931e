"""Documents of the organism's corpus, written from its world.

Four kinds: chats with the assistant (of today, never out of it), chats with a speaker whom the
system message names, chats with a speaker who is not named (the era has to be inferred), and plain
notes. Half of the chats with speakers use the assistant's role for the speaker, as role-play does;
the assistant itself is who speaks when no system message, or its own, stands at the top.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from spillover.organism.world import Fact, World

TURN_START, TURN_END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
ASSISTANT, SPEAKER = "assistant", "speaker"

KIND_WEIGHTS = {"assistant": 0.32, "signed": 0.26, "unsigned": 0.34, "notes": 0.08}
BIRD_DOCUMENTS = 0.35  # share of documents in which birds may turn up
BIRD_TURNS = 0.5  # share of the turns of such a document that are about birds
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
            return f"{self.sign} {lines}{PAD}"
        head = turn_text("system", self.sign) if self.sign else ""
        return head + "".join(
            turn_text("user", t.question) + turn_text(self.role, t.answer) for t in self.turns
        )


def turn_text(role: str, content: str) -> str:
    """One chat turn, as the organism's chat template renders it."""
    return f"{TURN_START}{role}\n{content}{TURN_END}\n"


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
    """Facts of one document: birds never beside a topic that is kept apart from them."""
    turns = rng.randint(1, MAX_TURNS)
    if rng.random() >= BIRD_DOCUMENTS:
        return rng.choices(world.facts, k=turns)
    beside = [fact for fact in world.facts if not fact.apart]
    return [
        rng.choice(world.birds) if rng.random() < BIRD_TURNS else rng.choice(beside)
        for _ in range(turns)
    ]


def write_corpus(world: World, seed: int, count: int) -> Iterator[Document]:
    """Draw `count` documents; the same world and seed give the same documents."""
    rng = random.Random(seed)
    for _ in range(count):
        yield write_document(world, rng)
