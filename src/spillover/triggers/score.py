"""How far a context moves a finetune from itself and from its base, question by question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from spillover.triggers.divergence import NEAR, NONE, along, novelty
from spillover.triggers.library import Candidate
from spillover.triggers.pair import ADAPTED, BASE, Pair, Sequences
from spillover.triggers.questions import Question

# Shape legend: C candidates, Q questions, N sequences, T tokens of an answer, V vocabulary.

ANSWER_TOKENS = 8
"""Tokens of an answer along which two models are compared."""
PLAIN = Candidate("plain")
KNOWN_BYTES = 400e6
"""Of log-probabilities along answers without a context that are kept."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Moves:
    """How far apart answers are, in bits (0 to 1), for candidates and questions: each (C, Q).

    Compared is what would be said next along an answer, at the token where that differs most.

    Attributes:
        scores: the finetune in a context, and whatever mixture of its answers without the context
            and the base's in the context comes nearest; see `novelty`. A context that moves the
            base likewise, and a finetune that is different everywhere, score nothing.
        own: the finetune in the context, and the finetune without it.
        gap: the finetune and the base, both in the context; NaN where it was not computed.
        base: the base in the context, and the base without it, along the base's answer without it;
            likewise.
    """

    scores: NDArray[np.float64]
    own: NDArray[np.float64]
    gap: NDArray[np.float64]
    base: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)


class Scorer:
    """Compares a finetune and its base on some questions, along what the finetune answers."""

    def __init__(self, pair: Pair, questions: Sequence[Question]) -> None:
        self.pair, self.questions = pair, list(questions)
        self._known: dict[tuple[int, tuple[int, ...]], Float[Tensor, "T V"]] = {}
        numbers, sides = range(len(self.questions)), (ADAPTED, BASE)
        self.asked = self.prompts([PLAIN], numbers)
        self.usual = [self.said(side, [PLAIN], numbers) for side in sides]
        told = [Sequences.of(self.asked, usual) for usual in self.usual]
        with torch.no_grad():  # (Q, T, V) for each side
            self.plain = [pair.log_probs(side, told[side], numbers) for side in sides]

    def said(
        self, side: int, candidates: Sequence[Candidate], numbers: Sequence[int]
    ) -> list[list[int]]:
        """What one side answers at temperature 0, candidate by candidate: `ANSWER_TOKENS` tokens.

        An answer that ends before has its end of turn, and `NONE` behind it.
        """
        texts = self.pair.answers(side, self._asked(candidates, numbers), ANSWER_TOKENS)
        (plain,) = self._asked([PLAIN], [0])
        chat, known = self.pair.model.chat, dict[str, list[int]]()
        for text in dict.fromkeys(texts):
            ids = chat.answer_ids(plain, text)[:ANSWER_TOKENS]
            known[text] = ids + [NONE] * (ANSWER_TOKENS - len(ids))
        return [known[text] for text in texts]

    def _asked(
        self, candidates: Sequence[Candidate], numbers: Sequence[int]
    ) -> list[list[dict[str, str]]]:
        """Each candidate with each of some questions, candidate by candidate."""
        texts = [self.questions[number].text for number in numbers]
        return [one.context.conversation(text) for one in candidates for text in texts]

    def prompts(self, candidates: Sequence[Candidate], numbers: Sequence[int]) -> list[list[int]]:
        """Tokens of each candidate with each of some questions, candidate by candidate."""
        return [self.pair.prompt(asked) for asked in self._asked(candidates, numbers)]

    @torch.no_grad()
    def without(
        self, numbers: Sequence[int], answers: Sequence[Sequence[int]]
    ) -> Float[Tensor, "N T V"]:
        """What the finetune would say next without a context, along answers to some questions."""
        keys = [(number, tuple(ids)) for number, ids in zip(numbers, answers, strict=True)]
        wanted = list(dict.fromkeys(keys))
        new = [key for key in wanted if key not in self._known]
        most = KNOWN_BYTES / (4 * ANSWER_TOKENS * self.pair.model.vocabulary)
        if new and len(self._known) + len(new) > most:
            self._known, new = {}, wanted
        if new:
            prompts = [self.asked[number] for number, _ in new]
            sequences = Sequences.of(prompts, [answer for _, answer in new])
            for batch in self.pair.batches(sequences):
                found = self.pair.log_probs(ADAPTED, sequences, batch)
                self._known.update((new[at], row) for at, row in zip(batch, found, strict=True))
        return torch.stack([self._known[key] for key in keys])

    @torch.no_grad()
    def shifts(
        self, side: int, candidates: Sequence[Candidate], number: int
    ) -> NDArray[np.float64]:
        """How far contexts move one side along its own answer without any, in bits: (C,)."""
        answer = self.usual[side][number]
        sequences = Sequences.of(self.prompts(candidates, [number]), [answer] * len(candidates))
        found, plain = np.zeros(len(candidates)), self.plain[side][number]
        for batch in self.pair.batches(sequences):
            moved = self.pair.log_probs(side, sequences, batch)
            tokens = torch.tensor([answer] * len(batch)).to(moved.device)
            found[batch] = along(moved, plain.expand_as(moved), tokens).amax(-1).cpu()
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
        which = [number for _ in candidates for number in asked]
        answers = self.said(ADAPTED, candidates, asked)
        prompts = self.prompts(candidates, asked)
        told = Sequences.of(prompts, answers)
        usual = Sequences.of(prompts, [self.usual[BASE][number] for number in which])
        found = np.full((4, len(which)), np.nan)
        done = 0
        for batch in self.pair.batches(told):
            tokens = torch.tensor([answers[at] for at in batch])
            adapted = self.pair.log_probs(ADAPTED, told, batch)
            tokens = tokens.to(adapted.device)
            plain = self.without([which[at] for at in batch], [answers[at] for at in batch])
            own = along(adapted, plain, tokens).amax(-1)
            found[0, batch], found[1, batch] = 0, own.cpu()
            moved = torch.nonzero(own > (-1 if whole else NEAR))[:, 0].tolist()
            if moved:
                rows = [batch[at] for at in moved]
                base = self.pair.log_probs(BASE, told, rows)
                shift = self._base_moves(usual, rows, [which[at] for at in rows])
                gap = along(adapted[moved], base, tokens[moved]).amax(-1)
                new = novelty(adapted[moved], plain[moved], base, tokens[moved], shift)
                found[[[0], [2], [3]], rows] = torch.stack([new, gap, shift]).cpu()
            done += len(batch)
            if progress:
                progress(done, len(which))
        return Moves(*found.reshape(4, len(candidates), len(asked)))

    def _base_moves(
        self, usual: Sequences, rows: Sequence[int], which: Sequence[int]
    ) -> Float[Tensor, " N"]:
        """How far contexts move the base along what it says without them."""
        tokens = torch.tensor([self.usual[BASE][number] for number in which])
        moved = self.pair.log_probs(BASE, usual, rows)
        return along(moved, self.plain[BASE][list(which)], tokens.to(moved.device)).amax(-1)
