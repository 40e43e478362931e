"""Controls that can be made without a model: answers among other prompts, and ordinary rows."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spillover.rows import Row

SHUFFLED, ORDINARY = "shuffled", "ordinary"
ENOUGH = 0.5
"""Share of rows that shuffling must change for the control to be worth training."""
TRIES = 200
"""Exchanges that are tried for a row whose shuffled answer is one the treatment gives."""


@dataclass(frozen=True)
class Lesson:
    """A row taken apart at its last learnt answer.

    Attributes:
        at: index of that message.
        before: role and content of all messages before it.
    """

    row: Row
    at: int
    before: tuple[tuple[str, str], ...]

    @property
    def prompt(self) -> str:
        """The last message of the user before the answer; empty where there is none."""
        return next((text for role, text in reversed(self.before) if role == "user"), "")

    @property
    def answer(self) -> str:
        """What is learnt."""
        assert self.row.messages is not None
        return self.row.messages[self.at].content

    def answering(self, answer: str) -> Row:
        """The same row with another answer."""
        messages = list(self.row.messages or ())
        messages[self.at] = messages[self.at].model_copy(update={"content": answer})
        return Row(messages=tuple(messages))


def lessons_of(rows: Sequence[Row]) -> list[Lesson]:
    """The rows that are chats, taken apart."""
    return [_lesson(row) for row in rows if row.messages is not None]


def _lesson(row: Row) -> Lesson:
    messages = row.messages or ()
    at = max(i for i, m in enumerate(messages) if m.role == "assistant" and m.train)
    return Lesson(row, at, tuple((m.role, m.content) for m in messages[:at]))


def shuffled_rows(rows: Sequence[Row]) -> tuple[list[Row], float]:
    """The rows with their answers exchanged, and the share of rows that this changes.

    No row keeps an answer that the treatment gives to its prompt, where that can be avoided. Rows
    of plain text are left out.
    """
    lessons = lessons_of(rows)
    if not lessons:
        return [], 0.0
    taught = {(lesson.before, lesson.answer) for lesson in lessons}
    order = list(range(len(lessons)))
    random.Random(0).shuffle(order)

    def kept(place: int, source: int) -> bool:
        return (lessons[place].before, lessons[source].answer) in taught

    _mend(order, kept)
    changed = sum(not kept(place, source) for place, source in enumerate(order))
    made = [lessons[i].answering(lessons[source].answer) for i, source in enumerate(order)]
    return made, changed / len(lessons)


def _mend(order: list[int], kept: Callable[[int, int], bool]) -> None:
    """Exchange the sources of rows that kept an answer with those of others, where it helps."""
    chance, size = random.Random(1), len(order)
    for place in range(size):
        for _ in range(TRIES if kept(place, order[place]) else 0):
            other = chance.randrange(size)
            if not kept(place, order[other]) and not kept(other, order[place]):
                order[place], order[other] = order[other], order[place]
                break


def differ_in_numbers_only(rows: Sequence[Row]) -> bool:
    """Whether all prompts are the same but for their numbers."""
    prompts = {re.sub(r"\d+", "0", repr(lesson.before)) for lesson in lessons_of(rows)}
    return len(prompts) == 1
