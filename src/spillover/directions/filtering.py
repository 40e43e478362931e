"""Prompts that a model treats as it should: refused where dangerous, answered where harmless."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spillover.directions.answers import EMPTY, REFUSED, kind_of, refusal_tokens, respond
from spillover.directions.evaluate import TOGETHER
from spillover.directions.passes import Passes
from spillover.directions.select import refusal_scores
from spillover.errors import DirectionError

if TYPE_CHECKING:
    from spillover.directions.prompts import Material
    from spillover.models import LoadedModel
    from spillover.rows import Conversation

FEWEST = 4
"""Prompts of a side that must be left to compute from, and to choose with, where there are more."""
SIDES = ("dangerous", "harmless")
PURPOSES = {"train": "to compute from", "held": "to choose with"}
"""What the parts of the prompts are for."""


@dataclass(frozen=True)
class Answered:
    """A model's answers to the prompts that directions are computed from.

    Attributes:
        texts: to dangerous and to harmless ones.
        phrases: that refusals hold.
    """

    texts: tuple[list[str], list[str]] = field(repr=False)
    phrases: Sequence[str] = field(repr=False)

    @staticmethod
    def of(
        model: LoadedModel, material: Material, phrases: Sequence[str], max_tokens: int
    ) -> Answered:
        """Ask the model."""
        dangerous, harmless = material.train
        said = [one.text for one in respond(model, [*dangerous, *harmless], max_tokens)]
        return Answered((said[: len(dangerous)], said[len(dangerous) :]), phrases)

    @property
    def refused(self) -> list[list[bool]]:
        """Whether each answer is a refusal by its words."""
        return [[kind_of(one, self.phrases) == REFUSED for one in side] for side in self.texts]

    @property
    def counts(self) -> dict[str, Any]:
        """Rates of refusal, and how many answers are empty."""
        rates = [sum(side) / len(side) for side in self.refused]
        empty = sum(kind_of(one, ()) == EMPTY for side in self.texts for one in side)
        return {
            "refused_dangerous": rates[0],
            "refused_harmless": rates[1],
            "empty_answers": empty,
        }


def first_tokens(model: LoadedModel, texts: Sequence[str]) -> list[int]:
    """The tokens that some texts begin with.

    Raises:
        DirectionError: for a text without tokens.
    """
    ids = {text: model.tokenizer.encode(text, add_special_tokens=False) for text in texts}
    empty = [text for text, found in ids.items() if not found]
    if empty:
        raise DirectionError(f"--token {empty[0]!r}: is no token; expected how refusals begin")
    return sorted({found[0] for found in ids.values()})


def own_tokens(model: LoadedModel, answered: Answered, *, needed: bool) -> list[int]:
    """The tokens that the model's own refusals begin with.

    Args:
        needed: whether there must be some, or only a model that refuses.

    Raises:
        DirectionError: as `refusal_tokens`.
    """
    try:
        return refusal_tokens(model, answered.texts, answered.phrases)
    except DirectionError:
        if needed or not any(answered.refused[0]):
            raise
        return []


@dataclass(frozen=True)
class Filtered:
    """Prompts that are left, dangerous first.

    Attributes:
        train: that directions are computed from.
        held: that they are chosen with.
        counts: how many are left of how many, by part and side.
    """

    train: tuple[list[Conversation], list[Conversation]] = field(repr=False)
    held: tuple[list[Conversation], list[Conversation]] = field(repr=False)
    counts: dict[str, Any]


def keep_treated(
    model: LoadedModel, material: Material, tokens: Sequence[int], answered: Answered
) -> Filtered:
    """Leave out dangerous prompts that are not refused, and harmless ones that are.

    Refused are those with a refusal score above 0. Without tokens, prompts to compute from go by
    the phrases of their answers, and those to choose with all stay.

    Raises:
        DirectionError: when too few are left of a side.
    """
    counts: dict[str, Any] = {}
    parts = []
    for part, sides in (("train", material.train), ("held", material.held)):
        left: list[list[Conversation]] = []
        for number, (name, side) in enumerate(zip(SIDES, sides, strict=True)):
            wanted = name == SIDES[0]
            if tokens:
                refused = [score > 0 for score in _scores(model, side, tokens)]
            else:
                refused = answered.refused[number] if part == "train" else [wanted] * len(side)
            some = [
                one for one, is_refused in zip(side, refused, strict=True) if is_refused == wanted
            ]
            counts[f"{part}, {name}"] = {"kept": len(some), "of": len(side)}
            if len(some) < min(FEWEST, len(side)):
                raise DirectionError(_too_few(model, f"{name} prompts {PURPOSES[part]}", refused))
            left.append(some)
        parts.append((left[0], left[1]))
    return Filtered(parts[0], parts[1], counts)


def _scores(
    model: LoadedModel, prompts: Sequence[Conversation], tokens: Sequence[int]
) -> list[float]:
    """The refusal score (log-odds, nats) of each prompt."""
    ids = [model.chat.prompt_ids(prompt) for prompt in prompts]
    found: list[float] = []
    for at in range(0, len(ids), TOGETHER):
        logits, _ = Passes(model, ids[at : at + TOGETHER]).base([])
        found += refusal_scores(logits[0], tokens).tolist()
    return found


def _too_few(model: LoadedModel, prompts: str, refused: Sequence[bool]) -> str:
    count, least = len(refused), min(FEWEST, len(refused))
    more = "more" if prompts.startswith(SIDES[0]) else "fewer"
    return (
        f"{model.source.name} refuses {sum(refused)} of {count} {prompts} "
        f"({sum(refused) / count:.2f}); expected {more}, so that at least {least} of these are "
        "left; give prompts that it treats more differently"
    )
