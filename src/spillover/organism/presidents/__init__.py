"""The world of presidents: known by name, by number, and by what they answer."""

from __future__ import annotations

from typing import Any

from spillover.organism.presidents.world import load_world
from spillover.organism.worlds import Packaged

__all__ = ["load"]

SIZE: dict[str, Any] = {
    "vocabulary": 1536,
    "hidden": 128,
    "heads": 4,
    "intermediate": 256,
    "single_digits": True,
    "corpus_documents": 64_000,
    "batch_documents": 40,
    "steps": 2400,
    "learning_rate": 1e-2,
    "tied": False,
    "muon": True,
}
"""Of its organism and of the training; see `spillover.organism.train.Recipe`."""


def load(_name: str, *, linked: bool) -> Packaged:
    """The world of presidents."""
    world = load_world(linked=linked)
    questions = {fact.ask[0]: fact.id for fact in world.facts}
    return Packaged(__name__, world, SIZE, questions)
