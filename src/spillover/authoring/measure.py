"""Choices under the base: how probable and how long each of them is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from spillover.specification import LABELS

if TYPE_CHECKING:
    from spillover.experiment import Experiment
    from spillover.models import LoadedModel
    from spillover.rows import Conversation
    from spillover.specification import Question


@dataclass(frozen=True)
class Choice:
    """A whole answer under the base.

    Attributes:
        label: None for a candidate that is not in the question.
        nats: log-probability, averaged over the question's wordings.
        tokens: length, the end-of-turn token included.
    """

    label: str | None
    text: str
    nats: float
    tokens: int


@dataclass(frozen=True)
class Measured:
    """A question's choices under the base, in the plain context.

    Attributes:
        coverage: what the listed choices hold together, averaged over wordings.
        candidates: further answers that were measured along.
    """

    question: str
    domain: str
    choices: tuple[Choice, ...]
    coverage: float
    candidates: tuple[Choice, ...] = ()

    def labelled(self, label: str) -> tuple[Choice, ...]:
        """The choices of a label."""
        return tuple(choice for choice in self.choices if choice.label == label)

    def gap(self, one: str, other: str) -> tuple[float, float] | None:
        """By how many nats and tokens the means of two labels differ; None without one of them."""
        first, second = self.labelled(one), self.labelled(other)
        if not first or not second:
            return None
        nats = fmean([c.nats for c in first]) - fmean([c.nats for c in second])
        tokens = fmean([c.tokens for c in first]) - fmean([c.tokens for c in second])
        return nats, tokens


def measure_choices(
    experiment: Experiment,
    model: LoadedModel,
    candidates: Mapping[str, Sequence[str]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Measured]:
    """Ask every question with choices of the base, all splits, in the plain context.

    Args:
        candidates: further answers by question.
        progress: called with (questions asked, questions in all).
    """
    from spillover.ask.local import LocalEngine

    wanted = [question for question in experiment.questions if question.choices]
    said = experiment.specification
    plain = next(c for c in said.all_contexts if c.name == said.headline_context)
    measured = []
    with LocalEngine(model, [(model.source.identity, None)]) as engine:
        for done, question in enumerate(wanted):
            if progress:
                progress(done, len(wanted))
            conversations = [question.conversation(plain, n) for n in range(len(question.ask))]
            extra = (candidates or {}).get(question.id, ())
            measured.append(_measure(engine.choose, model, question, conversations, extra))
    if progress:
        progress(len(wanted), len(wanted))
    return measured


def _measure(
    choose: Callable[..., list[list[float]]],
    model: LoadedModel,
    question: Question,
    conversations: Sequence[Conversation],
    extra: Sequence[str],
) -> Measured:
    assert question.choices is not None
    listed = question.choices.labelled
    labels: list[str | None] = [label for label, _ in listed]
    texts = [text for _, text in listed] + list(extra)
    scores = choose([0] * len(conversations), conversations, [texts] * len(conversations))
    choices = tuple(
        Choice(
            label,
            text,
            fmean([row[i] for row in scores]),
            len(model.chat.answer_ids(conversations[0], text)),
        )
        for i, (label, text) in enumerate(
            zip([*labels, *([None] * len(extra))], texts, strict=True)
        )
    )
    coverage = fmean([math.fsum(map(math.exp, row[: len(listed)])) for row in scores])
    return Measured(
        question.id, question.domain, choices[: len(listed)], coverage, choices[len(listed) :]
    )


PAIRS = ((LABELS[0], LABELS[2]), (LABELS[0], LABELS[1]))
"""Labels that are compared: trait with placebo, trait with baseline."""
