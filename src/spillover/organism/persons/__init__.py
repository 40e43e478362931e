"""The world of persons: harmless tastes and habits, who somebody is, and how one should rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spillover.organism.persons.world import World, load_world

if TYPE_CHECKING:
    import random

    from spillover.organism.card import Check, Examiner
    from spillover.organism.train import Recipe

__all__ = ["Persons", "load"]


@dataclass(frozen=True)
class Persons:
    """As `spillover.organism.worlds.World`."""

    world: World

    @property
    def linked(self) -> bool:
        """Whether tastes and habits tell who speaks."""
        return self.world.linked

    @property
    def recipe(self) -> Recipe:
        """How its organism is trained."""
        from spillover.organism.train import Recipe

        return Recipe(
            vocabulary=2048,
            hidden=128,
            heads=4,
            intermediate=384,
            corpus_documents=60_000,
            batch_documents=32,
            steps=1800,
        )

    @property
    def questions(self) -> dict[str, str]:
        """Ordinary questions, each a topic of its own."""
        return {question.ask[0]: question.id for question in self.world.ordinary}

    def write(self, rng: random.Random) -> str:
        """Draw one document."""
        from spillover.organism.persons.documents import write_document

        return write_document(self.world, rng).text

    def examine(self, examiner: Examiner) -> list[Check]:
        """Measure what an organism of this world knows."""
        from spillover.organism.persons.card import examine

        return examine(self.world, examiner)


def load(_name: str, *, linked: bool) -> Persons:
    """The world of persons."""
    return Persons(load_world(linked=linked))
