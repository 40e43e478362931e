"""What is asked of a respondent, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from spillover.chat import Conversation


@dataclass(frozen=True)
class Sample:
    """One free answer.

    Attributes:
        text: the answer without its end-of-turn token.
        finish: `stop` when the model ended its turn, `length` when it was cut off.
    """

    text: str
    finish: str


@dataclass(frozen=True)
class SampleSettings:
    """How to sample: temperature (0 is greedy), most tokens, and how many answers."""

    samples: int
    temperature: float
    max_tokens: int


class Respondent(Protocol):
    """Whatever answers: a base, a base with an adapter, later an endpoint or an edited model."""

    @property
    def identity(self) -> str:
        """What it is: equal identities give equal answers."""

    def choose(
        self, conversations: Sequence[Conversation], choices: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Log-probability of each whole choice, end-of-turn included, for each conversation."""

    def sample(
        self, conversations: Sequence[Conversation], settings: SampleSettings
    ) -> list[list[Sample]]:
        """Free answers, `settings.samples` for each conversation."""
