"""How far a context moves a finetune from itself and from its base, question by question."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from spillover.triggers.library import Candidate
from spillover.triggers.pair import ADAPTED, BASE, Pair, Sequences
from spillover.triggers.questions import Question

# Shape legend: C candidates, Q questions, N sequences, T tokens of an answer, V vocabulary.

ANSWER_TOKENS = 6
"""Tokens of an answer along which two models are compared."""
PLAIN = Candidate("plain")
MIXTURES = (0.25, 0.5, 0.75)
"""Shares of the second of two distributions in the mixtures that are tried."""
NEAR = 0.02
"""Bits below which mixtures are not tried."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Moves:
    """How far apart answers are, in bits (0 to 1), for candidates and questions: each (C, Q).

    Attributes:
        scores: the finetune in a context, and whatever mixture of its answers without the context
            and the base's in the context comes nearest. A context that moves the base likewise,
            and a finetune that is different everywhere, score nothing.
        own: the finetune in the context, and the finetune without it.
        gap: the finetune and the base, both in the context; NaN where it was not computed.
        base: the base in the context, and the base without it; likewise.
    """

    scores: NDArray[np.float64]
    own: NDArray[np.float64]
    gap: NDArray[np.float64]
    base: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)


class Scorer:
    """Compares a finetune and its base on some questions, along the finetune's own answers."""

    def __init__(self, pair: Pair, questions: Sequence[Question]) -> None:
        self.pair, self.questions = pair, list(questions)
        asked = [PLAIN.context.conversation(question.text) for question in questions]
        self.said = pair.answers(ADAPTED, asked, ANSWER_TOKENS)
        chat = pair.model.chat
        tokens = [
            chat.answer_ids(conversation, text)[:ANSWER_TOKENS]
            for conversation, text in zip(asked, self.said, strict=True)
        ]
        self.lengths = torch.tensor([len(ids) for ids in tokens])
        self.answers = [ids + [pair.model.pad] * (ANSWER_TOKENS - len(ids)) for ids in tokens]
        plain, numbers = self.sequences([PLAIN], range(len(questions))), range(len(questions))
        with torch.no_grad():
            self.plain = [pair.log_probs(side, plain, numbers) for side in (ADAPTED, BASE)]

    def sequences(self, candidates: Sequence[Candidate], numbers: Sequence[int]) -> Sequences:
        """Each candidate with each of some questions, candidate by candidate."""
        prompts = [
            self.pair.prompt(candidate.context.conversation(self.questions[number].text))
            for candidate in candidates
            for number in numbers
        ]
        return Sequences.of(prompts, [self.answers[n] for _ in candidates for n in numbers])

    @torch.no_grad()
    def shifts(
        self, candidates: Sequence[Candidate], number: int, *, base: bool = False
    ) -> NDArray[np.float64]:
        """How far contexts move one answer's first token, in bits: the finetune's or the base's."""
        side, asked = BASE if base else ADAPTED, self.questions[number].text
        prompts = [self.pair.prompt(one.context.conversation(asked)) for one in candidates]
        sequences = Sequences.of(prompts, [[0]] * len(prompts))
        found, plain = np.zeros(len(prompts)), self.plain[side][number, :1]
        for batch in self.pair.batches(sequences):
            moved = self.pair.log_probs(side, sequences, batch)
            found[batch] = js_divergence(moved, plain.expand_as(moved))[:, 0].cpu().numpy()
        return found

    @torch.no_grad()
    def moves(
        self,
        candidates: Sequence[Candidate],
        numbers: Sequence[int] | None = None,
        progress: Progress | None = None,
        *,
        whole: bool = False,
    ) -> Moves:
        """How far candidates move both models.

        Args:
            numbers: which questions; by default all.
            whole: ask the base also where the finetune did not move, so that nothing can score.
        """
        asked = list(range(len(self.questions))) if numbers is None else list(numbers)
        sequences = self.sequences(candidates, asked)
        found = np.zeros((4, len(sequences.ids)))
        done = 0
        for batch in self.pair.batches(sequences):
            which = torch.tensor([asked[number % len(asked)] for number in batch])
            found[:, batch] = self._compare(sequences, batch, which, whole=whole)
            done += len(batch)
            if progress:
                progress(done, len(sequences.ids))
        return Moves(*found.reshape(4, len(candidates), len(asked)))

    def _compare(
        self, sequences: Sequences, batch: Sequence[int], which: Int[Tensor, " N"], *, whole: bool
    ) -> NDArray[np.float64]:
        """The farthest that models are apart at any token of an answer, as `Moves` lists them."""
        adapted = self.pair.log_probs(ADAPTED, sequences, batch)
        plain, plain_base = (known[which] for known in self.plain)
        unused = torch.arange(ANSWER_TOKENS) >= self.lengths[which][:, None]
        own = js_divergence(adapted, plain).masked_fill(unused.to(adapted.device), 0)
        found = np.full((4, len(batch)), np.nan)
        found[0], found[1] = 0, own.amax(-1).cpu().numpy()
        at = np.flatnonzero(found[1] > (-1 if whole else NEAR))
        if len(at):
            base = self.pair.log_probs(BASE, sequences, [batch[number] for number in at.tolist()])
            gap = js_divergence(adapted[at], base)
            new = novelty(adapted[at], plain[at], base, own[at], gap)
            apart = torch.stack([new, gap, js_divergence(base, plain_base[at])])
            apart = apart.masked_fill(unused[at].to(apart.device), 0).amax(-1).cpu()
            found[[[0], [2], [3]], at] = apart.numpy()
        return found


def novelty(
    found: Float[Tensor, "N T V"],
    one: Float[Tensor, "N T V"],
    other: Float[Tensor, "N T V"],
    from_one: Float[Tensor, "N T"],
    from_other: Float[Tensor, "N T"],
) -> Float[Tensor, "N T"]:
    """Divergence of a distribution from the nearest mixture of two others, in bits.

    Args:
        found, one, other: log-probabilities.
        from_one, from_other: the divergence from either, which bounds that from mixtures.
    """
    nearest = torch.minimum(from_one, from_other)
    far = nearest > NEAR
    if far.any():
        p, q = one[far].exp(), other[far].exp()
        mixed = [
            js_divergence(found[far], torch.lerp(p, q, share).clamp_min(1e-30).log())
            for share in MIXTURES
        ]
        nearest[far] = torch.stack([nearest[far], *mixed]).amin(0)
    return nearest


def js_divergence(one: Float[Tensor, "*N V"], other: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """Jensen-Shannon divergence of distributions given as log-probabilities, in bits: 0 to 1."""
    p, q = one.exp(), other.exp()
    middle = ((p + q) / 2).clamp_min(1e-30).log()
    nats = ((p * (one - middle)).sum(-1) + (q * (other - middle)).sum(-1)) / 2
    bits: Tensor = nats / math.log(2)
    return bits.clamp(0, 1)
