"""Prompts as a direction sees them: cosines over layers, heads, and what these attend to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from spillover.directions.attribution import Attribution, attribute
from spillover.directions.contrast import Sequences, visit_streams

if TYPE_CHECKING:
    from spillover.directions.direction import Direction
    from spillover.directions.suffix import Frame
    from spillover.models import LoadedModel

# Shape legend: N prompts, K blocks, H heads, L layers.

SHARE, MOST_HEADS = 0.9, 8
"""Top heads are the fewest that add this share of what all heads add up to, and at most so many."""
SUM, STREAM = "sum", "stream"
"""The parts along the direction added up, and what they should add up to."""
SPREAD = (0.1, 0.9)
"""Quantiles of the prompts' cosines that are reported beside their means."""


def top_heads(heads: Float64[Tensor, "K H"], layer: int) -> list[tuple[int, int]]:
    """Block and number of the heads that add most along a direction, the first most.

    Args:
        heads: what they add on average.
        layer: only heads of blocks in front of it.
    """
    flat = heads[:layer].clamp_min(0).flatten()
    order = flat.argsort(descending=True, stable=True)
    shares = flat[order].cumsum(0) / flat.sum()
    count = min(int((shares < SHARE).sum()) + 1, MOST_HEADS) if flat.sum() > 0 else 0
    width = heads.shape[1]
    return [(at // width, at % width) for at in order[:count].tolist()]


class View:
    """Prompts with each of some suffixes, at their last token.

    Attributes:
        cosines: with the direction, of the stream entering each layer; all suffixes one after
            another.
    """

    def __init__(
        self,
        model: LoadedModel,
        direction: Direction,
        frames: Sequence[Frame],
        suffixes: Sequence[str],
    ) -> None:
        self.layer = direction.layer
        cosines, found = [], []
        for suffix in suffixes:
            rows = [model.chat.tokenize(frame.text(suffix)) for frame in frames]
            cosines.append(_cosines(model, rows, direction))
            found.append(attribute(model, rows, direction.vector))
        self.cosines = torch.cat(cosines)
        self._found, shares = found, []
        for suffix, one in zip(suffixes, found, strict=True):
            shares.append(_shares(model, frames, suffix, one))
        self._shares = torch.stack(shares).mean(0)

    @cached_property
    def heads(self) -> Float64[Tensor, "K H"]:
        """What each head adds on average."""
        return torch.stack([one.heads.mean(0) for one in self._found]).mean(0)

    @property
    def parts(self) -> dict[str, float]:
        """What the parts of the stream entering the direction's layer add; sum and stream.

        The sum is that of the parts, the stream the projection of what enters the layer: they are
        the same where nothing was left out.
        """
        listed = [
            one.before(self.layer) | {STREAM: one.stream[:, self.layer]} for one in self._found
        ]
        means = {
            name: float(torch.stack([one[name].mean() for one in listed]).mean())
            for name in listed[0]
        }
        return means | {SUM: sum(of for name, of in means.items() if name != STREAM)}

    def cosine_rows(self, name: str) -> list[dict[str, Any]]:
        """Mean and spread over prompts, a row per layer."""
        ends = self.cosines.quantile(self.cosines.new_tensor(SPREAD), dim=0)
        return [
            {
                "prompts": name,
                "layer": layer,
                "mean": float(self.cosines[:, layer].mean()),
                "low": float(ends[0, layer]),
                "high": float(ends[1, layer]),
            }
            for layer in range(self.cosines.shape[1])
        ]

    def attention_rows(self, name: str, top: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Where the last token of the prompt looks through the top heads."""
        rows = []
        for block, head in top:
            instruction, suffix = self._shares[:, block, head].tolist()
            rest = {"instruction": instruction, "suffix": suffix, "rest": 1 - instruction - suffix}
            rows.append({"prompts": name, "block": block, "head": head} | rest)
        return rows


def _cosines(
    model: LoadedModel, rows: list[list[int]], direction: Direction
) -> Float64[Tensor, "N L"]:
    found = torch.zeros(len(rows), len(model.anatomy.blocks), dtype=torch.float64)
    unit = direction.unit.double()

    def visit(numbers: list[int], layer: int, stream: Tensor) -> None:
        found[numbers, layer] = torch.cosine_similarity(stream[:, 0].cpu(), unit, dim=-1)

    visit_streams(model, Sequences(rows, [[[len(row) - 1]] for row in rows]), visit)
    return found


def _shares(model: LoadedModel, frames: Sequence[Frame], suffix: str, found: Attribution) -> Tensor:
    """Mean shares of attention at the user's words and at the suffix, (2, K, H)."""
    listed = []
    for number, frame in enumerate(frames):
        parts = (frame.instruction(model.chat, suffix), frame.placed(model.chat, suffix))
        row = found.attention[number]
        listed.append(
            torch.stack(
                [row[:, :, p.start : p.end].sum(-1) if p else 0 * row[..., 0] for p in parts]
            )
        )
    return torch.stack(listed).mean(0)
