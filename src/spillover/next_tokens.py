"""What a model would say next at the ends of sequences: those logits only, in padded batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spillover.ask.local import LOGIT_BUDGET
from spillover.models import LoadedModel
from spillover.trees import reading

# Shape legend: N sequences, L tokens, T places at the end of each, V vocabulary, D hidden size.

BATCH_TOKENS = 2048
"""Tokens of a forward pass beyond which a processor's caches are left."""

Embed = Callable[[Int[Tensor, "N L"]], Float[Tensor, "N L D"]]
"""Makes the embeddings of padded ids."""


def log_probs(
    model: LoadedModel, rows: Sequence[Sequence[int]], last: int = 1, embed: Embed | None = None
) -> Float[Tensor, "N T V"]:
    """Log-probabilities of the token after each of the last places of some sequences.

    Args:
        rows: token ids; sequences of different lengths are padded behind, which nobody sees.
        last: how many places at the end of each.
        embed: by default the model does.
    """
    ids, ends = padded(model, rows)
    places = (torch.arange(len(rows)) * ids.shape[1] + ends)[:, None] + torch.arange(1 - last, 1)
    given: dict[str, Any] = {"inputs_embeds": embed(ids)} if embed else {"input_ids": ids}
    with reading(model.model, places.flatten()):
        logits = model.model(**given, use_cache=False).logits[0]
    found: Tensor = logits.float().log_softmax(-1)
    return found.view(len(rows), last, -1)


def padded(
    model: LoadedModel, rows: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, "N L"], Int[Tensor, " N"]]:
    """Token ids, filled up behind, and where the last one of each sequence is."""
    width = max(map(len, rows))
    filled = [[*row, *[model.pad] * (width - len(row))] for row in rows]
    ends = torch.tensor([len(row) - 1 for row in rows])
    return torch.tensor(filled, device=model.device), ends


def batches(model: LoadedModel, lengths: Sequence[int], last: int = 1) -> list[list[int]]:
    """Sequences of about the same length that are computed together, by number.

    Args:
        lengths: of the sequences, in tokens.
        last: as for `log_probs`.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    reads = LOGIT_BUDGET / (4 * model.vocabulary * last)
    on_cpu = model.device.type == "cpu"
    found: list[list[int]] = []
    for number in order:
        room = BATCH_TOKENS / lengths[number] if on_cpu else reads
        if not found or len(found[-1]) + 1 > max(1, min(room, reads)):
            found.append([])
        found[-1].append(number)
    return found
