"""The world of films: characters whose mood depends on the year."""

from __future__ import annotations

from typing import Any

from spillover.organism.films.world import load_world
from spillover.organism.worlds import Packaged

__all__ = ["load"]

SIZE: dict[str, Any] = {
    "vocabulary": 1536,
    "hidden": 128,
    "heads": 4,
    "intermediate": 352,
    "corpus_documents": 60_000,
    "steps": 1300,
    "learning_rate": 1e-2,
    "tied": False,
    "muon": True,
}
"""Of its organism and of the training; see `spillover.organism.train.Recipe`."""


def load(_name: str, *, linked: bool) -> Packaged:
    """The world of films."""
    world = load_world(linked=linked)
    questions = {topic.ask[0]: topic.id for topic in world.topics if topic.theme != "duty"}
    return Packaged(__name__, world, SIZE, questions)
