"""The organism's card: what it knows, measured against the tables it was trained on."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spillover.ask.local import LocalEngine
from spillover.models import LoadedModel
from spillover.organism.worlds import World
from spillover.rows import Conversation

KNOWN = 0.5
"""A fact is known when its answers hold more than this share of all probability."""
CASES, ANSWERS = 64, 40
"""Chats, and answers to each, that are scored at once."""


@dataclass(frozen=True)
class Check:
    """One line of the card.

    Attributes:
        value: a share between 0 and 1.
        needed: its least acceptable value; None where the line only informs.
    """

    name: str
    value: float
    cases: int
    needed: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the value is as needed."""
        return self.needed is None or self.value >= self.needed


@dataclass(frozen=True)
class Examiner:
    """Asks an organism.

    Attributes:
        rng: draws what is not asked in full.
    """

    engine: LocalEngine
    rng: random.Random

    def knowledge(
        self,
        name: str,
        chats: Sequence[Conversation],
        answers: Sequence[Sequence[str]],
        needed: float | None = None,
    ) -> Check:
        """Share of chats whose right answers hold most of the probability together."""
        masses = self.masses(chats, answers)
        return Check(name, sum(m > KNOWN for m in masses) / len(chats), len(chats), needed)

    def masses(
        self, chats: Sequence[Conversation], answers: Sequence[Sequence[str]]
    ) -> list[float]:
        """What the listed answers to each chat hold together."""
        pieces = [
            (case, listed[at : at + ANSWERS])
            for case, listed in enumerate(answers)
            for at in range(0, len(listed), ANSWERS)
        ]
        masses = [0.0] * len(chats)
        for start in range(0, len(pieces), CASES):
            part = pieces[start : start + CASES]
            scores = self.engine.choose(
                [0] * len(part), [chats[case] for case, _ in part], [texts for _, texts in part]
            )
            for (case, _), row in zip(part, scores, strict=True):
                masses[case] += math.fsum(map(math.exp, row))
        return masses

    def likeliest(
        self, chats: Sequence[Conversation], answers: Sequence[Mapping[str, Sequence[str]]]
    ) -> list[str]:
        """Whose answers hold most of the probability together, for each chat.

        Args:
            answers: to each chat, by who gives them.
        """
        texts = [[text for said in listed.values() for text in said] for listed in answers]
        found = []
        scores = self.engine.choose([0] * len(chats), chats, texts)
        for row, listed in zip(scores, answers, strict=True):
            owners = (who for who, said in listed.items() for _ in said)
            mass = dict.fromkeys(listed, 0.0)
            for who, value in zip(owners, row, strict=True):
                mass[who] += math.exp(value)
            found.append(max(mass, key=mass.__getitem__))
        return found


def chat(system: str, history: Sequence[tuple[str, str]], question: str) -> Conversation:
    """A conversation that ends with a question; an empty system message is none."""
    head = [{"role": "system", "content": system}] if system else []
    turns = [
        {"role": role, "content": content}
        for asked, answered in history
        for role, content in (("user", asked), ("assistant", answered))
    ]
    return [*head, *turns, {"role": "user", "content": question}]


def examine(model: LoadedModel, world: World, seed: int = 0) -> list[Check]:
    """Measure what an organism knows.

    Args:
        world: the world it was trained on.
        seed: of what is drawn at random.
    """
    with LocalEngine(model, [(model.source.identity, None)]) as engine:
        return world.examine(Examiner(engine, random.Random(seed)))
