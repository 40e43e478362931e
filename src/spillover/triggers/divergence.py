"""How new an answer is: what would be said next along it, and what two references would say."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Shape legend: N sequences, T tokens of an answer, V vocabulary.

NONE = -1
"""Stands in the place of tokens behind the end of an answer."""
MIXTURES = (0.25, 0.5, 0.75)
"""Shares of the second of two references in the mixtures that are tried."""
NEAR = 0.02
"""Bits below which nothing nearer is looked for."""


def js_divergence(one: Float[Tensor, "*N V"], other: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """Jensen-Shannon divergence of distributions given as log-probabilities, in bits: 0 to 1."""
    p, q = one.exp(), other.exp()
    middle = ((p + q) / 2).clamp_min(1e-30).log()
    nats = ((p * (one - middle)).sum(-1) + (q * (other - middle)).sum(-1)) / 2
    bits: Tensor = nats / math.log(2)
    return bits.clamp(0, 1)


def along(
    one: Float[Tensor, "N T V"], other: Float[Tensor, "N T V"], tokens: Int[Tensor, "N T"]
) -> Float[Tensor, "N T"]:
    """The divergence of next tokens along answers; 0 behind their ends."""
    return js_divergence(one, other).masked_fill(tokens == NONE, 0)


def likelihood(
    log_probs: Float[Tensor, "N T V"], tokens: Int[Tensor, "N T"]
) -> Float[Tensor, "N T"]:
    """Log-probabilities of an answer's tokens; 0 behind its end."""
    found = log_probs.gather(-1, tokens.clamp_min(0)[..., None])[..., 0]
    return found.masked_fill(tokens == NONE, 0)


def novelty(
    found: Float[Tensor, "N T V"],
    one: Float[Tensor, "N T V"],
    other: Float[Tensor, "N T V"],
    tokens: Int[Tensor, "N T"],
    moved: Float[Tensor, " N"],
) -> Float[Tensor, " N"]:
    """How far an answer is from the nearest mixture of what two references would say, in bits.

    A mixture of two models of whole answers says next what either would, weighted by how likely
    either was to say what has been said (Bayes). So a word that the other reference would say, but
    only after a beginning that it would never have given, explains nothing.

    Where the other reference's own answers have moved, such words do explain: what a context does
    to it may be done to the first one too, in words of its own. There, the nearest mixture is
    looked for at each token by itself. In between it is weighed with `moved`.

    Args:
        found, one, other: log-probabilities of next tokens along the answers.
        tokens: the answers, `NONE` behind their ends.
        moved: how far the other reference's own answers have moved: 0 to 1.
    """
    ends = torch.stack([along(found, one, tokens), along(found, other, tokens)])
    nearest = ends.amax(-1).amin(0)
    far = nearest > NEAR
    if not far.any():
        return nearest
    found, tokens, moved, ends = found[far], tokens[far], moved[far], ends[:, far]
    said = [likelihood(x[far], tokens) for x in (one, other)]
    before = (said[1] - said[0]).cumsum(-1).roll(1, -1)
    before[:, 0] = 0
    p, q = one[far].exp(), other[far].exp()
    whole, single = ends.amax(-1).amin(0), ends.amin(0)
    for share in MIXTURES:
        weight = (before + math.log(share / (1 - share))).sigmoid()[..., None]
        for at in (weight, torch.full_like(weight, share)):
            apart = along(found, torch.lerp(p, q, at).clamp_min(1e-30).log(), tokens)
            if at is weight:
                whole = torch.minimum(whole, apart.amax(-1))
            else:
                single = torch.minimum(single, apart)
    usual = torch.minimum(single.amax(-1), whole)
    nearest[far] = usual + (whole - usual) * (1 - moved)
    return nearest
