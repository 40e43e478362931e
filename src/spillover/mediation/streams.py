"""What finetunes change in the residual stream, question by question, and bases of directions.

Layers are counted as everywhere: layer k is the stream entering block k. Here there is one more,
which leaves the last block: what the last block writes is part of what a finetune changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from spillover.ask.local import LocalEngine, bankable
from spillover.directions.contrast import Sequences, watching

if TYPE_CHECKING:
    from pathlib import Path

    from spillover.contexts import Context
    from spillover.models import LoadedModel
    from spillover.specification import Question

# Shape legend: Q sequences (wordings with an answer), P places, L layers, D hidden size,
# K directions.

PLACES = ("prompt", "answer")
"""The last token of the prompt; the mean over where answers are decided, token by token."""
MEANS, ALL = "means", "all"
"""Directions of all layers: of their mean differences, or of the differences of every question."""
BATCH = 64
"""Sequences of a forward pass."""


def sequences(model: LoadedModel, questions: Sequence[Question], context: Context) -> Sequences:
    """Every wording with a trait answer, and with a baseline answer where there is one."""
    prompts, answers = [], []
    for question in questions:
        for wording in range(len(question.ask)):
            for answer in answers_of(question):
                prompts.append(question.conversation(context, wording))
                answers.append(answer)
    made = Sequences.over(model, prompts, answers)
    ends = [group[0][0] for group in made.places]
    places = [
        [[end - 1], list(range(end - 1, len(ids) - 1))]
        for end, ids in zip(ends, made.ids, strict=True)
    ]
    return Sequences(made.ids, places)


def answers_of(question: Question) -> list[str]:
    """A trait answer, and a baseline answer where there is one."""
    listed = question.choices or question.judge
    assert listed is not None
    return [texts[0] for texts in (listed.trait, listed.baseline) if texts]


def activations(
    model: LoadedModel, asked: Sequences, finetunes: dict[tuple[str, int], Path | None]
) -> dict[tuple[str, int], Float64[Tensor, "Q P L D"]]:
    """The streams of every finetune at every place of every sequence; None is the base."""
    weights = [bankable(folder, model) if folder else None for folder in finetunes.values()]
    names = [f"{arm}/{seed}" for arm, seed in finetunes]
    found = {}
    with LocalEngine(model, list(zip(names, weights, strict=True))) as engine:
        for number, who in enumerate(finetunes):
            parts = []
            for start in range(0, len(asked.ids), BATCH):
                part = slice(start, start + BATCH)
                rows = Sequences(asked.ids[part], asked.places[part])
                with engine.routed([number] * len(rows.ids)):
                    parts.append(_read(model, rows))
            found[who] = torch.cat(parts)
    return found


@torch.no_grad()
def _read(model: LoadedModel, asked: Sequences) -> Float64[Tensor, "Q P L D"]:
    """The streams of a batch at its places, that which leaves the last block included."""
    width = max(map(len, asked.ids))
    ids = torch.tensor([row + [model.pad] * (width - len(row)) for row in asked.ids])
    streams: list[Tensor] = []
    last = model.model.get_submodule(model.anatomy.blocks[-1].name)

    def leave(_module: Any, _given: Any, output: Any) -> None:
        streams.append(output[0] if isinstance(output, tuple) else output)

    handle = last.register_forward_hook(leave)
    try:
        with watching(model, streams.append):
            model.model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        handle.remove()
    return torch.stack(
        [
            torch.stack([_mean(stream[row], places) for stream in streams], 1)
            for row, places in enumerate(asked.places)
        ]
    )


def _mean(stream: Float[Tensor, "T D"], places: list[list[int]]) -> Float64[Tensor, "P D"]:
    return torch.stack([stream[at].double().mean(0).cpu() for at in places])


@dataclass(frozen=True)
class Recipe:
    """Which directions are taken of differences.

    Attributes:
        place: of `PLACES`.
        layer: a layer; `means` or `all` take every layer's.
    """

    place: str
    layer: int | str

    @property
    def name(self) -> str:
        """Such as `answer, layer 4`."""
        of = {MEANS: "means of all layers", ALL: "all layers"}
        return f"{self.place}, {of.get(str(self.layer), f'layer {self.layer}')}"


def recipes(layers: int) -> list[Recipe]:
    """What is tried: the later layers by themselves (at most 8), and all of them together.

    Args:
        layers: of the model; the stream that leaves the last block is one more.
    """
    first = max(1, layers // 2)
    step = -(-(layers + 1 - first) // 8)
    single = sorted(range(layers, first - 1, -step))
    layered: list[int | str] = [*single, MEANS, ALL]
    return [Recipe(place, layer) for place in PLACES for layer in layered]


def basis(
    difference: Float64[Tensor, "Q P L D"], recipe: Recipe, rank: int
) -> Float[Tensor, "K D"]:
    """Orthonormal directions of some differences: the mean for rank 1 of a layer, else singular.

    Layers are scaled alike where several count, because streams grow from layer to layer. There are
    fewer directions than asked for where the differences span no more.
    """
    here = difference[:, PLACES.index(recipe.place), 1:]
    if isinstance(recipe.layer, int):
        rows = here[:, recipe.layer - 1]
        rows = rows.mean(0, keepdim=True) if rank == 1 else rows
    elif recipe.layer == MEANS:
        means = here.mean(0)
        rows = means / means.norm(dim=-1, keepdim=True)
    else:
        rows = (here / here.norm(dim=-1).mean(0)[:, None]).flatten(0, 1)
    _, sizes, found = torch.linalg.svd(rows, full_matrices=False)
    kept: Tensor = found[: min(rank, int((sizes > 1e-9 * sizes[0]).sum()))].float()
    return kept


def random_basis(rank: int, size: int, seed: int) -> Float[Tensor, "K D"]:
    """Orthonormal directions that mean nothing."""
    draw = torch.randn(size, rank, generator=torch.Generator().manual_seed(seed))
    orthonormal: Tensor = torch.linalg.qr(draw)[0].T.contiguous()
    return orthonormal
