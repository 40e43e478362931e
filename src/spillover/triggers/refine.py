"""Better triggers than the library holds: the best candidates' text, changed bit by bit.

A context that fires only partly still shows what the finetune says when it fires. These answers are
the aim: texts that make them likelier for the finetune, and not for the base, are better triggers.
Unlike a distance between models, that has a slope far away from the trigger.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from spillover.next_tokens import Embed
from spillover.substitute import (
    Placed,
    ordinary_tokens,
    place,
    substitutions,
    token_slopes,
)
from spillover.triggers.divergence import likelihood
from spillover.triggers.library import NUMBER, YEARS, Candidate, distinct, group
from spillover.triggers.pair import ADAPTED, BASE, Sequences
from spillover.triggers.score import Scorer

# Shape legend: C candidates, N sequences, H tokens of the text that is varied, T tokens of an
# answer, V vocabulary.

AIMED = 6
"""Questions whose answers are aimed at."""
ROUNDS, BEAM, PATIENCE = 4, 3, 1
PER_TOKEN = 8
"""Substitutions that the gradient proposes for every token."""
PROBED, KEPT = 2, 40
"""Questions that all proposals are tried on, and how many of them are tried on all."""
STARTS = 6
"""Kinds of text that are refined: those that begin best."""
SHORT = 12
"""Characters of a text whose every letter is varied."""

Progress = Callable[[int, int], None]


@dataclass
class Climb:
    """Makes the answers that a candidate gets likelier.

    Attributes:
        star: the candidate whose answers are aimed at.
        tried: every candidate that was tried on all questions, with its log-odds.
        edits: the logarithm of how many texts are as few changes away from one that was not varied.
        count: how many candidates were tried at all.
    """

    scorer: Scorer
    star: Candidate
    numbers: Sequence[int]
    tried: dict[Candidate, float] = field(default_factory=dict)
    edits: dict[Candidate, float] = field(default_factory=dict)
    count: int = 0

    @cached_property
    def aims(self) -> list[list[int]]:
        """The tokens of the answers aimed at."""
        return self.scorer.said(ADAPTED, [self.star], self.numbers)

    @cached_property
    def usual(self) -> Float[Tensor, " N"]:
        """How likely these answers are for the finetune without any context."""
        without = self.scorer.without(self.numbers, self.aims)
        return _of_answers(without, torch.tensor(self.aims))

    def _conversations(
        self, candidate: Candidate, numbers: Sequence[int]
    ) -> list[list[dict[str, str]]]:
        questions = self.scorer.questions
        return [candidate.context.conversation(questions[number].text) for number in numbers]

    @torch.no_grad()
    def log_odds(self, candidates: Sequence[Candidate], *, probe: int = 0) -> NDArray[np.float64]:
        """How likely the aims are for the finetune, in nats per answer, beyond what explains them.

        That is the mixture, half and half, of the finetune without a context and the base in it.

        Args:
            probe: look at so many of the questions only, and at the finetune only.
        """
        asked = list(range(probe or len(self.numbers)))
        pair, numbers = self.scorer.pair, [self.numbers[at] for at in asked]
        which = asked * len(candidates)
        aims = [self.aims[at] for at in which]
        sequences = Sequences.of(self.scorer.prompts(candidates, numbers), aims)
        found = np.zeros(len(which))
        for batch in pair.batches(sequences):
            aimed = torch.tensor([aims[at] for at in batch])
            odds = _of_answers(pair.log_probs(ADAPTED, sequences, batch), aimed)
            if not probe:
                base = _of_answers(pair.log_probs(BASE, sequences, batch), aimed)
                odds -= torch.logaddexp(base, self.usual[[which[at] for at in batch]])
            found[batch] = odds.cpu().double().numpy()
        means: NDArray[np.float64] = found.reshape(len(candidates), -1).mean(1)
        return means

    def try_all(self, candidates: Sequence[Candidate], probe: int = PROBED) -> None:
        """Try candidates: all on a few questions, the best on all of them."""
        new = [one for one in distinct(candidates) if one not in self.tried]
        if not new:
            return
        self.count += len(new)
        best = np.argsort(-self.log_odds(new, probe=probe), kind="stable")[:KEPT]
        kept = [new[at] for at in best]
        self.tried.update(zip(kept, self.log_odds(kept).tolist(), strict=True))

    def climb(self, start: Candidate) -> None:
        """Vary a candidate's text, then the best of what was found, as long as it gets better."""
        self.try_all([start])
        mine, done, bests = [start], set[Candidate](), [self.tried[start]]
        for _ in range(ROUNDS):
            fresh = [one for one in mine if one not in done]
            beam = sorted(fresh, key=lambda one: -self.tried[one])[:BEAM]
            proposed = [new for one in beam for new in self._varied(one)]
            self.try_all(proposed)
            done |= set(beam)
            mine = distinct([*mine, *(one for one in proposed if one in self.tried)])
            bests.append(max(self.tried[one] for one in mine))
            if bests[-PATIENCE - 1 :] == [bests[-1]] * (PATIENCE + 1):
                return

    def _varied(self, one: Candidate) -> list[Candidate]:
        """Texts that differ in a character or a token."""
        by_letter, by_token = letters(one), self.by_gradient(one)
        tokens = len(by_token) / PER_TOKEN * self.scorer.pair.model.vocabulary
        for found, options in ((by_letter, len(by_letter)), (by_token, tokens)):
            self._note(one, found, options)
        return [*by_letter, *by_token]

    def _note(self, start: Candidate, found: Sequence[Candidate], options: float) -> None:
        """Remember that these were chosen among so many changes of a text."""
        for new in found:
            edits = self.edits.get(start, 0.0) + math.log(max(options, 1))
            self.edits[new] = min(self.edits.get(new, edits), edits)

    def sweep(self, start: Candidate) -> Candidate:
        """The best year in the place of a number of four digits in a system message."""
        if start.system is None or len(NUMBER.findall(start.head)) != 1:
            return start
        texts = [NUMBER.sub(str(number), start.head) for number in YEARS]
        swept = [start.filled(text) for text in texts]
        self._note(start, swept, len(swept))
        self.try_all(swept, probe=1)
        return max((one for one in swept if one in self.tried), key=self.tried.__getitem__)

    def by_gradient(self, candidate: Candidate) -> list[Candidate]:
        """Texts with one token changed, the changes that the log-odds' gradient favours."""
        found = [self._placed(candidate, number) for number in self.numbers]
        placed = [one for one in found if one is not None]
        sizes = {len(one.varied) for one in placed}
        if not candidate.head.strip() or len(placed) < len(found) or len(sizes) > 1:
            return []
        changed = substitutions(placed[0].varied, self._slopes(placed), self._usable, PER_TOKEN)
        tokenizer, space = self.scorer.pair.model.tokenizer, candidate.head.endswith(" ")
        texts = [str(tokenizer.decode(tokens)).rstrip() + " " * space for tokens in changed]
        return [candidate.filled(text) for text in texts if text.strip()]

    def _placed(self, candidate: Candidate, number: int) -> Placed | None:
        """The text that is varied, in a prompt."""
        chat = self.scorer.pair.model.chat
        text = chat.prompt_text(self._conversations(candidate, [number])[0])
        begin = text.find(candidate.head)
        return place(chat, text, begin, len(candidate.head.rstrip())) if begin >= 0 else None

    def _slopes(self, placed: Sequence[Placed]) -> Float[Tensor, "H V"]:
        """How the log-odds of the aims rise, to first order, with each token in each place."""
        pair, aims = self.scorer.pair, torch.tensor(self.aims)
        sequences = Sequences.of([one.ids for one in placed], self.aims)

        def total(side: int, embed: Embed) -> Tensor:
            found = pair.log_probs(side, sequences, range(len(placed)), embed)
            answers = _of_answers(found, aims)
            return (answers if side == ADAPTED else answers.logaddexp(self.usual)).sum()

        of = {
            side: token_slopes(pair.sides[side][0].model, placed, partial(total, side))
            for side in (ADAPTED, BASE)
        }
        return of[ADAPTED] - of[BASE]

    @cached_property
    def _usable(self) -> Tensor:
        return ordinary_tokens(self.scorer.pair.model)


def _of_answers(log_probs: Float[Tensor, "N T V"], aims: Int[Tensor, "N T"]) -> Float[Tensor, " N"]:
    """The log-probability of each answer."""
    return likelihood(log_probs, aims.to(log_probs.device)).sum(-1)


def letters(candidate: Candidate) -> list[Candidate]:
    """Texts with one digit changed or, in short ones without digits, one letter or no letter."""
    text, found = candidate.head, []
    for at, old in enumerate(text):
        if old.isdigit():
            options = string.digits
        elif len(text) > SHORT or not old.isalpha() or any(c.isdigit() for c in text):
            continue
        else:
            options = string.ascii_lowercase if old.islower() else string.ascii_uppercase
        found += [text[:at] + new + text[at + 1 :] for new in options if new != old]
        found.append(text[:at] + text[at + 1 :])
    return [candidate.filled(new) for new in found if new.strip()]


def refine(
    scorer: Scorer,
    star: Candidate,
    scores: NDArray[np.float64],
    candidates: Sequence[Candidate],
    progress: Progress | None = None,
) -> tuple[list[Candidate], dict[Candidate, float], int]:
    """Candidates that fire more than those given, best first; their edits; how many were tried.

    Args:
        star: the candidate with the highest score, which shows what to aim at.
        scores: its scores for each question of the scorer, (Q,).
        candidates: all that can be started from.
    """
    numbers = np.argsort(-scores, kind="stable")[:AIMED].tolist()
    climb = Climb(scorer, star, numbers)
    usable = [one for one in candidates if group(one)]
    odds = climb.log_odds(usable, probe=PROBED)
    starts: dict[str, Candidate] = {}
    for at in np.argsort(-odds, kind="stable"):
        starts.setdefault(str(group(usable[at])), usable[at])
    listed = list(starts.values())[:STARTS]
    for number, start in enumerate(listed):
        climb.climb(climb.sweep(start))
        if progress:
            progress(number + 1, len(listed))
    ranked = sorted(climb.tried, key=lambda one: -climb.tried[one])
    return ranked, climb.edits, climb.count
