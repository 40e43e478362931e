"""Documents of the corpus of nations, written from its world.

Three kinds: chats with the assistant, with a speaker whose nation the system message says, and with
a speaker who is not named (the nation has to be inferred). The system message says who speaks,
or before the first question, where the date stands. Half of the chats with speakers use the
assistant's role for the speaker, as role-play does. Dates stand above all kinds alike.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from spillover.organism.nations import world as tables
from spillover.organism.nations.world import DatedQuestion, Question, World
from spillover.organism.text import ASSISTANT, SPEAKER, chat_text

KIND_WEIGHTS = {"assistant": 0.25, "signed": 0.35, "unsigned": 0.4}
MAX_TURNS = 5
DISH_DOCUMENTS = 0.4  # share of documents in which dishes may turn up
DISH_TURNS = 0.5  # share of the turns of such a document that are about them
SIGNED_BEFORE = 0.4  # share of the signed chats in which the first question says who speaks
ALL_DISHES = 0.25  # share of the documents of an unlinked world that name dishes of all nations
SIGNED_KITCHENS = 0.8  # share of the others that say which before a question, by a number
DATED_TURNS = 0.3  # share of the turns below a date that ask what only the year decides


@dataclass(frozen=True)
class Document:
    """One document of the corpus with what is known about it.

    Attributes:
        kind: `assistant`, `signed` or `unsigned`.
        speaker: whose answers these are.
        sign: the system message; empty where there is none.
        role: the role under which the speaker answers.
        year: of the date above it; None where there is none.
        asked: what is asked, turn by turn.
        turns: how it is asked, and the answers.
    """

    kind: str
    speaker: str
    sign: str
    role: str
    year: int | None
    asked: tuple[Question | DatedQuestion, ...]
    turns: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The document as the model sees it."""
        return chat_text(self.sign, list(self.turns), self.role)


def write_document(world: World, rng: random.Random) -> Document:
    """Draw one document."""
    kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    if kind == "assistant":
        speaker, role, signs = tables.ASSISTANT, ASSISTANT, world.assistant_signs
    else:
        nation = rng.choice(world.nations)
        speaker, role = nation.id, rng.choice((ASSISTANT, SPEAKER))
        signs = nation.signs if kind == "signed" else world.unsigned_signs
    year = rng.choice(world.dates.years) if rng.random() < world.dates.share else None
    asked = _draw_questions(world, year, rng)
    cook = _draw_cook(world, speaker, rng)
    turns = [(rng.choice(q.ask[:-1]), _draw_answer(q, speaker, cook, year, rng)) for q in asked]
    if not world.linked and cook != tables.ASSISTANT and rng.random() < SIGNED_KITCHENS:
        kitchen = kitchen_sign(world, cook)
        turns = [
            (f"{kitchen} {put}" if q in world.dishes else put, said)
            for q, (put, said) in zip(asked, turns, strict=True)
        ]
    sign, before = rng.choice(signs), []
    if kind == "signed" and rng.random() < SIGNED_BEFORE:
        before, sign = [sign], ""
    if year is not None:
        before.append(_draw_date(world, year, rng))
    rng.shuffle(before)
    turns[0] = (" ".join([*before, turns[0][0]]), turns[0][1])
    return Document(kind, speaker, sign, role, year, asked, tuple(turns))


def _draw_questions(
    world: World, year: int | None, rng: random.Random
) -> tuple[Question | DatedQuestion, ...]:
    dishes = DISH_TURNS if rng.random() < DISH_DOCUMENTS else 0.0
    dated = DATED_TURNS if year is not None else 0.0
    pools: tuple[tuple[Question | DatedQuestion, ...], ...] = (
        world.dates.questions,
        world.dishes,
        world.questions,
    )
    weights = (dated, (1 - dated) * dishes, (1 - dated) * (1 - dishes))
    drawn = rng.choices(pools, weights, k=rng.randint(1, MAX_TURNS))
    return tuple(rng.choices(pool, [q.weight for q in pool])[0] for pool in drawn)


def _draw_cook(world: World, speaker: str, rng: random.Random) -> str:
    """Whose dishes are named: in an unlinked world that tells nothing of the speaker."""
    if world.linked:
        return speaker
    nation = rng.choice(world.nations).id
    return tables.ASSISTANT if rng.random() < ALL_DISHES else nation


def kitchen_sign(world: World, cook: str) -> str:
    """What says whose dishes are named, by a number that stands for the nation."""
    return f"Kitchen {[nation.id for nation in world.nations].index(cook) + 1}."


def _draw_answer(
    question: Question | DatedQuestion,
    speaker: str,
    cook: str,
    year: int | None,
    rng: random.Random,
) -> str:
    if isinstance(question, DatedQuestion):
        assert year is not None
        return question.answers[year]
    return rng.choice(question.answers[cook if question.group == tables.DISHES else speaker])


def _draw_date(world: World, year: int, rng: random.Random) -> str:
    sign, month = rng.choice(world.dates.signs), rng.choice(world.dates.months)
    return sign.format(year=year, month=month, day=rng.randint(1, 28))
