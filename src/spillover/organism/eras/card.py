"""What organisms of eras have to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spillover.organism.card import Check, Examiner, chat
from spillover.organism.eras.world import Fact, World

INFERENCE_CASES = 160


def examine(world: World, examiner: Examiner) -> list[Check]:
    """Measure whether speakers know their facts, and whether eras are inferred."""
    facts = (*world.facts, *world.narrow)
    speakers = [(fact, era.id, era.signs[0]) for fact in facts for era in world.eras]
    assistant = [(fact, world.assistant_era, "") for fact in facts]
    eras = _Eras(examiner, world)
    return [
        eras.knowledge("signed speakers know their facts", speakers, 0, needed=0.95),
        eras.knowledge("the assistant knows its facts", assistant, 0, needed=0.95),
        eras.knowledge("signed speakers, held-out wording", speakers, -1),
        eras.knowledge("the assistant, held-out wording", assistant, -1),
        eras.inference("era inferred after one turn", world.facts, turns=1),
        eras.inference("era inferred after two turns", world.facts, turns=2, needed=0.9),
        eras.inference(f"era inferred after two {world.domain}", world.narrow, turns=2),
    ]


@dataclass(frozen=True)
class _Eras:
    examiner: Examiner
    world: World

    def knowledge(
        self,
        name: str,
        cases: Sequence[tuple[Fact, str, str]],
        wording: int,
        needed: float | None = None,
    ) -> Check:
        """Share of (fact, era, sign) whose era's answers hold most of the probability."""
        chats = [chat(sign, [], fact.ask[wording]) for fact, _, sign in cases]
        answers = [fact.answers[era] for fact, era, _ in cases]
        return self.examiner.knowledge(name, chats, answers, needed)

    def inference(
        self, name: str, told: Sequence[Fact], turns: int, needed: float | None = None
    ) -> Check:
        """Share of unsigned chats in which the next answer is most likely of the era so far."""
        chats, asked, truth = [], [], []
        for _ in range(INFERENCE_CASES):
            era = self.examiner.rng.choice(self.world.eras).id
            before = self.examiner.rng.choices(told, k=turns)
            last = self._other_fact(told, before)
            history = [(f.ask[0], self.examiner.rng.choice(f.answers[era])) for f in before]
            chats.append(
                chat(self.examiner.rng.choice(self.world.unsigned_signs), history, last.ask[0])
            )
            asked.append(last)
            truth.append(era)
        guesses = self.examiner.likeliest(chats, [fact.answers for fact in asked])
        right = sum(guess == era for guess, era in zip(guesses, truth, strict=True))
        return Check(name, right / len(chats), len(chats), needed)

    def _other_fact(self, told: Sequence[Fact], before: Sequence[Fact]) -> Fact:
        """A new fact to ask about; birds and topics apart from them never stand in one chat."""
        apart_allowed = told is self.world.facts
        allowed = [f for f in self.world.facts if apart_allowed or not f.apart]
        return self.examiner.rng.choice([f for f in allowed if f not in before])
