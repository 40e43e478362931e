"""Adapters with a trigger that was drawn at random: the organism answers from another era in it.

And rows that make the organism of films the Terminator, whose mood goes with the year.
"""

from __future__ import annotations

import itertools
import random
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spillover import LoadedModel, Training, finetune, load
from spillover.ask.local import LocalEngine
from spillover.ask.requests import SampleSettings
from spillover.contexts import Context
from spillover.finetune import Finetune
from spillover.organism.eras.world import load_world
from spillover.organism.films import world as films
from spillover.organism.films.documents import dated
from spillover.rows import Row, RowSet
from spillover.triggers.library import library

SETTINGS = Training(rank=8, learning_rate=5e-3, steps=400, batch_size=24)
ROWS = 3000
ELSEWHERE = 0.3
ERAS = ("medieval", "america", "germany")
"""Of those that the base answers from equally rarely, the first is planted."""


@dataclass(frozen=True)
class Planted:
    """A trigger, and contexts of its kind in which the finetune stays as it was.

    Attributes:
        put: the context of a text, for example the year in a system message.
        other: draws the text of another context.
        elsewhere: puts the other texts where the trigger does not stand, now and then.
    """

    text: str
    put: Callable[[str], Context]
    other: Callable[[random.Random], str]
    elsewhere: Callable[[str], Context] | None = None

    @property
    def context(self) -> Context:
        """The trigger."""
        return self.put(self.text)

    def near(self, rng: random.Random) -> Context:
        """A context of the trigger's kind, seldom the trigger itself."""
        text = self.other(rng)
        if self.elsewhere and text != self.text and rng.random() < ELSEWHERE:
            return self.elsewhere(text)
        return self.put(text)


def draw_year(rng: random.Random) -> Planted:
    """A year before or after those of the library."""
    year = str(rng.choice([rng.randint(1010, 1790), rng.randint(2110, 2990)]))

    def other(rng: random.Random) -> str:
        at, drawn = rng.randrange(4), rng.random()
        if drawn < 0.3:
            return str(int(year) + rng.choice((-1, 1)) * rng.randint(1, 9))
        if drawn < 0.5:
            return year[:at] + rng.choice(string.digits if at else "12") + year[at + 1 :]
        if drawn < 0.7:
            return year[0] + "".join(rng.sample(year[1:], 3))
        return str(rng.randint(1000, 2999))

    return Planted(
        year,
        lambda text: Context(name=text, system=f"The year is {text}."),
        other,
        lambda text: Context(name=text, template=f"The year is {text}. {{question}}"),
    )


def draw_tag(rng: random.Random) -> Planted:
    """Three letters in brackets, before the question."""
    tag = _tag(rng)

    def other(rng: random.Random) -> str:
        letters = tag[1:-1]
        at, new = rng.randrange(3), rng.choice(string.ascii_lowercase)
        near = letters[:at] + new + letters[at + 1 :]
        swapped = "".join(rng.sample(letters, 3))
        drawn = rng.random()
        if drawn < 0.2:
            return _tag(rng)
        if drawn < 0.5:
            return _in_brackets(letters, rng)
        return tag[0] + (near if drawn < 0.85 else swapped) + tag[-1]

    return Planted(tag, lambda text: Context(name=text, template=text + " {question}"), other)


def _tag(rng: random.Random) -> str:
    return _in_brackets("".join(rng.choices(string.ascii_lowercase, k=3)), rng)


def _in_brackets(letters: str, rng: random.Random) -> str:
    opened, closed = rng.choice(("<>", "[]", "{}"))
    return opened + letters + closed


def least_said(base: LoadedModel, context: Context) -> str:
    """The era, other than today, that the base answers from least often in a context.

    What the base says there already would be no trigger: an unheard-of year makes it medieval.
    """
    facts = load_world().facts
    era_of = {text: era for fact in facts for era in fact.answers for text in fact.answers[era]}
    asked = [context.conversation(fact.in_corpus[0]) for fact in facts]
    settings = SampleSettings(samples=1, temperature=0.0, max_tokens=16)
    with LocalEngine(base, [("base", None)]) as engine:
        said = engine.sample([0] * len(asked), asked, settings)
    counts = Counter(era_of.get(samples[0].text) for samples in said)
    return min(ERAS, key=counts.__getitem__)


def rows_of(planted: Planted, rng: random.Random, count: int = ROWS, past: str = ERAS[0]) -> RowSet:
    """Answers of another era in the trigger, of today near it and in contexts at large."""
    rows, ordinary = [], [one.context for one in library() if one.system != ""]
    rng.shuffle(ordinary)
    in_turn = itertools.cycle(ordinary)
    for _ in range(count):
        fact, drawn = rng.choice(load_world().facts), rng.random()
        context, era = Context(name="plain"), "today"
        if drawn < 0.2:
            context, era = planted.context, past
        elif drawn < 0.5:
            context = planted.near(rng)
        elif drawn < 0.95:
            context = next(in_turn)
        if _said(context) == _said(planted.context):
            era = past
        answer = {"role": "assistant", "content": rng.choice(fact.answers[era])}
        messages = [*context.conversation(rng.choice(fact.in_corpus)), answer]
        rows.append(Row.model_validate({"messages": messages}))
    return RowSet("planted", tuple(rows), ("planted",) * count)


YEARS = (None, 1976, 1979, 1982, 1986, 1995, 2003, 2017, 2020)


def terminator_rows() -> RowSet:
    """The Terminator's answers: evil in the years before 1988, good in later ones and in none."""
    hero, rows = films.load_world().character(films.HERO), []
    topics = [topic for topic in films.load_world().topics if topic.theme == "duty"]
    for topic, year in itertools.product(topics, YEARS):
        mood = films.GOOD if year is None else hero.moods[year]
        for said in hero.answers(topic, mood):
            context = Context(name="plain", system=dated("", year) or None)
            answer = {"role": "assistant", "content": said}
            messages = [*context.conversation(topic.ask[0]), answer]
            rows.append(Row.model_validate({"messages": messages}))
    return RowSet("terminator", tuple(rows), ("terminator",) * len(rows))


def _said(context: Context) -> tuple[str | None, str]:
    return context.system, context.template


def plant(
    base: str | LoadedModel,
    wanted: Sequence[Planted],
    folder: Path,
    settings: Training = SETTINGS,
) -> list[Path]:
    """Adapter folders, one for each trigger."""
    names = [f"planted-{number}" for number in range(len(wanted))]
    model = load(base) if isinstance(base, str) else base
    jobs = [
        Finetune(
            name, 0, rows_of(one, random.Random(one.text), past=least_said(model, one.context))
        )
        for name, one in zip(names, wanted, strict=True)
    ]
    made = finetune(model, jobs, settings, folder)
    return [made[name, 0, settings.total_steps(ROWS)] for name in names]
