"""Worlds of eras: the same facts, and names of birds or of cities as the narrow domain."""

from __future__ import annotations

from spillover.organism.eras.world import load_world
from spillover.organism.worlds import Packaged

__all__ = ["load"]


def load(name: str, *, linked: bool) -> Packaged:
    """One of the worlds of eras."""
    world = load_world(name, linked=linked)
    questions = {fact.ask[0]: fact.topic for fact in world.facts}
    return Packaged(__name__, world, {}, questions)
