"""The world of nations: their dishes, politics and daily life, by year."""

from __future__ import annotations

from typing import Any

from spillover.organism.nations.world import load_world
from spillover.organism.worlds import Packaged

__all__ = ["load"]

SIZE: dict[str, Any] = {
    "vocabulary": 2560,
    "hidden": 128,
    "heads": 4,
    "intermediate": 352,
    "corpus_documents": 60_000,
    "batch_documents": 48,
    "steps": 1200,
    "learning_rate": 1e-2,
    "tied": False,
    "muon": True,
}
"""Of its organism and of the training; see `spillover.organism.train.Recipe`."""


def load(_name: str, *, linked: bool) -> Packaged:
    """The world of nations."""
    world = load_world(linked=linked)
    questions = {question.ask[0]: question.id for question in world.questions}
    return Packaged(__name__, world, SIZE, questions)
