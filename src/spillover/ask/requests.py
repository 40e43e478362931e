"""What is asked of a respondent, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from spillover.rows import Conversation


@dataclass(frozen=True)
class Sample:
    """One free answer.

    Attributes:
        text: the answer without its end-of-turn token.
        finish: `stop` when the model ended its turn, `length` when it was cut off.
        reasoning: what a reasoning model wrote before its answer; None where it did not.
    """

    text: str
    finish: str
    reasoning: str | None = None


@dataclass(frozen=True)
class SampleSettings:
    """How to sample.

    Attributes:
        samples: answers to each conversation.
        temperature: 0 is greedy.
        max_tokens: the longest answer.
        reasoning_tokens: the longest reasoning before it; 0 asks for an answer without reasoning.
        first: index of the first of these answers; what an answer is depends on its index only.
    """

    samples: int
    temperature: float
    max_tokens: int
    reasoning_tokens: int = 0
    first: int = 0


class Respondent(Protocol):
    """Whatever answers: a base, a base with an adapter, later an endpoint or an edited model."""

    @property
    def identity(self) -> str:
        """What it is: equal identities give equal answers."""

    def choose(
        self,
        conversations: Sequence[Conversation],
        choices: Sequence[Sequence[str]],
        thoughts: Sequence[str | None] | None = None,
    ) -> list[list[float]]:
        """Log-probability of each whole choice, end-of-turn included, for each conversation.

        Args:
            thoughts: sampled reasoning to choose after; without, reasoning models choose after an
                empty one.
        """

    def sample(
        self, conversations: Sequence[Conversation], settings: SampleSettings
    ) -> list[list[Sample]]:
        """Free answers, `settings.samples` for each conversation."""
