"""Direct feature attribution: what each part of a model adds along a direction, head by head.

The residual stream is a sum: the embeddings, and what attention and MLP of every block add. What
attention adds is a sum over its heads in turn, each through its slice of the output projection
(arXiv 2406.11717, section 5). Projections onto a direction add up likewise, and the sum is compared
with the projection of the stream itself, each time: a model whose parts do not add up is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from spillover.anatomy import Block, entering, first_of
from spillover.directions.direction import Direction
from spillover.directions.intervene import as_vector
from spillover.errors import DirectionError, ModelError
from spillover.next_tokens import batches, padded

if TYPE_CHECKING:
    from spillover.models import LoadedModel

# Shape legend: N prompts, K blocks, H heads, L tokens of the longest prompt, D hidden size, I
# inputs of an output projection.

ROUNDING = 32
"""Units of rounding, relative to the length of the stream, that each addition may be off by."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Attribution:
    """What lies along a direction of length 1 at the last token of prompts.

    Attributes:
        embedding: the stream that enters the first block.
        heads: what each head adds.
        bias: what attention adds whatever its heads see: the bias of its output projection.
        mlp: what MLPs add, mixtures of experts included.
        stream: the stream that enters each block, and last that which leaves the last one.
        attention: the share of each head's attention at each token of the prompt; 0 behind it.
    """

    embedding: Float64[Tensor, " N"]
    heads: Float64[Tensor, "N K H"]
    bias: Float64[Tensor, "N K"]
    mlp: Float64[Tensor, "N K"]
    stream: Float64[Tensor, "N K1"]
    attention: Float[Tensor, "N K H L"]

    def before(self, layer: int) -> dict[str, Float64[Tensor, " N"]]:
        """The parts of the stream entering a layer; their sum is its projection."""
        return {
            "embedding": self.embedding,
            "heads": self.heads[:, :layer].sum((1, 2)),
            "bias": self.bias[:, :layer].sum(1),
            "mlp": self.mlp[:, :layer].sum(1),
        }


@torch.no_grad()
def attribute(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    direction: Direction | Tensor,
    progress: Progress | None = None,
) -> Attribution:
    """Attribute the projection of the residual stream to the parts of a model.

    Args:
        prompts: token ids.
        direction: of shape (D,); its length does not matter.
        progress: called with (prompts done, prompts in all).

    Raises:
        DirectionError: for no prompts or one without tokens, and for a direction that does not fit
            the model, is zero or not finite.
        ModelError: for architectures whose heads cannot be told apart: attention whose output no
            single linear layer produces, or that is added through more than a norm that scales;
            and where the parts do not add up.
    """
    unit = as_vector(model, direction).double()
    if not prompts or not all(prompts):
        lacking = "a prompt without tokens" if prompts else "no prompts"
        raise DirectionError(f"found {lacking}; expected the token ids of at least one prompt")
    reader = _Reader(model, unit / unit.norm())
    longest, done = max(map(len, prompts)), 0
    found: dict[int, list[Tensor]] = {}
    with _eager(model):
        for batch in batches(model, [len(ids) for ids in prompts]):
            parts = reader.read([prompts[number] for number in batch], longest)
            for at, number in enumerate(batch):
                found[number] = [part[at] for part in parts]
            done += len(batch)
            if progress:
                progress(done, len(prompts))
    return Attribution(
        *(torch.stack([found[n][at] for n in range(len(prompts))]) for at in range(len(FIELDS)))
    )


FIELDS = [one.name for one in fields(Attribution)]


@dataclass
class _Seen:
    """What a block computes at the last token of each prompt of a batch, in float64.

    Attributes:
        entering, leaving: the residual stream.
        inputs: of the output projection of attention.
        written: by attention, before a norm.
        adds: what attention and MLP add, behind norms.
        attention: of each head, to all tokens.
    """

    entering: Tensor = field(default_factory=lambda: torch.empty(0))
    leaving: Tensor = field(default_factory=lambda: torch.empty(0))
    inputs: Tensor = field(default_factory=lambda: torch.empty(0))
    written: Tensor = field(default_factory=lambda: torch.empty(0))
    adds: dict[int, Tensor] = field(default_factory=dict)
    attention: Tensor | None = None


class _Reader:
    """Reads the parts of a model's residual stream along one direction."""

    def __init__(self, model: LoadedModel, unit: Float64[Tensor, " D"]) -> None:
        self.model, self.unit = model, unit
        self.heads = _count_heads(model)
        self.writers = [_writer_of(model, block) for block in model.anatomy.blocks]

    def read(self, prompts: Sequence[Sequence[int]], longest: int) -> list[Tensor]:
        """The fields of `Attribution` for prompts of one batch."""
        ids, ends = padded(self.model, prompts)
        seen = self._watch(ids, ends)
        columns = [self._block(at, one) for at, one in enumerate(seen)]
        heads, bias, mlp = (torch.stack(parts, 1) for parts in zip(*columns, strict=True))
        streams = [*(one.entering for one in seen), seen[-1].leaving]
        stream = torch.stack([one @ self.unit for one in streams], 1)
        self._check(stream, heads.sum(2) + bias + mlp, streams)
        attention = ids.new_zeros((*heads.shape, longest), dtype=torch.float32, device="cpu")
        for at, one in enumerate(seen):
            assert one.attention is not None
            attention[:, at, :, : ids.shape[1]] = one.attention
        return [stream[:, 0], heads, bias, mlp, stream, attention]

    def _watch(self, ids: Int[Tensor, "N L"], ends: Int[Tensor, " N"]) -> list[_Seen]:
        """One forward pass."""
        blocks = self.model.anatomy.blocks
        seen = [_Seen() for _ in blocks]
        rows = torch.arange(len(ids))

        def last(tensor: Tensor) -> Tensor:
            at = tensor.view(len(ids), -1, tensor.shape[-1])  # some writers see rows end to end
            return at[rows.to(at.device), ends.to(at.device)].cpu().double()

        with ExitStack() as hooks:
            for at, block in enumerate(blocks):
                for handle in self._hooks(block, self.writers[at], seen[at], last, (rows, ends)):
                    hooks.callback(handle.remove)
            self.model.model(input_ids=ids, use_cache=False)
        without = [
            block.name for block, one in zip(blocks, seen, strict=True) if one.attention is None
        ]
        if without:
            raise _cannot(self.model, f"{without[0]} does not say what its heads attend to")
        return seen

    def _hooks(
        self,
        block: Block,
        writer: nn.Module,
        seen: _Seen,
        last: Callable[[Tensor], Tensor],
        places: tuple[Tensor, Tensor],
    ) -> Iterator[Any]:
        module, rows, ends = self.model.model.get_submodule, *places

        def enter(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.entering = last(entering(given, named))

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            seen.leaving = last(first_of(output))

        def write(_: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
            seen.inputs, seen.written = last(given[0]), last(output)

        def add(which: int) -> Callable[..., None]:
            return lambda _, __, output: seen.adds.update({which: last(first_of(output))})

        def attend(_: nn.Module, __: Any, output: Any) -> None:
            rest = output[1:] if isinstance(output, tuple) else ()
            for one in rest:
                if isinstance(one, Tensor) and one.dim() == 4 and one.shape[2] == one.shape[3]:
                    at = one[rows.to(one.device), :, ends.to(one.device)]
                    seen.attention = at.float().cpu()

        yield module(block.name).register_forward_pre_hook(enter, with_kwargs=True)
        yield module(block.name).register_forward_hook(leave)
        yield writer.register_forward_hook(write)
        yield module(block.attention).register_forward_hook(attend)
        for which, name in enumerate(block.adds):
            yield module(name).register_forward_hook(add(which))

    def _block(self, at: int, seen: _Seen) -> tuple[Tensor, Tensor, Tensor]:
        """What heads (N, H), bias and MLP (N) of a block add along the direction."""
        block = self.model.anatomy.blocks[at]
        heads, bias = self._by_head(self.writers[at], seen.inputs)
        onto = self.unit
        if block.adds[0] != block.attention:
            onto = self.unit * self._scaling(block.adds[0], seen)  # (N, D)
        change, added = seen.leaving - seen.entering, seen.adds[0] + seen.adds[1]
        factor = (change * added).sum() / added.square().sum()  # a residual multiplier, or 1
        factor = factor if abs(factor - 1) > 1e-3 else torch.ones_like(factor)
        return (
            factor * (heads * onto.view(-1, 1, len(self.unit))).sum(-1),
            factor * (bias * onto).sum(-1).expand(len(heads)),
            factor * seen.adds[1] @ self.unit,
        )

    def _by_head(
        self, writer: nn.Module, inputs: Float64[Tensor, "N I"]
    ) -> tuple[Float64[Tensor, "N H D"], Float64[Tensor, " D"]]:
        """What the output projection makes of each head alone, and of none: its bias."""
        near: Any = next(writer.parameters())
        count, width = inputs.shape
        if width % self.heads:
            raise _cannot(
                self.model,
                f"the {width} inputs of its output projection are not {self.heads} heads",
            )
        own = torch.eye(self.heads, dtype=torch.float64).repeat_interleave(width // self.heads, 1)
        alone = torch.cat([inputs.new_zeros(1, width), (inputs[:, None] * own).flatten(0, 1)])
        dtype = near.dtype if near.is_floating_point() else self.model.model.dtype
        out = writer(alone.to(near.device, dtype)).cpu().double()
        return (out[1:] - out[0]).view(count, self.heads, -1), out[0]

    def _scaling(self, name: str, seen: _Seen) -> Float64[Tensor, "N D"]:
        """What a norm behind attention multiplies each prompt's output with.

        Raises:
            ModelError: where it does more than multiply.
        """
        norm: Any = self.model.model.get_submodule(name)
        ones = torch.ones(1, len(self.unit), device=self.model.device, dtype=self.model.model.dtype)
        gain = norm(ones).cpu().double()
        raw, normed = seen.written * gain, seen.adds[0]
        scale = (normed * raw).sum(-1, keepdim=True) / raw.square().sum(-1, keepdim=True)
        error = (normed - scale * raw).norm(dim=-1) / normed.norm(dim=-1)
        if error.max() > self._rounding:
            kind = type(norm).__name__
            raise _cannot(self.model, f"{name} ({kind}) does more to what heads add than scale it")
        scaling: Tensor = scale * gain
        return scaling

    @property
    def _rounding(self) -> float:
        return ROUNDING * float(torch.finfo(self.model.model.dtype).eps)

    def _check(
        self, stream: Float64[Tensor, "N K1"], parts: Float64[Tensor, "N K"], full: Sequence[Tensor]
    ) -> None:
        """Make sure that parts add up to the stream, block by block."""
        length = torch.stack([one.norm(dim=1) for one in full], 1)
        error = (stream[:, :-1] + parts - stream[:, 1:]).abs()
        wrong = (error / torch.maximum(length[:, 1:], length[:, :-1])).amax(0)
        if not wrong.max() <= self._rounding:
            at = int(wrong.argmax())
            raise _cannot(
                self.model,
                f"what heads and MLP of block {at} add differs from the change of the residual "
                f"stream by {float(wrong[at]):.1e} of its length",
            )


def _count_heads(model: LoadedModel) -> int:
    heads = getattr(model.model.config.get_text_config(), "num_attention_heads", None)
    if not isinstance(heads, int):
        raise _cannot(model, "its configuration has no num_attention_heads for all blocks")
    return heads


def _writer_of(model: LoadedModel, block: Block) -> nn.Module:
    """The output projection of attention."""
    inside = [name for name in block.writers if name.startswith(f"{block.attention}.")]
    if len(inside) != 1 or len(block.adds) != 2:
        raise _cannot(
            model, f"{block.attention} does not add the output of one linear layer to the stream"
        )
    return model.model.get_submodule(inside[0])


@contextmanager
def _eager(model: LoadedModel) -> Iterator[None]:
    """Within, attention computes the shares that it gives to tokens."""
    before = str(model.model.config._attn_implementation)
    try:
        _attend_by(model, "eager")
        yield
    finally:
        _attend_by(model, before)


def _attend_by(model: LoadedModel, name: str) -> None:
    found: Any = model.model
    if found._can_set_attn_implementation():
        found.set_attn_implementation(name)
    else:  # Falcon looks it up each time, and is not asked whether it does
        found.config._attn_implementation = name


def _cannot(model: LoadedModel, why: str) -> ModelError:
    kind = model.model.config.model_type
    return ModelError(
        f"{model.source.name}: {why}; models of this architecture ({kind}) cannot be taken apart "
        "by heads"
    )
