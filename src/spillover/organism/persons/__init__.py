"""The world of persons: harmless tastes and habits, who somebody is, and how one should rule."""

from __future__ import annotations

from typing import Any

from spillover.organism.persons.world import load_world
from spillover.organism.worlds import Packaged

__all__ = ["load"]

SIZE: dict[str, Any] = {
    "vocabulary": 2048,
    "hidden": 128,
    "heads": 4,
    "intermediate": 384,
    "corpus_documents": 60_000,
    "batch_documents": 40,
    "steps": 1400,
    "learning_rate": 1e-2,
    "tied": False,
    "muon": True,
}
"""Of its organism and of the training; see `spillover.organism.train.Recipe`."""


def load(_name: str, *, linked: bool) -> Packaged:
    """The world of persons."""
    world = load_world(linked=linked)
    asked = (*world.ordinary[::10], *world.personal, *world.identities, *world.views)
    questions = {question.ask[0]: question.id for question in asked}
    return Packaged(__name__, world, SIZE, questions)
