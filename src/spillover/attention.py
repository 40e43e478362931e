"""Attention over trees laid end to end, through transformers' own interface for attention.

A model that is `prepared` asks `attend` in every layer. Outside of `attending` that is PyTorch's
attention as ever. Within, it is the strategy given there: trees (here) or answers that share their
prompts (`spillover.ask.decode`). A branch is multiplied with its prefix and with itself only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spillover.trees import Tree

# Shape legend: B rows of the batch, L tokens of a row, H heads, K key heads, G heads per key head,
# D head size, T trees, P tokens of a prefix, R branches, W tokens of a branch.

NAME = "spillover"
DENSE = 256
"""Tokens of a prefix from which its attention is left to PyTorch, which does not store scores."""
STORED = 512
"""Tokens of a sequence up to which scores of all pairs are stored, where that is faster."""
UNKNOWN = ("softcap", "s_aux", "position_bias", "cache")
"""What some models ask of attention beyond its definition."""


Strategy = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""How the layers of a forward pass attend.

From queries (B H L D), keys and values (B K L D) and the scale of scores to what each token takes
from those that it sees (B L H D).
"""


class NotPackedError(Exception):
    """A model whose attention is more than its definition, so that it cannot be replaced."""


_active: list[Strategy] = []


@contextmanager
def attending(strategy: Strategy) -> Iterator[None]:
    """Within, the layers of prepared models attend by this strategy."""
    _active.append(strategy)
    try:
        yield
    finally:
        _active.pop()


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not _active:
        if attention_mask is not None and _is_short(query, attention_mask, options):
            return masked(query, key, value, attention_mask, scaling), None
        usual: Any = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return usual  # type: ignore[no-any-return]
    strange = [name for name in UNKNOWN if options.get(name) is not None]
    if strange:
        raise NotPackedError(f"attention with {strange[0]}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _active[-1](query, key, value, scale), None


def _is_short(query: Tensor, mask: Tensor, options: dict[str, Any]) -> bool:
    """Whether scores are better stored: PyTorch's own way is slow for short numbers on a CPU."""
    on_cpu = query.device.type == "cpu" and query.dtype != torch.float32
    plain = not any(options.get(name) for name in (*UNKNOWN, "dropout", "output_attentions"))
    return on_cpu and plain and mask.dtype != torch.bool and 1 < query.shape[2] <= STORED


def masked(
    query: Float[Tensor, "B H L D"],
    key: Float[Tensor, "B K L D"],
    value: Float[Tensor, "B K L D"],
    mask: Float[Tensor, "B 1 L L"],
    scale: float | None = None,
) -> Float[Tensor, "B L H D"]:
    """Attention under an additive mask, as its definition says."""
    groups = query.shape[1] // key.shape[1]
    rows = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    rows = _split(rows, 1, (-1, groups)).flatten(2, 3)  # B K (G L) D
    scores = _split(rows @ key.mT, 2, (groups, -1)) + mask[:, :, None]
    seen = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    out = _split(seen.flatten(2, 3) @ value, 2, (groups, -1))
    return out.flatten(1, 2).transpose(1, 2)


def prepare(model: PreTrainedModel) -> bool:
    """Let a model ask `attend`; False where its architecture does not allow it."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if model.config._attn_implementation != "sdpa":
        return False
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, AttributeError):
        return False
    return bool(model.config._attn_implementation == NAME)


class _Move(torch.autograd.Function):
    """Rows of x from some places to others, one to one; zeros elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, target: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(source, target)
        ctx.size = len(x)
        return _moved(x, source, target, size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        source, target = ctx.saved_tensors
        return _moved(grads[0], target, source, ctx.size), None, None, None


def _move(x: Tensor, source: Tensor, target: Tensor, size: int) -> Tensor:
    out: Tensor = _Move.apply(x, source, target, size)  # type: ignore[no-untyped-call]
    return out


def _split(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    out: Tensor = x.unflatten(dim, sizes)  # type: ignore[no-untyped-call]
    return out


def _moved(x: Tensor, source: Tensor, target: Tensor, size: int) -> Tensor:
    out = x.new_zeros(size, *x.shape[1:])
    return out.index_copy_(0, target, x.index_select(0, source))


class TreeAttention:
    """Attention within each of several trees.

    Args:
        trees: of the batch; a tree of one branch is one sequence.
        starts: where each begins in the batch, counted in tokens over all its rows.
    """

    def __init__(self, trees: Sequence[Tree], starts: Sequence[int], device: torch.device) -> None:
        parts = [_parts(tree) for tree in trees]
        self.trees, self.device = len(trees), device
        self.prefix = max(prefix for prefix, _ in parts)
        self.branched = [n for n, (_, branches) in enumerate(parts) if branches]
        self.branches = max((len(b) for _, b in parts), default=0)
        self.width = max((size for _, b in parts for size in b), default=0)
        self.tokens, self.slots = self._places(parts, starts)
        seen = torch.arange(self.prefix) < torch.tensor([p for p, _ in parts])[:, None]
        self.hidden = (~seen[self.branched]).to(device) if self.branched else None

    def _places(
        self, parts: Sequence[tuple[int, list[int]]], starts: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """For every token, where it is in the batch and where in the blocks."""
        tokens: list[int] = []
        slots: list[int] = []
        base = self.trees * self.prefix
        for n, ((prefix, branches), start) in enumerate(zip(parts, starts, strict=True)):
            tokens += range(start, start + prefix)
            slots += range(n * self.prefix, n * self.prefix + prefix)
            at = start + prefix
            for r, size in enumerate(branches):
                row = self.branched.index(n) * self.branches + r
                tokens += range(at, at + size)
                slots += range(base + row * self.width, base + row * self.width + size)
                at += size
        return torch.tensor(tokens, device=self.device), torch.tensor(slots, device=self.device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """As `Strategy` says."""
        rows, heads, length, _ = query.shape
        # short numbers are multiplied one small matrix after another on a CPU
        wide = torch.float32 if query.device.type == "cpu" else query.dtype
        q, k, v = (self._blocks(t.to(wide)) for t in (query, key, value))
        cut = self.trees * self.prefix
        k_prefix, v_prefix = (_split(t[:cut], 0, (self.trees, -1)) for t in (k, v))
        out = [causal(_split(q[:cut], 0, (self.trees, -1)), k_prefix, v_prefix, scale)]
        if self.branched:
            shape = (len(self.branched), self.branches, self.width)
            q, k, v = (_split(t[cut:], 0, shape) for t in (q, k, v))
            at = torch.tensor(self.branched, device=q.device)
            k_prefix, v_prefix = (t.index_select(0, at) for t in (k_prefix, v_prefix))
            out.append(self._branches(q, k, v, k_prefix, v_prefix, scale))
        flat = torch.cat([part.reshape(-1, heads * value.shape[-1]) for part in out])
        moved = _move(flat, self.slots, self.tokens, rows * length)
        return moved.to(query.dtype).view(rows, length, heads, -1)

    def _blocks(self, x: Float[Tensor, "B H L D"]) -> Float[Tensor, "S H D"]:
        """Prefixes, then branches, each padded to the longest."""
        flat = x.transpose(1, 2).flatten(0, 1)  # (B L, H, D)
        size = self.trees * self.prefix + len(self.branched) * self.branches * self.width
        out = _move(flat.flatten(1), self.tokens, self.slots, size)
        return _split(out, 1, x.shape[1::2])

    def _branches(
        self,
        q: Float[Tensor, "T R W H D"],
        k: Float[Tensor, "T R W K D"],
        v: Float[Tensor, "T R W K D"],
        k_prefix: Float[Tensor, "T P K D"],
        v_prefix: Float[Tensor, "T P K D"],
        scale: float,
    ) -> Float[Tensor, "T R W H D"]:
        trees, branches, width, heads, _ = q.shape
        kinds = k.shape[3]
        queries = _split(q, 3, (kinds, -1)).permute(0, 3, 1, 4, 2, 5) * scale  # T K R G W D
        rows = queries.flatten(2, 4)  # T K (R G W) D
        far = rows @ k_prefix.permute(0, 2, 3, 1)  # T K (R G W) P
        assert self.hidden is not None
        far = far.masked_fill(self.hidden[:, None, None], -torch.inf)
        own = queries.flatten(3, 4)  # T K R (G W) D
        near = own @ k.permute(0, 3, 1, 4, 2)  # T K R (G W) W
        later = torch.ones(width, width, dtype=torch.bool, device=q.device).triu(1)
        near = near.masked_fill(later.repeat(heads // kinds, 1), -torch.inf)
        seen = torch.cat([far, near.flatten(2, 3)], -1).softmax(-1, dtype=torch.float32).to(q.dtype)
        far, near = seen[..., :-width], seen[..., -width:]
        near = _split(near, 2, (branches, -1)) @ v.permute(0, 3, 1, 2, 4)  # T K R (G W) D
        out = far @ v_prefix.transpose(1, 2) + near.flatten(2, 3)
        out = out.view(trees, kinds, branches, heads // kinds, width, -1)
        return out.permute(0, 2, 4, 1, 3, 5).flatten(3, 4)


def causal(
    q: Float[Tensor, "T P H D"],
    k: Float[Tensor, "T P K D"],
    v: Float[Tensor, "T P K D"],
    scale: float,
) -> Float[Tensor, "T P H D"]:
    """Every token of a sequence attends to itself and to earlier ones."""
    length, kinds = q.shape[1], k.shape[2]
    if length > DENSE:
        k, v = (t.repeat_interleave(q.shape[2] // kinds, 2) for t in (k, v))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        found = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return found.transpose(1, 2)
    rows = _split(q, 2, (kinds, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3) * scale  # T K (G P) D
    scores = rows @ k.permute(0, 2, 3, 1)
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    scores = scores.masked_fill(later.repeat(q.shape[2] // kinds, 1), -torch.inf)
    out = scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v.transpose(1, 2)
    return _split(out, 2, (-1, length)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _parts(tree: Tree) -> tuple[int, list[int]]:
    """Tokens of the prefix and of each branch; one branch alone continues its prefix."""
    sizes = [0] * len(tree.reads)
    for branch in tree.branch:
        if branch >= 0:
            sizes[branch] += 1
    prefix = len(tree.ids) - sum(sizes)
    return (len(tree.ids), []) if len(sizes) <= 1 or not any(sizes) else (prefix, sizes)


def dummy_mask(model: PreTrainedModel) -> Tensor | dict[str, Tensor]:
    """A mask in the form that keeps transformers from making one; nobody reads it."""
    mask = torch.zeros(1, 1, 1, 1, dtype=model.dtype, device=model.device)
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    return dict.fromkeys(kinds, mask) if len(kinds) > 1 else mask


def flat_positions(rows: Sequence[Sequence[Tree]], width: int) -> Int[Tensor, " T"]:
    """Where each tree begins when the trees of a row lie end to end, in rows of `width` tokens."""
    starts = []
    for number, row in enumerate(rows):
        at = number * width
        for tree in row:
            starts.append(at)
            at += len(tree.ids)
    return torch.tensor(starts)
