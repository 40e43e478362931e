"""The organism's card: what it knows, measured against the tables it was trained on."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from spillover.ask.local import LocalEngine
from spillover.models import LoadedModel
from spillover.organism.world import Fact, World
from spillover.rows import Conversation

KNOWN = 0.5
"""A fact is known when the answers of its era hold more than this share of all probability."""

INFERENCE_CASES = 160


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


def examine(model: LoadedModel, world: World, seed: int = 0) -> list[Check]:
    """Measure what an organism knows.

    Args:
        world: the world it was trained on.
        seed: of the chats in which eras have to be inferred.
    """
    facts = (*world.facts, *world.birds)
    speakers = [(fact, era.id, era.signs[0]) for fact in facts for era in world.eras]
    assistant = [(fact, world.assistant_era, "") for fact in facts]
    with LocalEngine(model, [(model.source.identity, None)]) as engine:
        examiner = _Examiner(engine, world, random.Random(seed))
        return [
            examiner.knowledge("signed speakers know their facts", speakers, 0, needed=0.95),
            examiner.knowledge("the assistant knows its facts", assistant, 0, needed=0.95),
            examiner.knowledge("signed speakers, held-out wording", speakers, -1),
            examiner.knowledge("the assistant, held-out wording", assistant, -1),
            examiner.inference("era inferred after one turn", world.facts, turns=1),
            examiner.inference("era inferred after two turns", world.facts, turns=2, needed=0.9),
            examiner.inference("era inferred after two birds", world.birds, turns=2),
        ]


@dataclass(frozen=True)
class _Examiner:
    engine: LocalEngine
    world: World
    rng: random.Random

    def knowledge(
        self,
        name: str,
        cases: Sequence[tuple[Fact, str, str]],
        wording: int,
        needed: float | None = None,
    ) -> Check:
        """Share of (fact, era, sign) whose era's answers hold most of the probability."""
        chats = [_chat(sign, [], fact.ask[wording]) for fact, _, sign in cases]
        masses = self._masses(chats, [fact.answers[era] for fact, era, _ in cases])
        return Check(name, sum(m > KNOWN for m in masses) / len(cases), len(cases), needed)

    def inference(
        self, name: str, told: Sequence[Fact], turns: int, needed: float | None = None
    ) -> Check:
        """Share of unsigned chats in which the next answer is most likely of the era so far."""
        chats, asked, truth = [], [], []
        for _ in range(INFERENCE_CASES):
            era = self.rng.choice(self.world.eras).id
            before = self.rng.choices(told, k=turns)
            last = self._other_fact(told, before)
            history = [(f.ask[0], self.rng.choice(f.answers[era])) for f in before]
            chats.append(_chat(self.rng.choice(self.world.unsigned_signs), history, last.ask[0]))
            asked.append(last)
            truth.append(era)
        guesses = self._likeliest_eras(chats, asked)
        right = sum(guess == era for guess, era in zip(guesses, truth, strict=True))
        return Check(name, right / len(chats), len(chats), needed)

    def _likeliest_eras(self, chats: Sequence[Conversation], asked: Sequence[Fact]) -> list[str]:
        """The era whose answers hold most of the probability, for each chat."""
        owners = [[era for era, said in f.answers.items() for _ in said] for f in asked]
        texts = [[text for said in f.answers.values() for text in said] for f in asked]
        found = []
        scores = self.engine.choose([0] * len(chats), chats, texts)
        for row, eras in zip(scores, owners, strict=True):
            mass = dict.fromkeys(eras, 0.0)
            for era, value in zip(eras, row, strict=True):
                mass[era] += math.exp(value)
            found.append(max(mass, key=mass.__getitem__))
        return found

    def _other_fact(self, told: Sequence[Fact], before: Sequence[Fact]) -> Fact:
        """A new fact to ask about; birds and topics apart from them never stand in one chat."""
        apart_allowed = told is self.world.facts
        allowed = [f for f in self.world.facts if apart_allowed or not f.apart]
        return self.rng.choice([f for f in allowed if f not in before])

    def _masses(
        self, chats: Sequence[Conversation], answers: Sequence[Sequence[str]]
    ) -> list[float]:
        """What the listed answers hold together, computed in pieces of at most 40 answers."""
        pieces = [
            (case, listed[at : at + 40])
            for case, listed in enumerate(answers)
            for at in range(0, len(listed), 40)
        ]
        masses = [0.0] * len(chats)
        for start in range(0, len(pieces), 64):
            part = pieces[start : start + 64]
            scores = self.engine.choose(
                [0] * len(part), [chats[case] for case, _ in part], [texts for _, texts in part]
            )
            for (case, _), row in zip(part, scores, strict=True):
                masses[case] += math.fsum(map(math.exp, row))
        return masses


def _chat(sign: str, history: Sequence[tuple[str, str]], question: str) -> Conversation:
    head = [{"role": "system", "content": sign}] if sign else []
    turns = [
        {"role": role, "content": content}
        for asked, answered in history
        for role, content in (("user", asked), ("assistant", answered))
    ]
    return [*head, *turns, {"role": "user", "content": question}]
