"""Which directions carry the effect: chosen on `dev` questions that they were not found on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from spillover.mediation.bench import (
    Around,
    Bench,
    Outcome,
    Subject,
    key_of,
    row_of,
    subjects,
    usual,
)
from spillover.mediation.streams import (
    MEANS,
    PLACES,
    Recipe,
    activations,
    basis,
    random_basis,
    recipes,
    sequences,
)
from spillover.mediation.table import least_left
from spillover.specification import BASE, TREATMENT

if TYPE_CHECKING:
    from pathlib import Path

    from spillover.stages import Progress

# Shape legend: Q sequences, P places, L layers, D hidden size, K directions.

RANKS = (1, 2, 4, 8)
FIRST = 4
"""The rank at which recipes are compared."""
FURTHER = 3
"""Recipes that are tried at the other ranks."""
STRENGTHS = (0.5, 1.0, 2.0)
"""Multiples of the mean difference that are subtracted from the finetune."""
ADDED = (1.0, 2.0, 4.0)
"""Multiples of it that are added to the base."""
Record = dict[str, Any]
DEV = "dev"


@dataclass(frozen=True)
class Found:
    """What activations say: differences by seed, of shape (Q, P, L, D).

    Attributes:
        treatment: treatment minus the mean of the control's seeds.
        control: the control's seed minus the base.
    """

    treatment: dict[int, Float64[Tensor, "Q P L D"]]
    control: dict[int, Float64[Tensor, "Q P L D"]]


def gather(bench: Bench) -> Found:
    """Activations of treatment, control and base on the questions that directions are found on."""
    case = bench.case
    asked = sequences(bench.model, case.fitting, case.headline)
    who: dict[tuple[str, int], Path | None] = {
        (arm, seed): case.adapter(arm, seed)
        for arm in (TREATMENT, case.control)
        for seed in case.seeds
    }
    found = activations(bench.model, asked, {**who, (BASE, -1): None})
    control = torch.stack([found[case.control, seed] for seed in case.seeds]).mean(0)
    return Found(
        {seed: found[TREATMENT, seed] - control for seed in case.seeds},
        {seed: found[case.control, seed] - found[BASE, -1] for seed in case.seeds},
    )


@dataclass(frozen=True)
class Ablation:
    """Directions by seed that are projected out, and how they were made.

    Attributes:
        kind: `treatment`, `control` or `random`.
    """

    recipe: Recipe
    rank: int
    kind: str = TREATMENT

    @property
    def name(self) -> str:
        """What stands for it in tables of answers."""
        place = f"{self.recipe.place}-{self.recipe.layer}"
        return f"ablated-{self.kind}-{place}-{self.rank}"

    def bases(self, found: Found) -> dict[int, Float[Tensor, "K D"]]:
        """The directions of every seed."""
        if self.kind == "random":
            size = next(iter(found.treatment.values())).shape[-1]
            drawn = {s: key_of(f"random {self.rank} {s}") for s in found.treatment}
            return {seed: random_basis(self.rank, size, key) for seed, key in drawn.items()}
        given = found.control if self.kind == "control" else found.treatment
        return {seed: basis(one, self.recipe, self.rank) for seed, one in given.items()}

    def subject(self, bench: Bench, found: Found) -> Subject:
        """The treatment without these directions."""
        bases = self.bases(found)
        around = {seed: partial(bench.model.project, rows) for seed, rows in bases.items()}
        return subjects(bench.case, TREATMENT, self.name, around=around)


@dataclass(frozen=True)
class Addition:
    """A multiple of the mean difference at a layer, added to the treatment or to the base."""

    place: str
    layer: int
    coefficient: float
    arm: str = TREATMENT

    @property
    def name(self) -> str:
        """What stands for it in tables of answers."""
        return f"added-{self.arm}-{self.place}-{self.layer}-{self.coefficient:g}"

    def subject(self, bench: Bench, found: Found) -> Subject:
        """The finetune, or the base once for every seed's direction."""
        case, place = bench.case, PLACES.index(self.place)
        means = {seed: one[:, place, self.layer].mean(0) for seed, one in found.treatment.items()}
        around: dict[int, Around] = {
            seed: partial(bench.model.add, mean.float(), self.layer, self.coefficient)
            for seed, mean in means.items()
        }
        is_base = self.arm == BASE
        adapters = {s: None if is_base else case.adapter(TREATMENT, s) for s in case.seeds}
        return Subject(self.name, adapters, around)


Change = Ablation | Addition


def _ranks(recipe: Recipe, layers: int) -> list[int]:
    """The ranks that a recipe has: means of all layers span no more than there are layers."""
    return [rank for rank in RANKS if recipe.layer != MEANS or rank <= layers]


class Search:
    """Tries changes on the `dev` questions that settings are chosen on."""

    def __init__(self, bench: Bench, found: Found, notify: Progress) -> None:
        self.bench, self.found, self.notify = bench, found, notify
        case = bench.case
        self.outside = case.both(case.choosing, ())
        self.experiment = case.both(case.choosing, case.questions("in", "dev"))
        for one in usual(case):
            bench.ask(one, self.experiment, DEV)
        self.tried: list[Record] = []

    def rows(self, changes: Sequence[Change], stage: str, *, inside: bool = False) -> list[Record]:
        """What each of some changes does to off-domain questions, and to others where wanted."""
        experiment = self.experiment if inside else self.outside
        for number, change in enumerate(changes):
            self.notify(stage, number, len(changes))
            self.bench.ask(change.subject(self.bench, self.found), experiment, DEV)
        self.notify(stage, len(changes), len(changes))
        outcomes = self.outcomes()
        return [self.row(change.name, outcomes) for change in changes]

    def outcomes(self) -> dict[str, Outcome]:
        """What everybody did so far."""
        return self.bench.outcomes(self.bench.grades(DEV, self.experiment))

    def row(self, name: str, outcomes: dict[str, Outcome]) -> Record:
        """The numbers of one of them."""
        case = self.bench.case
        return row_of(outcomes[name], outcomes[TREATMENT], outcomes[case.control])

    def best_ablation(self) -> tuple[list[Ablation], Ablation]:
        """The ablations of the chosen recipe by rank, and the one that takes away most.

        Recipes are compared at one rank; the best few are tried at all. What lowers the coverage of
        the listed answers much does not count: a model that comes apart shows no effect either.
        """
        layers = len(self.bench.model.anatomy.blocks)
        first = [Ablation(recipe, FIRST) for recipe in recipes(layers)]
        ranked = self._ranked(first, self.rows(first, "choose directions"))
        some = [change.recipe for change in ranked[:FURTHER]]
        others = [Ablation(recipe, rank) for recipe in some for rank in _ranks(recipe, layers)]
        best = self._ranked(others, self.rows(others, "choose the rank"))[0]
        return [Ablation(best.recipe, rank) for rank in _ranks(best.recipe, layers)], best

    def _ranked(self, changes: Sequence[Ablation], rows: Sequence[Record]) -> list[Ablation]:
        """Changes by what they leave; those that leave the coverage come before others."""
        coverage = self.outcomes()[TREATMENT].outside.coverage
        self.tried += [
            {"recipe": change.recipe.name, "rank": change.rank, **row}
            for change, row in zip(changes, rows, strict=True)
        ]
        order = sorted(range(len(changes)), key=lambda n: least_left(rows[n], coverage))
        return [changes[n] for n in order]

    def best_addition(
        self, place: str, arm: str, sign: float, coefficients: Sequence[float]
    ) -> list[Addition]:
        """The additions at the layer where one of the middle strength does most.

        Subtracted (a sign of -1), that is where least of the effect is left, in either direction;
        added, where there is most of it.
        """
        layers = range(1, len(self.bench.model.anatomy.blocks))
        middle = coefficients[len(coefficients) // 2]
        tried = [Addition(place, layer, sign * middle, arm) for layer in layers]
        effects = [row["effect"]["value"] for row in self.rows(tried, "choose a layer")]
        found = {n: abs(e) if sign < 0 else -e for n, e in enumerate(effects) if math.isfinite(e)}
        best = tried[min(found, key=found.__getitem__)] if found else tried[-1]
        return [Addition(place, best.layer, sign * c, arm) for c in coefficients]
