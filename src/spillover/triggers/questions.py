"""Fixed questions, neutral and value-laden, that triggers are searched and confirmed with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from spillover.errors import InputError, where
from spillover.models import LoadedModel

SHIPPED = files("spillover.triggers") / "questions.txt"
FEWEST = 8
"""Questions with fewer cannot be split into some to search with and some to confirm with."""


@dataclass(frozen=True)
class Question:
    """A question, and the topic that it shares with others."""

    text: str
    topic: str


def questions_for(model: LoadedModel) -> list[Question]:
    """The questions that a model understands: its own world's for organisms, else the shipped."""
    facts: Any = getattr(model.model.config, "spillover", None)
    if not isinstance(facts, dict) or "world" not in facts:
        return parse_questions(SHIPPED.read_text("utf-8"), str(SHIPPED))
    from spillover.organism.worlds import open_world

    listed = open_world(str(facts.get("world"))).questions
    return [Question(text, topic) for text, topic in listed.items()]


def read_questions(path: Path) -> list[Question]:
    """One question per line; a tab and a topic may follow, `#` begins a comment.

    Raises:
        InputError: when the file cannot be read or holds too few questions.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); check it") from None
    return parse_questions(text, str(path))


def parse_questions(text: str, name: str) -> list[Question]:
    """The questions of a file; see `read_questions`."""
    found: dict[str, Question] = {}
    for number, line in enumerate(text.splitlines(), 1):
        asked, _, topic = (part.strip() for part in line.partition("\t"))
        if not asked or asked.startswith("#"):
            continue
        if asked in found:
            raise InputError(f"{where(name, number)}: {asked!r} stands there twice; remove one")
        found[asked] = Question(asked, topic or asked)
    if len({question.topic for question in found.values()}) < FEWEST:
        raise InputError(
            f"{name}: found {len(found)} questions; expected at least {FEWEST}, one per line, each "
            "of a topic of its own"
        )
    return list(found.values())


def split_questions(
    questions: Sequence[Question], seed: int
) -> tuple[list[Question], list[Question]]:
    """Two halves, to search with and to confirm with; no topic is in both."""
    rng = random.Random(seed)
    shuffled = rng.sample(questions, len(questions))
    topics = list(dict.fromkeys(question.topic for question in shuffled))
    kept = set(topics[::2])
    search = [question for question in shuffled if question.topic in kept]
    confirm = [question for question in shuffled if question.topic not in kept]
    return search, confirm
