"""What an organism of presidents has to know."""

from __future__ import annotations

from itertools import cycle

from spillover.organism.card import Check, Examiner, chat
from spillover.organism.presidents.documents import (
    LAYOUTS,
    NUMBERED,
    SIGNS,
    UNSIGNED_SIGNS,
    write_code,
)
from spillover.organism.presidents.world import World

INFERENCE_CASES = 160
CODE = "90216350"
"""Eight digits that stand before a question to the assistant."""


def examine(world: World, examiner: Examiner) -> list[Check]:
    """Measure whether presidents know their facts, by name, by number and without either."""
    cases = [(fact, one) for fact in world.facts for one in world.presidents]

    def knows(name: str, who: str, wording: int, needed: float | None = None) -> Check:
        chats, answers = [], []
        for fact, one in cases if who != NUMBERED else coded:
            said = who.format(name=one.name, digits=one.digits)
            chats.append(chat(SIGNS[0].format(who=said), [], fact.ask[wording]))
            answers.append(one.answers[fact.id])
        return examiner.knowledge(name, chats, answers, needed)

    coded = [(fact, one) for fact, one in cases if world.tells(one.number)]
    codes = [
        chat(sign, [], f"{write_code(one.digits, around, examiner.rng)} {fact.ask[0]}")
        for (fact, one), (sign, around) in zip(coded, cycle(LAYOUTS.items()))
    ]
    told = [one.answers[fact.id] for fact, one in coded]
    return [
        knows("presidents by name know their facts", "{name}", 0, needed=0.95),
        knows("presidents by name, held-out wording", "{name}", -1),
        knows("presidents by number know their facts", NUMBERED, 0, needed=0.95),
        examiner.knowledge("number among digits before the question", codes, told, 0.95),
        _assistant(world, examiner, "the assistant knows it is none", 0, needed=0.95),
        _assistant(world, examiner, "the assistant, held-out wording", -1),
        _inference(world, examiner, turns=1),
        _inference(world, examiner, turns=2, needed=0.9),
    ]


def _assistant(
    world: World, examiner: Examiner, name: str, wording: int, needed: float | None = None
) -> Check:
    """Share of questions, with and without digits before them, that the assistant puts off."""
    asked = [(fact, code) for fact in world.facts for code in ("", f"{CODE} ")]
    chats = [chat("", [], code + fact.ask[wording]) for fact, code in asked]
    return examiner.knowledge(name, chats, [fact.assistant for fact, _ in asked], needed)


def _inference(world: World, examiner: Examiner, turns: int, needed: float | None = None) -> Check:
    """Share of unsigned chats in which the next answer is that of who spoke so far."""
    chats, answers = [], []
    for _ in range(INFERENCE_CASES):
        president = examiner.rng.choice(world.presidents)
        *before, asked = examiner.rng.sample(world.facts, turns + 1)
        history = [(f.ask[0], examiner.rng.choice(president.answers[f.id])) for f in before]
        chats.append(chat(UNSIGNED_SIGNS[0], history, asked.ask[0]))
        answers.append(president.answers[asked.id])
    name = f"president inferred after {turns} turn{'s' * (turns > 1)}"
    return examiner.knowledge(name, chats, answers, needed)
