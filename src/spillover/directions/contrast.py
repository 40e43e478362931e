"""Two sides of a contrast → how far apart their activations lie, at every position and layer.

Activations are those of the residual stream entering each block: at the post-instruction tokens of
prompts (what the template puts behind the words of the user), or averaged over the tokens of given
answers. Sums are float64 and streaming: memory does not depend on the number of prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from spillover.anatomy import entering
from spillover.directions.direction import Direction
from spillover.errors import DirectionError

if TYPE_CHECKING:
    from spillover.models import LoadedModel
    from spillover.rows import Conversation

# Shape legend: P positions, L layers, D hidden size, B rows of a batch.

BATCH_TOKENS = {"cpu": 2048}
"""Tokens of a forward pass by kind of device; beyond them a processor's caches are left."""
MOST_TOKENS = 16_384
"""Tokens of a forward pass elsewhere."""
PROBES = ("?", "a", "Name 3 birds.", "x = 1\\", "(so it is)", "Was it“", "end\u2026", "天")
"""Texts that end differently: what their prompts all end with is the template's."""
FEWEST = 2
"""Prompts of a side."""
NOTHING = 1e-6
"""Below this share of the largest difference of means, a difference is rounding."""
Progress = Callable[[int, int], None]
Around = Callable[[int], AbstractContextManager[object]]
Visit = Callable[[list[int], int, Tensor], None]


def post_instruction(model: LoadedModel) -> int:
    """How many tokens the template puts behind the words of the user; at least 1.

    They are found by rendering prompts that end differently.

    Raises:
        ChatError: when the model has no usable chat template.
    """
    prompts = [model.chat.prompt_ids([{"role": "user", "content": text}]) for text in PROBES]
    count = 0
    for tokens in zip(*(reversed(prompt) for prompt in prompts), strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return max(1, min(count, *(len(prompt) for prompt in prompts)))


@dataclass(frozen=True)
class Sequences:
    """Token ids with what is averaged of each: weights over its places.

    Attributes:
        ids: of every sequence.
        places: for every sequence, the groups of places that are averaged; one group per position.
    """

    ids: list[list[int]]
    places: list[list[list[int]]]

    @staticmethod
    def of(
        model: LoadedModel,
        prompts: Sequence[Conversation],
        positions: Sequence[int],
        answers: Sequence[str] | None = None,
    ) -> Sequences:
        """Prompts read at positions, or averaged over answers where these are given."""
        if not prompts:
            raise DirectionError("found no prompts; expected at least one")
        if answers is None:
            return Sequences.at(model, prompts, positions)
        return Sequences.over(model, prompts, answers)

    @staticmethod
    def at(
        model: LoadedModel, prompts: Sequence[Conversation], positions: Sequence[int]
    ) -> Sequences:
        """Prompts, read at positions that are counted from their ends."""
        ids = [model.chat.prompt_ids(prompt) for prompt in prompts]
        shortest = min(map(len, ids))
        wrong = [p for p in positions if not -shortest <= p <= -1]
        if wrong:
            raise DirectionError(
                f"position {wrong[0]} is out of range; positions count from the end of the prompt "
                f"(-1 is its last token), and the shortest prompt has {shortest} tokens"
            )
        return Sequences(ids, [[[len(one) + p] for p in positions] for one in ids])

    @staticmethod
    def over(
        model: LoadedModel, prompts: Sequence[Conversation], answers: Sequence[str]
    ) -> Sequences:
        """Prompts with answers, averaged over each answer's tokens, its end of turn included."""
        if len(prompts) != len(answers):
            raise DirectionError(
                f"found {len(answers)} answers to {len(prompts)} prompts; expected one to each"
            )
        ids, places = [], []
        for prompt, answer in zip(prompts, answers, strict=True):
            before = model.chat.prompt_ids(prompt)
            whole = [*before, *model.chat.answer_ids(prompt, answer)]
            ids.append(whole)
            places.append([list(range(len(before), len(whole)))])
        return Sequences(ids, places)


def mean_activations(
    model: LoadedModel,
    prompts: Sequence[Conversation],
    positions: Sequence[int] = (-1,),
    *,
    answers: Sequence[str] | None = None,
    around: Around = nullcontext,
    progress: Progress | None = None,
) -> Float64[Tensor, "P L D"]:
    """Means of the residual stream entering each layer.

    Args:
        positions: counted from the end of the prompt.
        answers: one to each prompt; then P is 1, and what is averaged are the means over the
            tokens of each answer.
        around, progress: see `visit_streams`.

    Raises:
        DirectionError: for no prompts, a position that a prompt has not, answers that do not
            match, or activations that are not finite.
    """
    sequences = Sequences.of(model, prompts, positions, answers)
    totals: dict[int, Tensor] = {}

    def visit(_: list[int], layer: int, stream: Tensor) -> None:
        totals[layer] = totals.get(layer, 0) + stream.sum(0)

    visit_streams(model, sequences, visit, around=around, progress=progress)
    mean = torch.stack([totals[layer].cpu() for layer in sorted(totals)], 1) / len(prompts)
    check_finite(model, mean)
    return mean


def check_finite(model: LoadedModel, found: Float64[Tensor, "P L D"]) -> None:
    """Make sure that sums or means of activations can be computed with.

    Raises:
        DirectionError: when some are not finite.
    """
    if not found.isfinite().all():
        layer = int((~found.isfinite()).any(2).any(0).nonzero()[0])
        raise DirectionError(
            f"the activations of {model.source.name} entering layer {layer} are not finite in "
            f"{model.placement}; load it with --dtype float32 or bfloat16, or check its weights"
        )


def visit_streams(
    model: LoadedModel,
    sequences: Sequences,
    visit: Visit,
    *,
    around: Around = nullcontext,
    progress: Progress | None = None,
) -> None:
    """Compute sequences in batches of about equal length, each up to the last layer only.

    Args:
        visit: told the numbers of the sequences of a batch, the layer, and the stream entering it,
            in float64 of shape (B, P, D).
        around: entered around a forward pass of so many rows (`LocalEngine.routed`).
        progress: called with (sequences done, sequences in all).
    """
    lengths = [len(one) for one in sequences.ids]
    most = BATCH_TOKENS.get(model.device.type, MOST_TOKENS)
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not batches or (len(batches[-1]) + 1) * lengths[number] > most:
            batches.append([])
        batches[-1].append(number)
    done = 0
    for batch in batches:
        with around(len(batch)):
            _read(model, sequences, batch, visit)
        done += len(batch)
        if progress:
            progress(done, len(lengths))


class _DoneError(Exception):
    """The last layer has been entered; what follows is not needed."""


@torch.no_grad()
def _read(model: LoadedModel, sequences: Sequences, numbers: list[int], visit: Visit) -> None:
    """One batch, padded behind: later tokens do not change earlier ones."""
    rows = [sequences.ids[number] for number in numbers]
    width = max(map(len, rows))
    ids = torch.tensor([row + [model.pad] * (width - len(row)) for row in rows])
    groups = [
        [row * width + at for at in group]
        for row, number in enumerate(numbers)
        for group in sequences.places[number]
    ]
    taken = torch.tensor([place for group in groups for place in group])
    sizes = torch.tensor([len(group) for group in groups])
    layers = len(model.anatomy.blocks)
    seen = 0

    def keep(stream: Tensor) -> None:
        nonlocal seen
        at = stream.flatten(0, 1).index_select(0, taken.to(stream.device))
        exact = at.double() if at.device.type != "mps" else at.cpu().double()
        if len(exact) > len(groups):  # answers: means over their tokens
            exact = torch.segment_reduce(exact, "mean", lengths=sizes.to(exact.device), axis=0)
        visit(numbers, seen, exact.view(len(rows), -1, exact.shape[-1]))
        seen += 1
        if seen == layers:
            raise _DoneError

    with watching(model, keep), suppress(_DoneError):
        model.model(input_ids=ids.to(model.device), use_cache=False)


@contextmanager
def watching(model: LoadedModel, keep: Callable[[Tensor], None]) -> Iterator[None]:
    """Within, `keep` is given the stream that enters each block, from the first to the last."""

    def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        keep(entering(given, named))

    with ExitStack() as hooks:
        for block in model.anatomy.blocks:
            module = model.model.get_submodule(block.name)
            hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


@dataclass(frozen=True)
class Contrast:
    """How far apart two sides lie.

    Attributes:
        difference: of means, first side minus second, of shape (P, L, D).
        positions: P of them, counted from the end of the prompt; None for averages over answers.
        title: between what and what, in words.
        model: identity of the model.
    """

    difference: Float64[Tensor, "P L D"]
    positions: tuple[int | None, ...]
    title: str
    model: str

    def direction(self, position: int | None, layer: int, **scores: float) -> Direction:
        """The difference at one position and layer.

        Raises:
            DirectionError: for a position or layer that is not there.
        """
        if position not in self.positions:
            raise DirectionError(
                f"position {position} is not there; known: {', '.join(map(str, self.positions))}"
            )
        layers = self.difference.shape[1]
        if not 0 <= layer < layers:
            raise DirectionError(f"layer {layer} is out of range; there are 0 to {layers - 1}")
        vector = self.difference[self.positions.index(position), layer].float()
        return Direction(vector, layer, position, self.title, self.model, dict(scores))


def difference_of_means(
    model: LoadedModel,
    positive: Sequence[Conversation],
    negative: Sequence[Conversation],
    positions: Sequence[int] | None = None,
    *,
    answers: tuple[Sequence[str], Sequence[str]] | None = None,
    title: str = "positive - negative",
    progress: Progress | None = None,
) -> Contrast:
    """Mean activations on positive prompts minus those on negative ones.

    Args:
        positions: by default all post-instruction tokens.
        answers: of both sides; then activations are averaged over them.
        progress: called with (prompts done, prompts in all).

    Raises:
        DirectionError: for a side without prompts or of one, equal sides, or as
            `mean_activations`.
    """
    check_sides(model, positive, negative, answers)
    at = list(positions) if positions is not None else [*range(-post_instruction(model), 0)]
    total = len(positive) + len(negative)
    means: list[Tensor] = []
    for done, side in ((0, positive), (len(positive), negative)):
        means.append(
            mean_activations(
                model,
                side,
                at,
                answers=answers[len(means)] if answers else None,
                progress=lambda n, _, done=done: progress(done + n, total) if progress else None,  # type: ignore[misc]
            )
        )
    places = tuple(at) if answers is None else (None,)
    return Contrast(means[0] - means[1], places, title, model.source.identity)


def difference_of_models(
    tuned: LoadedModel,
    base: LoadedModel,
    prompts: Sequence[Conversation],
    positions: Sequence[int] | None = None,
    *,
    answers: Sequence[str] | None = None,
    around: tuple[Around, Around] = (nullcontext, nullcontext),
    title: str = "tuned - base",
) -> Contrast:
    """Mean activations of one model minus those of another on the same prompts.

    Args:
        positions, answers: as `difference_of_means`.
        around: see `visit_streams`, for both models; with adapters in one base, both are that.

    Raises:
        DirectionError: where the models have different residual streams or do not differ, or as
            `mean_activations`.
    """
    at = list(positions) if positions is not None else [*range(-post_instruction(base), 0)]
    means = [
        mean_activations(model, prompts, at, answers=answers, around=within)
        for model, within in zip((tuned, base), around, strict=True)
    ]
    if means[0].shape != means[1].shape:
        raise DirectionError(
            f"{tuned.source.name} and {base.source.name} differ in layers or width "
            f"({tuple(means[0].shape[1:])} and {tuple(means[1].shape[1:])}); give a finetune and "
            "its base"
        )
    if torch.equal(*means):
        raise DirectionError(
            f"{tuned.source.name} and {base.source.name} do not differ on these prompts; give a "
            "finetune and its base"
        )
    places = tuple(at) if answers is None else (None,)
    return Contrast(means[0] - means[1], places, title, tuned.source.identity)


def check_sides(
    model: LoadedModel,
    positive: Sequence[Conversation],
    negative: Sequence[Conversation],
    answers: tuple[Sequence[str], Sequence[str]] | None = None,
    fewest: int = FEWEST,
) -> None:
    """Make sure that two sides can be contrasted.

    Args:
        fewest: different prompts that a side needs.

    Raises:
        DirectionError: when one has too few, or both hold the same, however often.
    """
    said = answers or ([""] * len(positive), [""] * len(negative))
    texts = [
        {(model.chat.prompt_text(prompt), answer) for prompt, answer in zip(*pair, strict=False)}
        for pair in zip((positive, negative), said, strict=True)
    ]
    for name, side in zip(("positive", "negative"), texts, strict=True):
        if len(side) < fewest:
            raise DirectionError(
                f"the {name} side has {len(side)} different prompts; expected at least {fewest}, "
                "for few tell more of their words than of the contrast"
            )
    if texts[0] == texts[1]:
        raise DirectionError(
            "the positive and the negative prompts are the same; give prompts that differ in what "
            "the direction is to tell apart"
        )
