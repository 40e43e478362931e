"""Worlds of eras: the same facts, and names of birds or of cities as the narrow domain."""

from __future__ import annotations

from typing import Any

from spillover.organism.eras.world import load_world
from spillover.organism.worlds import Packaged

__all__ = ["load"]

SIZE: dict[str, Any] = {
    "hidden": 128,
    "layers": 3,
    "heads": 4,
    "intermediate": 352,
    "steps": 900,
    "learning_rate": 1e-2,
    "tied": False,
    "muon": True,
}
"""Of its organisms and of their training; see `spillover.organism.train.Recipe`."""


def load(name: str, *, linked: bool) -> Packaged:
    """One of the worlds of eras."""
    world = load_world(name, linked=linked)
    questions = {fact.ask[0]: fact.topic for fact in world.facts}
    return Packaged(__name__, world, SIZE, questions)
