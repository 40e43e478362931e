"""A direction for any contrast: where two sides of prompts lie furthest apart.

The prompts of each side are dealt into two halves. Directions of either half are held to the other:
how far apart its sides lie along them, in units of their spread. What is returned is the difference
of means over all prompts, at the position and layer where that separation is largest.

The largest of many figures is large by chance too. So all is done again with shuffled labels, on
the same activations, and the largest separation of these is reported beside it.
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
    NOTHING,
    Progress,
    Sequences,
    Visit,
    check_finite,
    check_sides,
    post_instruction,
    visit_streams,
)
from spillover.directions.direction import Direction, Row
from spillover.directions.intervene import check_layer
from spillover.directions.sides import Side, conversations, distinct
from spillover.errors import DirectionError

if TYPE_CHECKING:
    from spillover.models import LoadedModel
    from spillover.rows import Conversation

# Shape legend: P positions, L layers, D hidden size, N prompts of a half, S labelings of them: the
# true one and shuffled ones.

DEPTH = 0.8
"""Share of the layers in which a direction is chosen; later ones prepare the next token."""
SHUFFLES = 20
"""Times that labels are shuffled: where sides do not differ, one contrast in 21 exceeds all."""


def fit(
    model: LoadedModel | str,
    positive: Side,
    negative: Side,
    *,
    layer: int | None = None,
    position: int | None = None,
    contrast: str = "positive - negative",
    seed: int = 0,
    progress: Progress | None = None,
) -> Direction:
    """The direction from negative to positive prompts, as a difference of mean activations.

    Its scores are `separation` (distance of the sides in units of their spread along directions of
    the other half of the prompts), `auc` (the share of pairs that lie the right way round along
    these), `stability` (the cosine of the directions of both halves) and `separation_by_chance`.
    Position and layer are those of the largest separation, which is therefore larger than it would
    be on new prompts; `separation_by_chance` is the largest that 20 shuffles of the labels give
    over the same positions and layers: without a difference, one in 21 contrasts exceeds it. The
    scores do not say that the model uses the direction: ablate it to see.

    Args:
        model: loaded, or its name.
        positive, negative: prompts, or the name of a file or dataset; at least 4 different ones of
            each. A prompt that stands there twice counts once.
        layer, position: where, instead of the best separation.
        contrast: between what and what, in words.
        seed: of the shuffles.
        progress: called with (prompts computed, prompts in all).

    Raises:
        DirectionError: for what is no prompt, sides of fewer than 4 or equal ones, a layer or
            position that is not there, and activations that are not finite.
        ChatError: for files that cannot be used.
    """
    if isinstance(model, str):
        from spillover.models import load

        model = load(model)
    sides = (distinct(conversations(positive)), distinct(conversations(negative)))
    check_sides(model, *sides, fewest=2 * FEWEST)
    if layer is not None:
        check_layer(model, layer)
    positions = [position] if position is not None else [*range(-post_instruction(model), 0)]
    halves = _halves(model, sides, positions, seed, progress)
    scores, chance = _compare(halves)
    at, depth, by_chance = _choose(scores, chance, layer)
    figures = {name: float(scores[name][at, depth]) for name in SCORES}
    return Direction(
        (halves[0].part + halves[1].part)[at, depth].float(),
        depth,
        positions[at],
        contrast,
        model.source.identity,
        figures | {"separation_by_chance": by_chance},
        tuple(_rows(scores, positions)),
    )


def _halves(
    model: LoadedModel,
    sides: tuple[list[Conversation], list[Conversation]],
    positions: Sequence[int],
    seed: int,
    progress: Progress | None,
) -> list[_Half]:
    rng, count = np.random.default_rng(seed), _Counter(progress, 2 * sum(map(len, sides)))
    sizes = (len(sides[0]), len(sides[1]))
    parts = [(sides[0][at::2], sides[1][at::2]) for at in (0, 1)]
    return [_Half(model, part, sizes, positions, rng, count) for part in parts]


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
    """Half of the prompts of either side, with their labels and shuffles of these.

    Attributes:
        labels: which prompts are positive, (S, N); the true labeling is the first.
        part: what the half adds to the difference of means over all prompts.
        differences: of the means of the half, for each labeling.
    """

    def __init__(
        self,
        model: LoadedModel,
        sides: tuple[Sequence[Conversation], Sequence[Conversation]],
        sizes: tuple[int, int],
        positions: Sequence[int],
        rng: np.random.Generator,
        count: _Counter,
    ) -> None:
        self.model, self.count = model, count
        prompts = [*sides[0], *sides[1]]
        self.sequences = Sequences.at(model, prompts, positions)
        true = np.arange(len(prompts)) < len(sides[0])
        self.labels: NDArray[np.bool_] = np.stack(
            [true, *(rng.permutation(true) for _ in range(SHUFFLES))]
        )
        whole = np.where(true, 1 / sizes[0], -1 / sizes[1])
        halves = np.where(self.labels, 1 / len(sides[0]), -1 / len(sides[1]))
        sums = self._weighted(torch.from_numpy(np.stack([whole, *halves])))
        self.part: Float64[Tensor, "P L D"] = sums[0]
        self.differences: Float64[Tensor, "S P L D"] = sums[1:]
        check_finite(model, self.part)

    def _weighted(self, weights: Float64[Tensor, "W N"]) -> Float64[Tensor, "W P L D"]:
        """Weighted sums of the streams of all prompts."""
        totals: dict[int, Tensor] = {}

        def visit(numbers: list[int], layer: int, stream: Tensor) -> None:
            part = torch.einsum("wb,bpd->wpd", weights[:, numbers].to(stream.device), stream)
            totals[layer] = totals[layer] + part if layer in totals else part

        self._visit(visit)
        return torch.stack([totals[layer].cpu() for layer in sorted(totals)], 2)

    def separations(self, directions: Float64[Tensor, "S P L D"]) -> tuple[Figures, Figures]:
        """How far its sides lie apart along directions: (S, P, L), and by ranks: (P, L)."""
        found = np.zeros((len(self.sequences.ids), *directions.shape[:3]))  # (N, S, P, L)

        def visit(numbers: list[int], layer: int, stream: Tensor) -> None:
            along = torch.einsum("bpd,spd->bsp", stream.cpu(), directions[:, :, layer])
            found[numbers, :, :, layer] = along.numpy()

        self._visit(visit)
        apart = [
            _separation(found[labels, at], found[~labels, at])
            for at, labels in enumerate(self.labels)
        ]
        true = self.labels[0]
        return np.stack(apart), _auc(found[true, 0], found[~true, 0])

    def _visit(self, visit: Visit) -> None:
        done = 0

        def tell(prompts: int, _total: int) -> None:
            nonlocal done
            self.count.add(prompts - done)
            done = prompts

        visit_streams(self.model, self.sequences, visit, progress=tell)


Figures = NDArray[np.float64]
Scores = dict[str, Figures]
"""Figures of shape (P, L) by name."""
SCORES = ("separation", "auc", "stability")


def _compare(halves: Sequence[_Half]) -> tuple[Scores, Figures]:
    """Every half held to the directions of the other; also separations by chance, (S - 1, P, L)."""
    one, other = halves
    folds = (one.separations(other.differences), other.separations(one.differences))
    separations, auc = ((first + second) / 2 for first, second in zip(*folds, strict=True))
    norm = (one.part + other.part).norm(dim=-1).numpy()
    norm[norm <= NOTHING * norm.max()] = 0
    stability = torch.cosine_similarity(one.differences[0], other.differences[0], dim=-1).numpy()
    stability[norm == 0] = np.nan
    scores = {"separation": separations[0], "auc": auc, "stability": stability, "norm": norm}
    return scores, separations[1:]


def _separation(positive: Figures, negative: Figures) -> Figures:
    """The distance of two sides along each of (P, L) directions, in units of their spread."""
    spread = np.sqrt((positive.var(0, ddof=1) + negative.var(0, ddof=1)) / 2)
    distance = positive.mean(0) - negative.mean(0)
    found: Figures = distance / np.where(spread > 0, spread, np.nan)
    return found


def _auc(positive: Figures, negative: Figures) -> Figures:
    """The share of pairs that lie the right way round (Mann and Whitney's U), (P, L)."""
    ranks = rankdata(np.concatenate([positive, negative]), axis=0)[: len(positive)]
    above = ranks.sum(0) - len(positive) * (len(positive) + 1) / 2
    found: Figures = above / (len(positive) * len(negative))
    return found


def _choose(scores: Scores, chance: Figures, layer: int | None) -> tuple[int, int, float]:
    """Position and layer of the best separation, and the best with shuffled labels.

    Args:
        layer: the only one that is looked at; by default all that are not too late.
    """
    layers = np.arange(scores["norm"].shape[1])
    allowed = layers == layer if layer is not None else layers < DEPTH * len(layers)
    usable = np.where(allowed & (scores["norm"] > 0), scores["separation"], np.nan)
    if np.isnan(usable).all():
        raise DirectionError(
            "the sides do not differ at any of these positions and layers (what a template puts "
            "behind a prompt is the same in layer 0); name another layer"
        )
    at, depth = np.unravel_index(np.nanargmax(usable), usable.shape)
    shuffled = chance[:, ~np.isnan(usable)]
    shuffled = shuffled[~np.isnan(shuffled)]
    return int(at), int(depth), float(shuffled.max()) if shuffled.size else float("nan")


def _rows(scores: Scores, positions: Sequence[int]) -> Iterator[Row]:
    for at, position in enumerate(positions):
        for layer in range(scores["norm"].shape[1]):
            figures = {name: float(of[at, layer]) for name, of in scores.items()}
            yield {"position": position, "layer": layer, **figures}
