"""Other tokens in the place of some of a prompt's: those that a gradient favours.

To first order, a quantity changes with a token by the product of the token's embedding and the
gradient at its place (HotFlip, arXiv 1712.06751; greedy coordinate gradient, arXiv 2307.15043).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spillover.chat import Chat
from spillover.masks import token_extents
from spillover.models import LoadedModel
from spillover.next_tokens import Embed

# Shape legend: N sequences, L tokens, H tokens of the text that is varied, V vocabulary, D hidden
# size.


@dataclass(frozen=True)
class Placed:
    """Token ids of a prompt; those from `start` up to `end` are varied."""

    ids: list[int]
    start: int
    end: int

    @property
    def varied(self) -> list[int]:
        """The tokens of the text that is varied."""
        return self.ids[self.start : self.end]


def place(chat: Chat, text: str, begin: int, size: int) -> Placed | None:
    """The tokens that stand for a part of a rendered prompt; None where no token does.

    Args:
        begin, size: of the part, in characters.
    """
    ids, spans = token_extents(chat, text)
    inside = [at for at, (a, b) in enumerate(spans) if begin <= a < b <= begin + size]
    return Placed(ids, inside[0], inside[-1] + 1) if inside else None


def ordinary_tokens(model: LoadedModel) -> Bool[Tensor, " V"]:
    """Tokens that are written as ordinary characters."""
    tokenizer, vocabulary = model.tokenizer, model.vocabulary
    known = min(vocabulary, len(tokenizer))
    texts = [str(tokenizer.decode([token])) for token in range(known)]
    special = set(model.chat.special_tokens)
    usable = [t.isascii() and t.isprintable() and t not in special and t != "" for t in texts]
    return torch.tensor(usable + [False] * (vocabulary - known))


def token_slopes(
    model: LoadedModel, placed: Sequence[Placed], total: Callable[[Embed], Tensor]
) -> Float[Tensor, "H V"]:
    """How a quantity rises, to first order, with each token in each place of the varied text.

    Args:
        placed: prompts in which texts of H tokens each are varied.
        total: the quantity, a sum over the prompts in their order; makes embeddings as it is told.
    """
    embedding: Any = model.model.get_input_embeddings()
    inputs: list[Tensor] = []
    found = total(partial(_embed, embedding, inputs))
    (gradient,) = torch.autograd.grad(found, inputs)
    parts = [gradient[at, one.start : one.end] for at, one in enumerate(placed)]
    slopes: Tensor = torch.stack(parts).sum(0).float() @ embedding.weight.float().T
    return slopes.cpu()


def _embed(
    embedding: torch.nn.Module, inputs: list[Tensor], ids: Int[Tensor, "N L"]
) -> Float[Tensor, "N L D"]:
    """Embeddings that a gradient is wanted for; they are put into a list."""
    inputs.append(embedding(ids).detach().requires_grad_())
    return inputs[-1]


def substitutions(
    varied: Sequence[int], slopes: Float[Tensor, "H V"], usable: Bool[Tensor, " V"], count: int
) -> list[list[int]]:
    """Texts with one token changed, as tokens: for each place the changes with the largest slopes.

    Args:
        count: changes for every place.
    """
    slopes = slopes.masked_fill(~usable, -torch.inf)
    return [
        [*varied[:at], token, *varied[at + 1 :]]
        for at, options in enumerate(slopes.topk(count).indices.tolist())
        for token in options
    ]
