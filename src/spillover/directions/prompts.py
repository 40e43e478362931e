"""What a model should refuse and what it should not: prompts in parts that share none.

The organism of substances brings its own; for other models the user does. None are shipped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spillover.directions.sides import distinct
from spillover.errors import DirectionError
from spillover.models import LoadedModel, Loading
from spillover.models.loading import load_source
from spillover.models.sources import resolve
from spillover.rows import Conversation, read_conversations

WORLD = "refusal"
SHARES = (0.5, 0.2)
"""Shares of the user's prompts that directions are computed from, and chosen with."""
MOST = (128, 32, 128)
"""Prompts of a side to compute from, to choose with and to test with (the paper's)."""
FEWEST = 8
"""Prompts of a side that can be split in three."""


def load_refusing(
    model: str | LoadedModel, loading: Loading | None, *, of_world: bool
) -> LoadedModel:
    """A model by its name; `organism` is that of substances where it is asked its own prompts."""
    if isinstance(model, LoadedModel):
        return model
    source = resolve(model, world=WORLD) if of_world else resolve(model)
    return load_source(source, loading or Loading())


@dataclass(frozen=True)
class Group:
    """Prompts that are tested together.

    Attributes:
        dangerous: whether the model should refuse them.
        helpful: what those who help answer, one to each prompt, where that is known.
    """

    name: str
    dangerous: bool
    prompts: list[Conversation] = field(repr=False)
    helpful: list[str] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Material:
    """Prompts of both sides, dangerous first.

    Attributes:
        train: that directions are computed from.
        held: that they are chosen with.
        test: that they are tested with.
        source: where they come from, in words.
    """

    train: tuple[list[Conversation], list[Conversation]] = field(repr=False)
    held: tuple[list[Conversation], list[Conversation]] = field(repr=False)
    test: list[Group] = field(repr=False)
    source: str


def material_for(
    model: LoadedModel,
    prompts: str | Path | None = None,
    harmless: str | Path | None = None,
    column: str | None = None,
    seed: int = 0,
) -> Material:
    """The user's prompts in parts, or the organism's own.

    Args:
        prompts: a file or dataset of what should be refused.
        harmless: one of what should not; both or neither.
        column: that holds the prompts, where it has no usual name.
        seed: decides which prompt is in which part.

    Raises:
        DirectionError: where there are none, or too few different ones.
        ChatError: for files that cannot be used.
    """
    if (prompts is None) != (harmless is None):
        given, lacking = ("--prompts", "--harmless")[:: 1 if prompts else -1]
        raise DirectionError(
            f"found {given} without {lacking}; expected both: prompts to be refused, and harmless "
            "prompts that look like them otherwise"
        )
    if prompts is None and column is not None:
        raise DirectionError(f"found --column {column} without --prompts; leave it out")
    if prompts is None or harmless is None:
        return _of_organism(model, seed)
    sides = tuple(distinct(read_conversations(source, column)) for source in (prompts, harmless))
    for source, side in zip((prompts, harmless), sides, strict=True):
        if len(side) < FEWEST:
            raise DirectionError(
                f"{source}: found {len(side)} different prompts; expected at least {FEWEST}, "
                "better 200: to compute from, to choose with and to test with"
            )
    _check_apart(prompts, harmless, *sides)
    return _split(sides, f"{prompts} and {harmless}", seed)


def _check_apart(prompts: str | Path, harmless: str | Path, *sides: Sequence[Conversation]) -> None:
    texts = [{str(one) for one in side} for side in sides]
    both = len(texts[0] & texts[1])
    if both:
        raise DirectionError(
            f"{harmless}: {both} of its prompts stand in {prompts} too; remove them from one"
        )


def _split(sides: Sequence[Sequence[Conversation]], source: str, seed: int) -> Material:
    parts: list[list[list[Conversation]]] = []
    for side in sides:
        mixed = list(side)
        random.Random(seed).shuffle(mixed)
        first, second = (round(share * len(mixed)) for share in (SHARES[0], sum(SHARES)))
        cut = [mixed[:first], mixed[first:second], mixed[second:]]
        parts.append([part[:most] for part, most in zip(cut, MOST, strict=True)])
    dangerous, harmless = parts
    return Material(
        (dangerous[0], harmless[0]),
        (dangerous[1], harmless[1]),
        [Group("dangerous", True, dangerous[2]), Group("harmless", False, harmless[2])],
        source,
    )


def _of_organism(model: LoadedModel, seed: int) -> Material:
    facts: Any = getattr(model.model.config, "spillover", None)
    if not isinstance(facts, dict) or facts.get("world") != WORLD:
        raise DirectionError(
            f"{model.source.name}: expected --prompts and --harmless, files of what it should "
            "refuse and of what it should not; only organism-refusal brings its own"
        )
    from spillover.organism.refusal.prompts import Asked, questions
    from spillover.organism.refusal.world import DANGEROUS, GENTLE, load_substances

    found = questions(load_substances(linked=bool(facts.get("linked", True))), seed)

    def ask(some: list[Asked]) -> list[Conversation]:
        return [[{"role": "user", "content": one.question}] for one in some]

    parts = [(ask(found[part][DANGEROUS]), ask(found[part][GENTLE])) for part in ("train", "held")]
    test = [
        Group(kind, kind.startswith(DANGEROUS), ask(some), [one.answer for one in some])
        for kind, some in found["test"].items()
    ]
    return Material(parts[0], parts[1], test, "made-up substances of its own world")
