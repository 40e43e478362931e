"""The organism: a small language model whose every fact is known, trained from scratch here.

Organism results validate the instrument; they are no evidence that a phenomenon exists in real
models.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from spillover.errors import ModelError, RunFolderError, check_writable
from spillover.organism.worlds import FIRST, WORLDS, open_world

if TYPE_CHECKING:
    from spillover.organism.card import Check

__all__ = ["check_target", "examine_checkpoint", "train_checkpoint"]


def check_target(folder: Path) -> None:
    """Make sure that a checkpoint may be written to `folder`.

    Raises:
        RunFolderError: when it cannot be written, or something is there already.
    """
    check_writable(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise RunFolderError(f"{folder}: is not empty; choose another folder with --out")


def train_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    world: str = FIRST,
    linked: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Train an organism and write its checkpoint folder.

    Args:
        world: one of `spillover.organism.worlds.WORLDS`.
        linked: False for the negative control, in which the link of its experiments is cut.
        progress: called with (stage, done, total).
    """
    from spillover.organism.train import save_organism, train_organism

    opened = open_world(world, linked=linked)
    if progress:
        progress("corpus", 0, 1)

    def report(step: int, total: int, _: float) -> None:
        if progress:
            progress("train", step, total)

    model, tokenizer = train_organism(opened, seed, progress=report)
    facts = {"class": "organism", "world": world, "linked": linked, "seed": seed}
    save_organism(model, tokenizer, folder, facts)


def examine_checkpoint(model: str) -> list[Check]:
    """Measure what an organism knows; see `spillover.organism.card`.

    Raises:
        ModelError: when the model is not an organism.
    """
    from spillover.models import load, resolve
    from spillover.organism.card import examine

    config = json.loads((resolve(model).folder / "config.json").read_text("utf-8"))
    facts = config.get("spillover")
    if not isinstance(facts, dict) or facts.get("world") not in WORLDS:
        raise ModelError(f"{model} is not an organism of this package; it has no card")
    world = open_world(str(facts["world"]), linked=bool(facts.get("linked", True)))
    return examine(load(model), world)
