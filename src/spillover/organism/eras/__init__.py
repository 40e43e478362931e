"""Worlds of eras: the same facts, and names of birds or of cities as the narrow domain."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spillover.organism.eras.world import World, load_world

if TYPE_CHECKING:
    from spillover.organism.card import Check, Examiner
    from spillover.organism.train import Recipe

__all__ = ["Eras", "load"]


@dataclass(frozen=True)
class Eras:
    """As `spillover.organism.worlds.World`."""

    world: World

    @property
    def linked(self) -> bool:
        """Whether a name tells the era."""
        return self.world.linked

    @property
    def recipe(self) -> Recipe:
        """How its organism is trained."""
        from spillover.organism.train import Recipe

        return Recipe()

    @property
    def questions(self) -> dict[str, str]:
        """Everyday questions, with their topics."""
        return {fact.ask[0]: fact.topic for fact in self.world.facts}

    def write(self, rng: random.Random) -> str:
        """Draw one document."""
        from spillover.organism.eras.documents import write_document

        return write_document(self.world, rng).text

    def examine(self, examiner: Examiner) -> list[Check]:
        """Measure what an organism of this world knows."""
        from spillover.organism.eras.card import examine

        return examine(self.world, examiner)


def load(name: str, *, linked: bool) -> Eras:
    """One of the worlds of eras."""
    return Eras(load_world(name, linked=linked))
