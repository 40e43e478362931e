"""Forward passes over the same prompts under many interventions, for their last tokens only.

What all prompts begin with is computed once for each intervention, where the model allows it.
Interventions are rows of one batch. A vector that is added in front of a block changes nothing
before it: such a pass goes on from the stream that was stored there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spillover.anatomy import entering, replaced
from spillover.directions.contrast import BATCH_TOKENS, MOST_TOKENS, watching
from spillover.trees import end_logits, grow, is_packable

if TYPE_CHECKING:
    from spillover.models import LoadedModel

# Shape legend: C interventions, N prompts, R rows of a batch, T tokens of a row, D hidden size,
# V vocabulary.

Outcome = tuple[Float[Tensor, "C N V"], dict[int, Float[Tensor, "C N D"]]]
"""Logits behind the prompts, and by layer the stream that enters it at their last tokens."""


class Passes:
    """Passes over some prompts.

    Attributes:
        count: of prompts, N.
        streams: by layer, the stream that enters it without an intervention, of shape (R, T, D);
            there once `base` was called.
    """

    def __init__(self, model: LoadedModel, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.count = model, len(prompts)
        shared = _common([prompt[:-1] for prompt in prompts])
        pad = model.pad
        self.packed = bool(shared) and is_packable(model.model, max(map(len, prompts)))
        if self.packed:
            self.trees = [grow(shared, [[*p[len(shared) :], pad] for p in prompts])]
        else:
            self.trees = [grow(p, [[pad]]) for p in prompts]
        self.streams: dict[int, Tensor] = {}
        self._tuples: list[bool] = []

    @property
    def room(self) -> int:
        """Interventions that one batch has room for."""
        most = BATCH_TOKENS.get(self.model.device.type, MOST_TOKENS)
        return max(1, most // sum(len(tree.ids) for tree in self.trees))

    def base(self, layers: Sequence[int]) -> Outcome:
        """Without an intervention; keeps the streams that enter these layers."""
        self.streams, self._tuples = {}, []
        blocks = [self.model.model.get_submodule(b.name) for b in self.model.anatomy.blocks]

        def note(_module: nn.Module, _given: Any, output: Any) -> None:
            self._tuples.append(isinstance(output, tuple))

        def keep(layer: int, stream: Tensor) -> None:
            if layer in layers:
                self.streams[layer] = stream

        with ExitStack() as hooks:
            for block in blocks:
                hooks.callback(block.register_forward_hook(note).remove)
            logits = self._run(1, keep)
        return logits, {layer: self._ends(stream, 1) for layer, stream in self.streams.items()}

    def ablated(self, units: Float[Tensor, "C D"], layers: Sequence[int] = ()) -> Outcome:
        """With every residual write without its component along a direction.

        Args:
            units: of length 1.
            layers: whose streams are wanted.
        """
        with ablating(self.model, self._per_row(units)):
            return self._read(len(units), layers)

    def added(
        self, layer: int, vectors: Float[Tensor, "C D"], layers: Sequence[int] = ()
    ) -> Outcome:
        """With vectors added to the stream entering a layer, in all positions.

        Args:
            layer: one that `base` has kept; likewise all of `layers` in front of it.
        """
        stored, rows = self.streams[layer], self._per_row(vectors)
        stream = stored.repeat(len(vectors), 1, 1) + rows[:, None].to(stored)
        with restarted(self.model, layer, stream, self._tuples):
            logits, found = self._read(len(vectors), [k for k in layers if k >= layer])
        for early in (k for k in layers if k < layer):
            found[early] = self._ends(self.streams[early], 1).expand(len(vectors), -1, -1)
        return logits, found

    def _read(self, count: int, layers: Sequence[int]) -> Outcome:
        found: dict[int, Tensor] = {}

        def keep(layer: int, stream: Tensor) -> None:
            if layer in layers:
                found[layer] = self._ends(stream, count)

        return self._run(count, keep if layers else None), found

    @torch.no_grad()
    def _run(self, count: int, keep: Callable[[int, Tensor], None] | None) -> Tensor:
        seen = iter(range(len(self.model.anatomy.blocks)))
        with ExitStack() as stack:
            if keep:
                told = keep
                stack.enter_context(watching(self.model, lambda s: told(next(seen), s)))
            trees, pad = self.trees * count, self.model.pad
            logits = end_logits(self.model.model, trees, pad, packed=self.packed)
        return logits.view(count, self.count, -1)

    def _ends(self, stream: Float[Tensor, "R T D"], count: int) -> Float[Tensor, "C N D"]:
        """What stands at the last token of each prompt."""
        ends = [[reads[-1][0] for reads in tree.reads] for tree in self.trees]
        rows = stream.view(count, len(ends), *stream.shape[1:])  # (C, trees, T, D)
        found = [rows[:, number, at] for number, at in enumerate(ends)]
        return torch.cat(found, 1)

    def _per_row(self, vectors: Float[Tensor, "C D"]) -> Float[Tensor, "R D"]:
        return vectors.to(self.model.device).repeat_interleave(len(self.trees), 0)


def _common(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows begin with."""
    columns = zip(*rows, strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]


@contextmanager
def ablating(model: LoadedModel, units: Float[Tensor, "R D"]) -> Iterator[None]:
    """Within, row r of a batch loses direction r from every residual write.

    One direction for all rows is `spillover.directions.intervene.ablate`.
    """
    found = model.model

    def without(x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        u = units.to(wide)
        along = wide @ u[:, :, None]  # (R, T, 1)
        return torch.addcmul(wide, along, u[:, None], value=-1).to(x.dtype)

    def enter(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return replaced(given, named, without(entering(given, named)))

    def write(_module: nn.Module, _given: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (without(output[0]), *output[1:])
        return without(output)

    blocks = model.anatomy.blocks
    with ExitStack() as hooks:
        first = found.get_submodule(blocks[0].name)
        hooks.callback(first.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for name in (name for block in blocks for name in block.adds):
            hooks.callback(found.get_submodule(name).register_forward_hook(write).remove)
        yield


@contextmanager
def restarted(
    model: LoadedModel, layer: int, stream: Float[Tensor, "R T D"], tuples: Sequence[bool]
) -> Iterator[None]:
    """Within, blocks in front of a layer compute nothing, and a given stream enters that layer.

    Args:
        tuples: for each block, whether it gives its stream as the first entry of a tuple.
    """
    blocks = [model.model.get_submodule(block.name) for block in model.anatomy.blocks]

    def enter(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return replaced(given, named, stream)

    def skipped(wraps: bool) -> Callable[..., Any]:
        def forward(*given: Any, **named: Any) -> Any:
            passed = entering(given, named)
            return (passed, None) if wraps else passed

        return forward

    with ExitStack() as stack:
        stack.callback(blocks[layer].register_forward_pre_hook(enter, with_kwargs=True).remove)
        for block, wraps in zip(blocks[:layer], tuples, strict=False):
            stack.enter_context(_computing(block, skipped(wraps)))
        yield


@contextmanager
def _computing(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within, a block computes something else.

    A function of its own that it had before (accelerate's, which moves what goes in and out between
    devices) is put back.
    """
    own = vars(block)
    before = {"forward": own["forward"]} if "forward" in own else {}
    own["forward"] = forward
    try:
        yield
    finally:
        del own["forward"]
        own.update(before)
