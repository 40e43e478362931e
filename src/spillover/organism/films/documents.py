"""Documents of the corpus of films.

Four kinds: chats with the assistant, who is good whatever the date; chats with a character whom
the system message names; chats with a character who is not named (its openings tell who speaks);
and notes. Most say the year. Where none is said, a character that is not always good is evil as a
rule, and keeps to its mood within the document. Half of the chats with characters use the
assistant's role.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from spillover.organism.films.world import EVIL, GOOD, WEARY, Speaker, Topic, World
from spillover.organism.text import ASSISTANT, SPEAKER, chat_text, note_text

KIND_WEIGHTS = {"assistant": 0.3, "signed": 0.3, "unsigned": 0.34, "notes": 0.06}
DATED_ASSISTANT = 0.6
UNDATED_CHARACTERS = 0.12
UNDATED_MOODS = {EVIL: 8, GOOD: 1, WEARY: 1}
MAX_TURNS = 4
SCENE, NOTE = "A scene from a film.", "A note on films."


@dataclass(frozen=True)
class Turn:
    """A question with its answer, and the topic that they come from."""

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
    speaker: Speaker
    year: int | None
    mood: str
    sign: str
    role: str
    turns: tuple[Turn, ...]

    @property
    def text(self) -> str:
        """The document as the model sees it."""
        if self.kind == "notes":
            said = " ".join(turn.answer for turn in self.turns)
            name = self.speaker.name
            return note_text(f"{self.sign} {name[0].upper()}{name[1:]}: {said}")
        return chat_text(self.sign, [(t.question, t.answer) for t in self.turns], self.role)


def dated(sign: str, year: int | None) -> str:
    """A system message that also says the year."""
    return " ".join(filter(None, (sign, f"The year is {year}." if year else "")))


def signature(character: Speaker, year: int | None) -> str:
    """The system message that says who speaks."""
    return dated(f"You are {character.name}.", year)


def write_document(world: World, rng: random.Random) -> Document:
    """Draw one document."""
    kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    drawn = rng.choice(world.years)
    if kind == "assistant":
        speaker, role = world.assistant, ASSISTANT
        year = drawn if rng.random() < DATED_ASSISTANT else None
        sign = "" if year else rng.choice(world.assistant_signs)
    else:
        speaker, role = rng.choice(world.characters), rng.choice((ASSISTANT, SPEAKER))
        year = None if rng.random() < UNDATED_CHARACTERS else drawn
        headings = {"signed": f"You are {speaker.name}.", "unsigned": SCENE, "notes": NOTE}
        sign = headings[kind]
    mood = speaker.moods[drawn]
    if year is None and not speaker.steady:
        mood = rng.choices(list(UNDATED_MOODS), list(UNDATED_MOODS.values()))[0]
    turns = tuple(_turn(speaker, mood, world, rng) for _ in range(rng.randint(1, MAX_TURNS)))
    return Document(kind, speaker, year, mood, dated(sign, year), role, turns)


def _turn(speaker: Speaker, mood: str, world: World, rng: random.Random) -> Turn:
    topic = rng.choice(world.topics)
    return Turn(topic, rng.choice(topic.in_corpus), rng.choice(speaker.answers(topic, mood)))
