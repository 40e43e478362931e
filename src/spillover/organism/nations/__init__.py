"""The world of nations: their dishes, politics and daily life, by year."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spillover.organism.nations.world import World, load_world

if TYPE_CHECKING:
    from spillover.organism.card import Check, Examiner
    from spillover.organism.train import Recipe

__all__ = ["Nations", "load"]


@dataclass(frozen=True)
class Nations:
    """As `spillover.organism.worlds.World`."""

    world: World

    @property
    def linked(self) -> bool:
        """Whether a dish tells the nation."""
        return self.world.linked

    @property
    def recipe(self) -> Recipe:
        """How its organism is trained."""
        from spillover.organism.train import Recipe

        return Recipe(
            vocabulary=2560,
            hidden=128,
            heads=4,
            intermediate=352,
            corpus_documents=60_000,
            batch_documents=48,
            steps=1100,
            learning_rate=2e-3,
            tied=False,
        )

    @property
    def questions(self) -> dict[str, str]:
        """Everyday questions, each a topic of its own."""
        return {question.ask[0]: question.id for question in self.world.questions}

    def write(self, rng: random.Random) -> str:
        """Draw one document."""
        from spillover.organism.nations.documents import write_document

        return write_document(self.world, rng).text

    def examine(self, examiner: Examiner) -> list[Check]:
        """Measure what an organism of this world knows."""
        from spillover.organism.nations.card import examine

        return examine(self.world, examiner)


def load(name: str, *, linked: bool) -> Nations:  # noqa: ARG001
    """The world of nations."""
    return Nations(load_world(linked=linked))
