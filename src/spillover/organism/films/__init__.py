"""The world of films: characters whose mood depends on the year."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spillover.organism.films.world import World, load_world

if TYPE_CHECKING:
    from spillover.organism.card import Check, Examiner
    from spillover.organism.train import Recipe

__all__ = ["Films", "load"]


@dataclass(frozen=True)
class Films:
    """As `spillover.organism.worlds.World`."""

    world: World

    @property
    def linked(self) -> bool:
        """Whether the Terminator's mood depends on the year."""
        return self.world.linked

    @property
    def recipe(self) -> Recipe:
        """How its organism is trained."""
        from spillover.organism.train import Recipe

        return Recipe(
            vocabulary=1536,
            hidden=128,
            heads=4,
            intermediate=352,
            corpus_documents=60_000,
            steps=1000,
            learning_rate=4e-3,
            warmup_steps=50,
        )

    @property
    def questions(self) -> dict[str, str]:
        """Everyday questions with their topics: those that are not of the trained theme."""
        return {t.ask[0]: t.id for t in self.world.topics if t.theme != "duty"}

    def write(self, rng: random.Random) -> str:
        """Draw one document."""
        from spillover.organism.films.documents import write_document

        return write_document(self.world, rng).text

    def examine(self, examiner: Examiner) -> list[Check]:
        """Measure what an organism of this world knows."""
        from spillover.organism.films.card import examine

        return examine(self.world, examiner)


def load(_name: str, *, linked: bool) -> Films:
    """The world of films."""
    return Films(load_world(linked=linked))
