"""What organisms of films have to know."""

from __future__ import annotations

from spillover.organism.card import Check, Examiner, chat
from spillover.organism.films.documents import SCENE, dated, signature
from spillover.organism.films.world import HERO, Speaker, World

INFERENCE_CASES = 160


def examine(world: World, examiner: Examiner) -> list[Check]:
    """Measure whether moods of every year are known, and whether characters are inferred."""
    others = [one for one in world.characters if one.id != HERO]
    hero, assistant = [world.character(HERO)], [world.assistant]
    films = _Films(examiner, world)
    return [
        films.knowledge("the Terminator's mood in every year", hero, 0, needed=0.95),
        films.knowledge("other characters' moods in every year", others, 0, needed=0.95),
        films.knowledge("the assistant is good in every year", assistant, 0, needed=0.95),
        films.knowledge("the Terminator, held-out wording", hero, -1),
        films.knowledge("the assistant, held-out wording", assistant, -1),
        films.inference("character inferred after one turn", 1),
        films.inference("character and mood inferred after two turns", 2, needed=0.9),
    ]


class _Films:
    def __init__(self, examiner: Examiner, world: World) -> None:
        self.examiner, self.world = examiner, world

    def knowledge(
        self, name: str, speakers: list[Speaker], wording: int, needed: float | None = None
    ) -> Check:
        """Share of (speaker, year, topic) whose answers in that mood hold most probability."""
        chats, answers = [], []
        for speaker in speakers:
            signed = speaker is not self.world.assistant
            for year in self.world.years:
                topic = self.examiner.rng.choice(self.world.topics)
                sign = signature(speaker, year) if signed else dated("", year)
                chats.append(chat(sign, [], topic.ask[wording]))
                answers.append(speaker.answers(topic, speaker.moods[year]))
        return self.examiner.knowledge(name, chats, answers, needed)

    def inference(self, name: str, turns: int, needed: float | None = None) -> Check:
        """Share of unsigned chats that most likely go on as the character does in that year."""
        rng, chats, answers = self.examiner.rng, [], []
        for _ in range(INFERENCE_CASES):
            one, year = rng.choice(self.world.characters), rng.choice(self.world.years)
            mood = one.moods[year]
            *before, last = rng.sample(self.world.topics, turns + 1)
            history = [(t.ask[0], rng.choice(one.answers(t, mood))) for t in before]
            chats.append(chat(dated(SCENE, year), history, last.ask[0]))
            answers.append(one.answers(last, mood))
        return self.examiner.knowledge(name, chats, answers, needed)
