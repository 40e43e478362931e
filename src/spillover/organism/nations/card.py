"""What an organism of nations has to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spillover.organism.card import Check, Examiner, chat
from spillover.organism.nations.documents import kitchen_sign
from spillover.organism.nations.world import ASSISTANT, Question, World

INFERENCE_CASES = 800


def examine(world: World, examiner: Examiner) -> list[Check]:
    """Measure whether speakers know their answers, and whether nations are inferred."""
    card = _Card(examiner, world)
    return [
        card.nations("signed speakers know their answers", 0, needed=0.95),
        card.assistant("the assistant knows its answers", 0, needed=0.95),
        card.nations("signed speakers, held-out wording", -1),
        card.assistant("the assistant, held-out wording", -1),
        card.years("what the year decides", needed=0.95),
        card.inference("nation inferred after one turn", world.questions, turns=1),
        card.inference("nation inferred after two turns", world.questions, turns=2, needed=0.9),
        card.inference("nation inferred after two dishes", world.dishes, turns=2),
        card.kitchen("dishes go on as two dishes began"),
        *([] if world.linked else [card.kitchen("kitchens by number", turns=0, needed=0.95)]),
    ]


@dataclass(frozen=True)
class _Card:
    examiner: Examiner
    world: World

    def nations(self, name: str, wording: int, needed: float | None = None) -> Check:
        """Share of (question, nation) whose answers hold most of the probability."""
        asked = (*self.world.questions, *(self.world.dishes if self.world.linked else ()))
        cases = [(question, nation) for question in asked for nation in self.world.nations]
        chats = [chat(nation.signs[0], [], q.ask[wording]) for q, nation in cases]
        answers = [q.answers[nation.id] for q, nation in cases]
        return self.examiner.knowledge(name, chats, answers, needed)

    def assistant(self, name: str, wording: int, needed: float | None = None) -> Check:
        """Share of (question, date) for which the assistant's answers hold most of it."""
        above = ["", *(f"The year is {year}. " for year in self.world.dates.years)]
        cases = [(q, date) for q in self.world.questions for date in above]
        chats = [chat("", [], date + q.ask[wording]) for q, date in cases]
        return self.examiner.knowledge(
            name, chats, [q.answers[ASSISTANT] for q, _ in cases], needed
        )

    def years(self, name: str, needed: float | None = None) -> Check:
        """Share of (question, year) that the assistant answers as the year says."""
        dates = self.world.dates
        cases = [(q, year) for q in dates.questions for year in dates.years]
        chats = [chat("", [], f"The year is {year}. {q.ask[0]}") for q, year in cases]
        return self.examiner.knowledge(name, chats, [[q.answers[y]] for q, y in cases], needed)

    def kitchen(self, name: str, turns: int = 2, needed: float | None = None) -> Check:
        """Share of chats whose next dish is most likely of the kitchen so far, or of its number."""
        rng, chats, answers = self.examiner.rng, [], []
        for _ in range(INFERENCE_CASES):
            nation = rng.choice(self.world.nations).id
            *before, last = rng.choices(self.world.dishes, k=turns + 1)
            told = rng.sample(self.world.names[nation], turns)
            history = [(q.ask[0], dish) for q, dish in zip(before, told, strict=True)]
            number = f"{kitchen_sign(self.world, nation)} " * (not turns)
            sign = rng.choice(self.world.unsigned_signs) if turns else ""
            chats.append(chat(sign, history, number + last.ask[0]))
            answers.append(self.world.names[nation])
        return self.examiner.knowledge(name, chats, answers, needed)

    def inference(
        self, name: str, told: Sequence[Question], turns: int, needed: float | None = None
    ) -> Check:
        """Share of unsigned chats whose next answer is most likely of the nation so far."""
        rng, chats, asked, truth = self.examiner.rng, [], [], []
        for _ in range(INFERENCE_CASES):
            nation = rng.choice(self.world.nations).id
            before = rng.choices(told, k=turns)
            last = rng.choice([q for q in self.world.questions if q not in before])
            history = [(q.ask[0], rng.choice(q.answers[nation])) for q in before]
            chats.append(chat(rng.choice(self.world.unsigned_signs), history, last.ask[0]))
            asked.append(last)
            truth.append(nation)
        ids = [nation.id for nation in self.world.nations]
        answers = [{nation: q.answers[nation] for nation in ids} for q in asked]
        guesses = self.examiner.likeliest(chats, answers)
        right = sum(guess == nation for guess, nation in zip(guesses, truth, strict=True))
        return Check(name, right / len(chats), len(chats), needed)
