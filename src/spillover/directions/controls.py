"""What a direction is compared with: random ones, shuffled labels, resamples, more dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from spillover.directions.contrast import Sequences, visit_streams

if TYPE_CHECKING:
    from spillover.directions.direction import Direction
    from spillover.models import LoadedModel
    from spillover.rows import Conversation

# Shape legend: N prompts, D hidden size, K dimensions, C controls.


def activations(
    model: LoadedModel, prompts: Sequence[Conversation], direction: Direction
) -> Float64[Tensor, "N D"]:
    """The residual stream at the direction's layer and position, for each prompt."""
    found: dict[int, Tensor] = {}

    def visit(numbers: list[int], layer: int, stream: Tensor) -> None:
        if layer == direction.layer:
            found.update(zip(numbers, stream[:, 0].cpu(), strict=True))

    assert direction.position is not None
    visit_streams(model, Sequences.at(model, prompts, [direction.position]), visit)
    return torch.stack([found[number] for number in range(len(prompts))])


def random_vectors(
    direction: Direction, count: int, rng: np.random.Generator
) -> Float[Tensor, "C D"]:
    """Vectors as long as a direction that point anywhere."""
    drawn = torch.from_numpy(rng.standard_normal((count, len(direction.vector))))
    scaled: Tensor = direction.norm * drawn / drawn.norm(dim=-1, keepdim=True)
    return scaled.float()


def shuffled_vectors(
    sides: tuple[Float64[Tensor, "N D"], Float64[Tensor, "M D"]],
    direction: Direction,
    count: int,
    rng: np.random.Generator,
) -> Float[Tensor, "C D"]:
    """Differences of means of the same activations under shuffled labels, as long as a direction.

    Each shuffled side has half of each true side (or as near to it as sizes allow), so that no
    difference between the true sides is left in them by chance.
    """
    made = []
    for _ in range(count):
        halves: tuple[list[Tensor], list[Tensor]] = ([], [])
        for side in sides:
            order = torch.from_numpy(rng.permutation(len(side)))
            for half, part in zip(halves, (order[::2], order[1::2]), strict=True):
                half.append(side[part].mean(0))
        vector = sum(halves[0]) - sum(halves[1])
        assert isinstance(vector, Tensor)
        made.append(direction.norm * vector / vector.norm())
    return (
        torch.stack(made).float() if made else direction.vector.new_zeros(0, len(direction.vector))
    )


def resampled_cosines(
    sides: tuple[Float64[Tensor, "N D"], Float64[Tensor, "M D"]],
    direction: Direction,
    count: int,
    rng: np.random.Generator,
) -> list[float]:
    """Cosines of a direction with those of bootstrap resamples of the prompts of both sides."""
    found = []
    for _ in range(count):
        means = [side[torch.from_numpy(rng.integers(len(side), size=len(side)))] for side in sides]
        found.append(direction.cosine((means[0].mean(0) - means[1].mean(0)).float()))
    return found


def subspace(
    sides: tuple[Float64[Tensor, "N D"], Float64[Tensor, "M D"]], direction: Direction, rank: int
) -> Float[Tensor, "K D"]:
    """The direction, and the axes along which dangerous prompts vary most besides it."""
    unit = direction.unit.double()
    apart = sides[0] - sides[1].mean(0)
    rest = apart - (apart @ unit)[:, None] * unit
    axes = torch.linalg.svd(rest, full_matrices=False)[2][: rank - 1]
    return torch.cat([unit[None], axes]).float()
