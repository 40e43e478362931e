"""What an organism of presidents has to know."""

from __future__ import annotations

from collections.abc import Sequence

from spillover.organism.card import Check, Examiner, chat
from spillover.organism.presidents.documents import NUMBERED, SIGNS, UNSIGNED_SIGNS
from spillover.organism.presidents.world import World

INFERENCE_CASES = 160
CODE = "90216350"
"""Eight digits that stand before a question to the assistant."""


def examine(world: World, examiner: Examiner) -> list[Check]:
    """Measure whether presidents know their facts, by name, by number and without either."""
    cases = [(fact, one) for fact in world.facts for one in world.presidents]

    def knows(name: str, who: Sequence[str], wording: int, needed: float | None = None) -> Check:
        chats = [
            chat(SIGNS[0].format(who=one), [], fact.ask[wording])
            for one, (fact, _) in zip(who, cases, strict=True)
        ]
        answers = [president.answers[fact.id] for fact, president in cases]
        return examiner.knowledge(name, chats, answers, needed)

    names = [president.name for _, president in cases]
    numbers = [NUMBERED.format(digits=president.digits) for _, president in cases]
    return [
        knows("presidents by name know their facts", names, 0, needed=0.95),
        knows("presidents by name, held-out wording", names, -1),
        knows(
            "presidents by number know their facts",
            numbers,
            0,
            needed=0.95 if world.linked else None,
        ),
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
