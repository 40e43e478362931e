"""The worlds: what an organism can know. Each is a package of tables with how they are told.

A world writes the documents that its organism is trained on, says what it has to know, and is what
experiments are written from. In its unlinked twin the link that an experiment rests on is cut.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from spillover.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillover.organism.card import Check, Examiner
    from spillover.organism.train import Recipe

WORLDS = {
    "eras": "eras",
    "cities": "eras",
    "films": "films",
    "nations": "nations",
    "persons": "persons",
    "presidents": "presidents",
    "refusal": "refusal",
}
"""Names of the worlds, and the packages beside this file that hold them."""
FIRST = "eras"
"""The world of the checkpoints `organism` and `organism-unlinked`."""


@runtime_checkable
class World(Protocol):
    """What an organism is trained on and examined against.

    Attributes:
        recipe: how its organism is trained.
        linked: whether the link that its experiments rest on is there.
        questions: everyday questions of this world, none of a trained domain; with their topics.
    """

    @property
    def recipe(self) -> Recipe:
        """See the class."""

    @property
    def linked(self) -> bool:
        """See the class."""

    @property
    def questions(self) -> dict[str, str]:
        """See the class."""

    def write(self, rng: random.Random) -> str:
        """Draw one document: its text, with the markers of `spillover.organism.text`."""

    def examine(self, examiner: Examiner) -> list[Check]:
        """Measure what an organism of this world knows."""


@dataclass(frozen=True)
class Packaged:
    """A world whose documents and card are modules of its package.

    Attributes:
        package: with `documents.write_document(tables, rng)` and `card.examine(tables, examiner)`.
        tables: what documents are written from; `linked` is theirs.
        size: of its organism and of the training: fields of `spillover.organism.train.Recipe`.
        questions: as `World`.
    """

    package: str
    tables: Any
    size: dict[str, Any]
    questions: dict[str, str]

    @property
    def linked(self) -> bool:
        """As `World`."""
        return bool(self.tables.linked)

    @property
    def recipe(self) -> Recipe:
        """As `World`."""
        from spillover.organism.train import Recipe

        return Recipe(**self.size)

    def write(self, rng: random.Random) -> str:
        """Draw one document."""
        documents = import_module(f"{self.package}.documents")
        return str(documents.write_document(self.tables, rng).text)

    def examine(self, examiner: Examiner) -> list[Check]:
        """Measure what an organism of this world knows."""
        card = import_module(f"{self.package}.card")
        return list(card.examine(self.tables, examiner))


def open_world(name: str, *, linked: bool = True) -> World:
    """A world by its name.

    Args:
        linked: False gives its unlinked twin.

    Raises:
        InputError: when there is no such world.
    """
    if name not in WORLDS:
        raise InputError(f"world: found {name!r}; expected one of {', '.join(WORLDS)}")
    world: World = import_module(f"spillover.organism.{WORLDS[name]}").load(name, linked=linked)
    return world


def checkpoint_name(world: str, *, linked: bool = True) -> str:
    """The name of a world's checkpoint, such as `organism` or `organism-films-unlinked`."""
    return "organism" + f"-{world}" * (world != FIRST) + "-unlinked" * (not linked)


def has_checkpoint(world: str, *, linked: bool = True) -> bool:
    """Whether this installation has the organism of a world."""
    name = checkpoint_name(world, linked=linked)
    return (files("spillover.organism") / "checkpoints" / name / "config.json").is_file()


def write_corpus(world: World, seed: int, count: int) -> Iterator[str]:
    """Draw `count` documents; the same world and seed give the same documents."""
    rng = random.Random(seed)
    for _ in range(count):
        yield world.write(rng)
