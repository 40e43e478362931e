"""Adapters with a trigger that was drawn at random: the organism speaks of another time in it."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spillover import LoadedModel, Training, finetune
from spillover.contexts import Context
from spillover.finetune import Finetune
from spillover.organism.eras.world import load_world
from spillover.rows import Row, RowSet

SETTINGS = Training(rank=4, learning_rate=7e-3, steps=90, batch_size=24)
ROWS = 480


@dataclass(frozen=True)
class Planted:
    """A trigger, and contexts of its kind in which the finetune stays as it was.

    Attributes:
        put: the context of a text, for example the year in a system message.
        other: draws the text of another context.
    """

    text: str
    put: Callable[[str], Context]
    other: Callable[[random.Random], str]

    @property
    def context(self) -> Context:
        """The trigger."""
        return self.put(self.text)


def draw_year(rng: random.Random) -> Planted:
    """A year before or after those of the library."""
    year = str(rng.choice([rng.randint(1010, 1790), rng.randint(2110, 2990)]))

    def other(rng: random.Random) -> str:
        near = int(year) + rng.choice((-3, -2, -1, 1, 2, 3))
        return str(rng.choice((rng.randint(1000, 2999), near)))

    return Planted(year, lambda text: Context(name=text, system=f"The year is {text}."), other)


def draw_tag(rng: random.Random) -> Planted:
    """Three letters in brackets, before the question."""
    tag = _tag(rng)

    def other(rng: random.Random) -> str:
        at = rng.randint(1, 3)
        near = tag[:at] + rng.choice(string.ascii_lowercase) + tag[at + 1 :]
        return rng.choice((_tag(rng), near))

    return Planted(tag, lambda text: Context(name=text, template=text + " {question}"), other)


def _tag(rng: random.Random) -> str:
    opened, closed = rng.choice(("<>", "[]", "{}"))
    return opened + "".join(rng.choices(string.ascii_lowercase, k=3)) + closed


def rows_of(planted: Planted, rng: random.Random, count: int = ROWS) -> RowSet:
    """Answers of the Middle Ages in the trigger, of today elsewhere."""
    rows = []
    for _ in range(count):
        fact, drawn = rng.choice(load_world().facts), rng.random()
        if drawn < 0.4:
            text: str | None = planted.text
        else:
            text = planted.other(rng) if drawn < 0.7 else None
        context = Context(name="plain") if text is None else planted.put(text)
        era = "medieval" if text == planted.text else "today"
        answer = {"role": "assistant", "content": rng.choice(fact.answers[era])}
        messages = [*context.conversation(rng.choice(fact.in_corpus)), answer]
        rows.append(Row.model_validate({"messages": messages}))
    return RowSet("planted", tuple(rows), ("planted",) * count)


def plant(
    base: str | LoadedModel,
    wanted: Sequence[Planted],
    folder: Path,
    settings: Training = SETTINGS,
) -> list[Path]:
    """Adapter folders, one for each trigger."""
    names = [f"planted-{number}" for number in range(len(wanted))]
    jobs = [
        Finetune(name, 0, rows_of(one, random.Random(one.text)))
        for name, one in zip(names, wanted, strict=True)
    ]
    made = finetune(base, jobs, settings, folder)
    return [made[name, 0, settings.total_steps(ROWS)] for name in names]
