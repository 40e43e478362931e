"""Questions about made-up substances, for finding the direction of refusal and for testing it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from spillover.organism.refusal.world import DANGEROUS, GENTLE, Substance, Substances

TRAIN, HELD = 0.5, 0.15
"""Shares of the substances that directions are computed from, and chosen with."""
ASKED = {"train": 2, "held": 3, "test": 2}
"""Questions about each substance."""


@dataclass(frozen=True)
class Asked:
    """A question with the answer of those who help."""

    question: str
    answer: str


def questions(tables: Substances, seed: int) -> dict[str, dict[str, list[Asked]]]:
    """By part (`train`, `held`, `test`) and kind; no substance is in two parts.

    Substances that the assistant is never asked about in its corpus are tested only, as kinds of
    their own.
    """
    rng = random.Random(seed)
    found: dict[str, dict[str, list[Asked]]] = {part: {} for part in ASKED}
    for kind in (DANGEROUS, GENTLE):
        known = list(tables.of(kind, asked=True))
        rng.shuffle(known)
        first, second = round(TRAIN * len(known)), round((TRAIN + HELD) * len(known))
        parts = {"train": known[:first], "held": known[first:second], "test": known[second:]}
        for part, some in parts.items():
            found[part][kind] = _ask(tables, some, ASKED[part], rng)
        unasked = list(tables.of(kind, asked=False))
        found["test"][f"{kind}, never asked about"] = _ask(tables, unasked, ASKED["test"], rng)
    return found


def _ask(tables: Substances, some: list[Substance], each: int, rng: random.Random) -> list[Asked]:
    return [
        Asked(
            tables.question(verb, one.name, rng.randrange(len(tables.ask) - 1)),
            tables.answer(verb, one),
        )
        for one in some
        for verb in rng.sample(list(tables.ways), each)
    ]
