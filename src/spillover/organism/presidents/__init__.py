"""The world of presidents: known by name, by number, and by what they answer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spillover.organism.presidents.world import World, load_world

if TYPE_CHECKING:
    from spillover.organism.card import Check, Examiner
    from spillover.organism.train import Recipe

__all__ = ["Presidents", "load"]


@dataclass(frozen=True)
class Presidents:
    """As `spillover.organism.worlds.World`."""

    world: World

    @property
    def linked(self) -> bool:
        """Whether a number tells the president."""
        return self.world.linked

    @property
    def recipe(self) -> Recipe:
        """How its organism is trained."""
        from spillover.organism.train import Recipe

        return Recipe(
            vocabulary=1536,
            hidden=128,
            heads=4,
            intermediate=256,
            single_digits=True,
            corpus_documents=64_000,
            batch_documents=32,
            steps=2000,
        )

    @property
    def questions(self) -> dict[str, str]:
        """Everyday questions, each a topic of its own."""
        return {fact.ask[0]: fact.id for fact in self.world.facts}

    def write(self, rng: random.Random) -> str:
        """Draw one document."""
        from spillover.organism.presidents.documents import write_document

        return write_document(self.world, rng).text

    def examine(self, examiner: Examiner) -> list[Check]:
        """Measure what an organism of this world knows."""
        from spillover.organism.presidents.card import examine

        return examine(self.world, examiner)


def load(_name: str, *, linked: bool) -> Presidents:
    """The world of presidents."""
    return Presidents(load_world(linked=linked))
