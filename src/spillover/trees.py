"""Sequences that branch: a beginning computed once, continuations that do not see each other.

Everything that shares a prefix is laid out in one sequence. A token attends to what it continues
only, through an additive float mask (boolean masks are silently wrong under eager attention), at
the position that it would have if its branch stood alone. Outputs and gradients are those of the
separate sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spillover.attention import (
    NotPackedError,
    TreeAttention,
    attending,
    dummy_mask,
    flat_positions,
    prepare,
)
from spillover.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Shape legend: B trees, L tokens of a tree, K tokens looked up at P places, D hidden size,
# V vocabulary.

PREFIX, PADDING = -1, -2
FAR = 2**31
"""Beyond the number of every branch."""
EXACT, ROUNDED = 1e-3, 0.25
"""Nats that a token of a branch may differ by, in float32 and in shorter numbers."""
WASTE = 1.5
"""Tokens with padding over tokens without it, from which trees are laid end to end."""
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Tree:
    """A prefix with its branches, laid out in one sequence of length L.

    Attributes:
        ids, positions: token ids and position ids.
        branch: -1 for the prefix, else the number of the branch, or of the token (`grow_shared`).
        reads: for every branch, (where the logits of a token stand, the token) for all its tokens.
        until: where branches branch again: the first number behind those that continue a token.
    """

    ids: list[int]
    positions: list[int]
    branch: list[int]
    reads: list[list[tuple[int, int]]]
    until: list[int] | None = None

    @property
    def seen(self) -> list[int]:
        """The first number of branches, from a token's own on, that do not see it."""
        return self.until or [FAR if b == PREFIX else b + 1 for b in self.branch]


def grow(prefix: Sequence[int], branches: Sequence[Sequence[int]]) -> Tree:
    """Lay out a prefix and its branches; the last token of a branch is only looked up."""
    ids, positions, branch = list(prefix), list(range(len(prefix))), [PREFIX] * len(prefix)
    reads: list[list[tuple[int, int]]] = []
    for number, tokens in enumerate(branches):
        at = [len(prefix) - 1, *range(len(ids), len(ids) + len(tokens) - 1)]
        reads.append(list(zip(at, tokens, strict=True)))
        ids += tokens[:-1]
        positions += range(len(prefix), len(prefix) + len(tokens) - 1)
        branch += [number] * (len(tokens) - 1)
    return Tree(ids, positions, branch, reads)


def grow_shared(prefix: Sequence[int], branches: Sequence[Sequence[int]]) -> Tree:
    """As `grow`, but what branches begin with alike is laid out once; tokens are numbered."""
    ids, until = list(prefix), [FAR] * len(prefix)
    positions = list(range(len(prefix)))
    places: dict[tuple[int, ...], int] = {(): len(prefix) - 1}
    for tokens in sorted(map(tuple, branches)):  # so that what continues a token follows it
        path = [tokens[:depth] for depth in range(1, len(tokens))]
        for node in path:
            if node not in places:
                places[node] = len(ids)
                ids.append(node[-1])
                positions.append(len(prefix) + len(node) - 1)
                until.append(0)
        for node in path:
            until[places[node]] = len(ids) - len(prefix)
    branch = [PREFIX] * len(prefix) + list(range(len(ids) - len(prefix)))
    reads = [
        [(places[tuple(tokens[:at])], token) for at, token in enumerate(tokens)]
        for tokens in branches
    ]
    return Tree(ids, positions, branch, reads, until)


def tree_mask(
    branch: Int[Tensor, "B L"],
    seen: Int[Tensor, "B L"],
    positions: Int[Tensor, "B L"],
    dtype: torch.dtype,
    window: int | None = None,
) -> Float[Tensor, "B 1 L L"]:
    """Additive mask: 0 for the tokens that one continues, else the minimum.

    Args:
        branch, seen: a token is seen by later ones with branch ≤ their branch < seen.
        window: tokens that a sliding window shows, one's own included; None shows all.
    """
    length = branch.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=branch.device).tril()
    query = branch[:, :, None]
    shown = causal & (branch[:, None, :] <= query) & (query < seen[:, None, :])
    if window is not None:
        shown &= positions[:, :, None] - positions[:, None, :] < window
    mask = torch.zeros(shown.shape, dtype=dtype, device=branch.device)
    return mask.masked_fill(~shown, torch.finfo(dtype).min)[:, None]


def model_masks(
    config: PretrainedConfig,
    branch: Int[Tensor, "B L"],
    seen: Int[Tensor, "B L"],
    positions: Int[Tensor, "B L"],
    dtype: torch.dtype,
) -> Tensor | dict[str, Tensor]:
    """The masks that a model takes: one, or one for each kind of attention in its layers.

    Raises:
        ModelError: for layers that carry a state from token to token and so cannot branch.
    """
    window, config = window_of(config), config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds <= {FULL, SLIDING}:
        other = ", ".join(sorted(kinds - {FULL, SLIDING}))
        raise ModelError(
            f"{config.model_type}: has layers of kind {other}; "
            "only layers that attend to all tokens or to a sliding window can be used"
        )
    full = tree_mask(branch, seen, positions, dtype)
    if window is None or window > int(positions.max()):
        return dict.fromkeys(kinds, full) if len(kinds) > 1 else full
    slid = tree_mask(branch, seen, positions, dtype, window)
    if len(kinds) > 1:
        return {kind: slid if kind == SLIDING else full for kind in kinds}
    return full if kinds == {FULL} else slid


@dataclass(frozen=True)
class Reads:
    """Where logits are read off padded trees, one entry for each token that is looked up.

    Attributes:
        tree, branch, at: which tree, which of its branches, which position.
        token: the token looked up there.
    """

    tree: Int[Tensor, " K"]
    branch: Int[Tensor, " K"]
    at: Int[Tensor, " K"]
    token: Int[Tensor, " K"]


def all_reads(trees: Sequence[Tree], device: torch.device) -> Reads:
    """The reads of all trees in order."""
    entries = [
        (number, branch, at, token)
        for number, tree in enumerate(trees)
        for branch, reads in enumerate(tree.reads)
        for at, token in reads
    ]
    return Reads(*torch.tensor(entries, device=device).unbind(1))


def token_losses(
    model: PreTrainedModel,
    trees: Sequence[Tree],
    reads: Reads,
    pad: int,
    owners: Sequence[int] | None = None,
) -> Float[Tensor, " K"]:
    """Negative log-probability of every token that is looked up, by one forward pass.

    The output layer is computed at these positions only. Trees lie end to end where the model
    allows it (`prepare_model`), those of one owner in a row; elsewhere each has a row of its own.

    Args:
        owners: the adapter of each tree; neighbours with the same one share a row.
    """
    logits, row = read_logits(model, trees, reads, pad, owners)
    row, token = row.to(logits.device), reads.token.to(logits.device)
    if not torch.is_grad_enabled():
        losses = -logits.float().log_softmax(-1)[row, token]
    else:
        losses = nn.functional.cross_entropy(logits.float(), token, reduction="none")
    found: Tensor = losses.to(reads.token.device)
    return found


def read_logits(
    model: PreTrainedModel,
    trees: Sequence[Tree],
    reads: Reads,
    pad: int,
    owners: Sequence[int] | None = None,
) -> tuple[Float[Tensor, "P V"], Int[Tensor, " K"]]:
    """Logits wherever a token is looked up, and for every look-up the row that has its own.

    See `token_losses`. With gradients every look-up has a row of its own (P = K).
    """
    batch = _packed if _is_worth_packing(model, trees) else _padded
    ids, positions, starts, masks, strategy = batch(model, trees, pad, owners)
    places, row = starts[reads.tree] + reads.at, torch.arange(len(reads.at), device=ids.device)
    if not torch.is_grad_enabled():  # branches begin at the same place; gradients add up in order
        places, row = torch.unique(places, return_inverse=True)

    with reading(model, places), strategy:
        logits: Tensor = model(
            input_ids=ids, position_ids=positions, attention_mask=masks, use_cache=False
        ).logits[0]  # (P, V)
    return logits, row


def end_logits(
    model: PreTrainedModel, trees: Sequence[Tree], pad: int, *, packed: bool
) -> Float[Tensor, "R V"]:
    """Logits in front of the last token of every branch, by one forward pass; a row for each tree.

    Args:
        packed: leave attention to `TreeAttention`; for models with `is_packable` only.
    """
    batch = _packed if packed else _padded
    ids, positions, starts, masks, strategy = batch(model, trees, pad, range(len(trees)))
    places = [
        start + reads[-1][0]
        for start, tree in zip(starts.tolist(), trees, strict=True)
        for reads in tree.reads
    ]
    with reading(model, torch.tensor(places, device=ids.device)), strategy:
        logits: Tensor = model(
            input_ids=ids, position_ids=positions, attention_mask=masks, use_cache=False
        ).logits[0]
    return logits


@contextmanager
def reading(model: PreTrainedModel, places: Int[Tensor, " K"]) -> Iterator[None]:
    """Within, a forward pass gives the logits of these places only, as one row (1, K, V).

    Args:
        places: counted in tokens over all rows of the batch.
    """

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # index_select adds up its gradient in a fixed order; indexing does so atomically
        at = places.to(inputs[0].device)
        return (inputs[0].flatten(0, 1).index_select(0, at)[None], *inputs[1:])  # (1, K, D)

    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    hook = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()


Batch = tuple[Tensor, Tensor, Tensor, Any, AbstractContextManager[None]]
"""Ids and positions (B, L), where each tree begins, masks, and how the layers attend."""


def _filled(model: PreTrainedModel, rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    width = -(-max(map(len, rows)) // 8) * 8  # few shapes: kernels are cached
    embedding: Any = model.get_input_embeddings()
    filled = [list(row) + [fill] * (width - len(row)) for row in rows]
    return torch.tensor(filled, device=embedding.weight.device)


def _padded(
    model: PreTrainedModel, trees: Sequence[Tree], pad: int, _owners: Sequence[int] | None
) -> Batch:
    ids = _filled(model, [tree.ids for tree in trees], pad)
    positions = _filled(model, [tree.positions for tree in trees], 0)
    branch = _filled(model, [tree.branch for tree in trees], PADDING)
    seen = _filled(model, [tree.seen for tree in trees], PADDING + 1)
    starts = torch.arange(len(trees), device=ids.device) * ids.shape[1]
    masks = model_masks(model.config, branch, seen, positions, model.dtype)
    return ids, positions, starts, masks, nullcontext()


def _packed(
    model: PreTrainedModel, trees: Sequence[Tree], pad: int, owners: Sequence[int] | None
) -> Batch:
    whose = owners or [0] * len(trees)
    pairs = groupby(zip(whose, trees, strict=True), key=lambda pair: pair[0])
    rows = [[tree for _, tree in pair] for _, pair in pairs]
    ids = _filled(model, [[i for tree in row for i in tree.ids] for row in rows], pad)
    positions = _filled(model, [[p for tree in row for p in tree.positions] for row in rows], 0)
    starts = flat_positions(rows, ids.shape[1])
    attention = TreeAttention(trees, starts.tolist(), ids.device)
    return ids, positions, starts.to(ids.device), dummy_mask(model), attending(attention)


def _is_worth_packing(model: PreTrainedModel, trees: Sequence[Tree]) -> bool:
    """Whether padding would waste more than laying out attention costs, and nothing forbids it."""
    if any(tree.until for tree in trees) or not is_uneven([len(tree.ids) for tree in trees]):
        return False
    return is_packable(model, max(max(tree.positions) for tree in trees) + 1)


def is_uneven(lengths: Sequence[int]) -> bool:
    """Whether rows of these lengths waste more by padding than laying them end to end costs."""
    return max(lengths) * len(lengths) > WASTE * sum(lengths)


def is_packable(model: nn.Module, longest: int) -> bool:
    """Whether a prepared model attends to all of so many tokens, so that it can be packed."""
    window = window_of(model.config)  # type: ignore[arg-type]
    return bool(getattr(model, PACKS, False)) and (window is None or window >= longest)


def window_of(config: PretrainedConfig) -> int | None:
    """Tokens that the sliding window of a model shows; None where it has none."""
    config = config.get_text_config()
    window: int | None = getattr(config, "sliding_window", None)
    return window if getattr(config, "use_sliding_window", True) else None


PACKS = "_spillover_packs"
"""Attribute of models whose trees may lie end to end."""


@torch.no_grad()
def prepare_model(model: PreTrainedModel, text: Sequence[int]) -> None:
    """Let trees lie end to end where a model computes them then as it does in padded rows.

    Args:
        text: ordinary text of ten tokens or more, on which both are compared.
    """
    half = len(text) // 2
    trees = [grow(text[:half], [text[half:], text[half:-1]]), *[grow(text[:1], [text[1:3]])] * 3]
    reads = all_reads(trees, model.device)
    try:
        setattr(model, PACKS, False)
        before = token_losses(model, trees, reads, 0)
    except (ModelError, TypeError, RuntimeError, ValueError, IndexError):
        return  # the guards say why
    if not prepare(model):
        return
    setattr(model, PACKS, True)
    try:
        after = token_losses(model, trees, reads, 0)
        close = bool((after - before).abs().max() <= tolerance(model))
    except (NotPackedError, TypeError, RuntimeError, ValueError):
        close = False
    if not close:
        setattr(model, PACKS, False)
        model.set_attn_implementation("sdpa")


def tolerance(model: PreTrainedModel) -> float:
    """Nats by which a token may differ between two ways to compute it."""
    return EXACT if model.dtype == torch.float32 else ROUNDED


@torch.no_grad()
def check_branches(
    model: PreTrainedModel, prefix: Sequence[int], branches: Sequence[Sequence[int]], pad: int
) -> None:
    """Make sure that branches of a tree are computed as separate sequences are.

    Args:
        prefix, branches: ordinary text, for rounding is felt where every token is a surprise; the
            branches have one length.

    Raises:
        ModelError: `branches-differ`, for architectures that do not take the masks as they are.
    """
    length = len(branches[0])
    whole = [grow(prefix[:1], [[*prefix[1:], *branch]]) for branch in branches]
    try:
        both, alone = (
            token_losses(model, trees, all_reads(trees, model.device), pad).view(len(branches), -1)[
                :, -length:
            ]
            for trees in ([grow(prefix, branches)], whole)
        )
    except (TypeError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ModelError(
            f"branches-differ: the model does not take tree masks ({reason})"
        ) from None
    difference = float((both - alone).abs().max())
    if not difference <= tolerance(model):
        raise ModelError(
            f"branches-differ: a branch differs by {difference:.2g} nats from the sequence that it "
            f"stands for; models of type {model.config.model_type} cannot be used"
        )
