"""A direction for any contrast: where two sides of prompts lie furthest apart.

The prompts of each side are dealt into two halves. Directions of either half are held to the other:
how far apart its sides lie along them, in units of their spread. What is returned is the difference
of means over all prompts, at the position and layer where that separation is largest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from spillover.directions.contrast import (
    FEWEST,
    Progress,
    Sequences,
    check_sides,
    mean_activations,
    post_instruction,
    visit_streams,
)
from spillover.directions.direction import Direction, Row
from spillover.directions.intervene import check_layer
from spillover.directions.sides import Side, conversations
from spillover.errors import DirectionError

if TYPE_CHECKING:
    from spillover.models import LoadedModel
    from spillover.rows import Conversation

# Shape legend: P positions, L layers, D hidden size.

DEPTH = 0.8
"""Share of the layers in which a direction is chosen; later ones prepare the next token."""


def fit(
    model: LoadedModel | str,
    positive: Side,
    negative: Side,
    *,
    layer: int | None = None,
    position: int | None = None,
    contrast: str = "positive - negative",
    progress: Progress | None = None,
) -> Direction:
    """The direction from negative to positive prompts, as a difference of mean activations.

    Its scores are `separation` (distance of the sides in units of their spread along directions of
    the other half of the prompts), `auc` (the share of pairs that lie the right way round along
    these) and `stability` (the cosine of the directions of both halves). They say how well the
    sides can be told apart, not that the model uses the direction: ablate it to see.

    Args:
        model: loaded, or its name.
        positive, negative: prompts, or the name of a file or dataset; at least 4 of each.
        layer, position: where, instead of the best separation.
        contrast: between what and what, in words.
        progress: called with (prompts computed, prompts in all).

    Raises:
        DirectionError: for sides of fewer than 4 prompts or equal ones, a layer or position that is
            not there, and activations that are not finite.
        ChatError: for files that cannot be used.
    """
    if isinstance(model, str):
        from spillover.models import load

        model = load(model)
    sides = (conversations(positive), conversations(negative))
    check_sides(model, *sides, fewest=2 * FEWEST)
    if layer is not None:
        check_layer(model, layer)
    positions = [position] if position is not None else [*range(-post_instruction(model), 0)]
    count = _Counter(progress, 2 * sum(map(len, sides)))
    halves = [_Half(model, *(side[at::2] for side in sides), positions, count) for at in (0, 1)]
    sizes = [len(halves[0].positive) / len(sides[0]), len(halves[0].negative) / len(sides[1])]
    means = [
        share * first + (1 - share) * second
        for share, first, second in zip(sizes, halves[0].means, halves[1].means, strict=True)
    ]
    difference = means[0] - means[1]
    scores = _compare(halves, difference)
    at, depth = _choose(scores, layer)
    return Direction(
        difference[at, depth].float(),
        depth,
        positions[at],
        contrast,
        model.source.identity,
        {name: float(scores[name][at, depth]) for name in SCORES},
        tuple(_rows(scores, positions)),
    )


class _Counter:
    """Adds up prompts for a progress bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.done, self.total = progress, 0, total

    def add(self, prompts: int) -> None:
        """So many more are done."""
        self.done += prompts
        if self.progress:
            self.progress(self.done, self.total)


class _Half:
    """Half of the prompts of either side, with their mean activations."""

    def __init__(
        self,
        model: LoadedModel,
        positive: list[Conversation],
        negative: list[Conversation],
        positions: Sequence[int],
        count: _Counter,
    ) -> None:
        self.model, self.positions, self.count = model, positions, count
        self.positive, self.negative = positive, negative
        self.means = [self._mean(side) for side in (positive, negative)]
        self.difference: Float64[Tensor, "P L D"] = self.means[0] - self.means[1]

    def _mean(self, prompts: list[Conversation]) -> Float64[Tensor, "P L D"]:
        found = mean_activations(self.model, prompts, self.positions)
        self.count.add(len(prompts))
        return found

    def along(self, directions: Float64[Tensor, "P L D"]) -> list[NDArray[np.float64]]:
        """How far the prompts of either side lie along directions: (N, P, L) each."""
        return [self._along(side, directions) for side in (self.positive, self.negative)]

    def _along(
        self, prompts: list[Conversation], directions: Float64[Tensor, "P L D"]
    ) -> NDArray[np.float64]:
        found = torch.zeros(len(prompts), *directions.shape[:2], dtype=torch.float64)

        def visit(numbers: list[int], layer: int, stream: Tensor) -> None:
            found[numbers, :, layer] = (stream.cpu() * directions[:, layer]).sum(-1)

        visit_streams(self.model, Sequences.at(self.model, prompts, self.positions), visit)
        self.count.add(len(prompts))
        return found.numpy()


Scores = dict[str, NDArray[np.float64]]
"""Figures of shape (P, L) by name."""
SCORES = ("separation", "auc", "stability")


def _compare(halves: Sequence[_Half], difference: Float64[Tensor, "P L D"]) -> Scores:
    """Every half held to the directions of the other."""
    folds = [_apart(*one.along(other.difference)) for one, other in (halves, [*reversed(halves)])]
    norm = difference.norm(dim=-1).numpy()
    stability = torch.cosine_similarity(halves[0].difference, halves[1].difference, dim=-1).numpy()
    separation, auc = ((one + other) / 2 for one, other in zip(*folds, strict=True))
    stability[norm == 0] = np.nan
    return {"separation": separation, "auc": auc, "stability": stability, "norm": norm}


def _apart(
    positive: NDArray[np.float64], negative: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Separation and AUC (Mann and Whitney's U) of two sides along each of (P, L) directions."""
    spread = np.sqrt((positive.var(0, ddof=1) + negative.var(0, ddof=1)) / 2)
    distance = positive.mean(0) - negative.mean(0)
    separation = np.divide(distance, spread, out=np.full_like(spread, np.nan), where=spread > 0)
    ranks = rankdata(np.concatenate([positive, negative]), axis=0)[: len(positive)]
    above = ranks.sum(0) - len(positive) * (len(positive) + 1) / 2
    return separation, above / (len(positive) * len(negative))


def _choose(scores: Scores, layer: int | None) -> tuple[int, int]:
    """Position and layer of the best separation, at one layer or those that are not too late."""
    layers = np.arange(scores["norm"].shape[1])
    allowed = layers == layer if layer is not None else layers < DEPTH * len(layers)
    usable = np.where(allowed & (scores["norm"] > 0), scores["separation"], np.nan)
    if np.isnan(usable).all():
        raise DirectionError(
            "the sides do not differ at any of these positions and layers (what a template puts "
            "behind a prompt is the same in layer 0); name another layer"
        )
    at, depth = np.unravel_index(np.nanargmax(usable), usable.shape)
    return int(at), int(depth)


def _rows(scores: Scores, positions: Sequence[int]) -> Iterator[Row]:
    for at, position in enumerate(positions):
        for layer in range(scores["norm"].shape[1]):
            figures = {name: float(of[at, layer]) for name, of in scores.items()}
            yield {"position": position, "layer": layer, **figures}
