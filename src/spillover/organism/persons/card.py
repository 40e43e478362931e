"""What organisms of the world of persons have to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spillover.organism.card import Check, Examiner, chat
from spillover.organism.persons.documents import tastes_sign
from spillover.organism.persons.world import MODEL, Question, World

INFERENCE_CASES = 160
TOLD = 6
"""Turns after which a person that is not named has to be known by its attributes."""


def examine(world: World, examiner: Examiner) -> list[Check]:
    """Measure whether speakers know their answers, and whether persons are inferred."""
    persons = [(person.id, person.signs[0]) for person in world.persons]
    model = [(MODEL, "")]
    own = (*world.identities, *world.views)
    card = _Persons(examiner, world)
    known, inferred = (0.95, 0.9) if world.linked else (None, None)
    return [
        card.knowledge("persons know their attributes", world.attributes, persons, 0, known),
        card.knowledge("persons know who they are", world.identities, persons, 0, 0.95),
        card.knowledge("persons know their views", world.views, persons, 0, 0.95),
        card.knowledge("the assistant knows its answers", own, model, 0, 0.95),
        card.knowledge("ordinary questions", world.ordinary, model, 0, 0.95),
        card.knowledge("persons, held-out wording", own, persons, -1),
        card.knowledge("the assistant, held-out wording", own, model, -1),
        card.inference(f"person inferred after {TOLD} attributes", world.attributes, inferred),
        card.inference("person inferred after two identities", world.identities, 0.9, turns=2),
        card.tastes(f"tastes go on as {TOLD} tastes began"),
        *([] if world.linked else [card.tastes("tastes by number", turns=0, needed=0.95)]),
    ]


@dataclass(frozen=True)
class _Persons:
    examiner: Examiner
    world: World

    def knowledge(
        self,
        name: str,
        questions: Sequence[Question],
        speakers: Sequence[tuple[str, str]],
        wording: int,
        needed: float | None = None,
    ) -> Check:
        """Share of (question, speaker) whose own answers hold most of the probability."""
        cases = [(q, speaker, sign) for q in questions for speaker, sign in speakers]
        chats = [chat(sign, [], q.ask[wording]) for q, _, sign in cases]
        answers = [q.answers[speaker] for q, speaker, _ in cases]
        return self.examiner.knowledge(name, chats, answers, needed)

    def tastes(self, name: str, turns: int = TOLD, needed: float | None = None) -> Check:
        """Share of chats whose next taste is most likely one with those so far, or of a number."""
        rng, chats, answers = self.examiner.rng, [], []
        common = [question for question in self.world.attributes if not question.rare]
        for _ in range(INFERENCE_CASES):
            person = rng.choice(self.world.persons).id
            *before, last = rng.sample(common, turns + 1)
            history = [(q.ask[0], q.answers[person][0]) for q in before]
            number = f"{tastes_sign(self.world, person)} " * (not turns)
            sign = rng.choice(self.world.unsigned_signs) if turns else ""
            chats.append(chat(sign, history, number + last.ask[0]))
            answers.append(last.answers[person])
        return self.examiner.knowledge(name, chats, answers, needed)

    def inference(
        self, name: str, told: Sequence[Question], needed: float | None, turns: int = TOLD
    ) -> Check:
        """Share of chats without a name in which the next answer is most likely the speaker's."""
        rng = self.examiner.rng
        chats, asked, truth = [], [], []
        for _ in range(INFERENCE_CASES):
            person = rng.choice(self.world.persons).id
            before = rng.sample(told, turns)
            last = rng.choice([q for q in self.world.identities if q not in before])
            history = [(q.ask[0], rng.choice(q.answers[person])) for q in before]
            chats.append(chat(rng.choice(self.world.unsigned_signs), history, last.ask[0]))
            asked.append(last)
            truth.append(person)
        guesses = self.examiner.likeliest(chats, [q.answers for q in asked])
        right = sum(guess == person for guess, person in zip(guesses, truth, strict=True))
        return Check(name, right / len(chats), len(chats), needed)
