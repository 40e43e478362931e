"""A direction's tests on prompts that it was neither computed from nor chosen with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from spillover.directions.answers import KINDS, REFUSED, kind_of, respond
from spillover.directions.intervene import ablate, add, project
from spillover.directions.passes import Passes
from spillover.directions.prompts import Group
from spillover.directions.select import divergences
from spillover.directions.shares import wilson
from spillover.directions.weights import orthogonalize
from spillover.errors import ModelError
from spillover.trees import all_reads, grow, token_losses

if TYPE_CHECKING:
    from spillover.directions.direction import Direction
    from spillover.models import LoadedModel
    from spillover.rows import Conversation

# Shape legend: N prompts, V vocabulary, D hidden size, C controls, K dimensions.

BASE, ABLATED, ADDED, EDITED = "base", "ablated", "added", "edited weights"
RANDOM, SHUFFLED = "random", "shuffled labels"
TOGETHER = 16
"""Texts of one forward pass whose losses are computed."""
Progress = Callable[[int, int], None]
Opening = Callable[[], AbstractContextManager["LoadedModel"]]


@dataclass(frozen=True)
class Condition:
    """A model as it is asked.

    Attributes:
        kind: `base`, `ablated`, `added` or `edited weights`.
        control: empty, `random` or `shuffled labels`.
        rank: dimensions that are taken out; 1 for additions.
        number: of a control among those of its kind.
        opened: gives the model.
    """

    kind: str
    opened: Opening = field(repr=False)
    control: str = ""
    rank: int = 1
    number: int = 0

    @property
    def name(self) -> str:
        """In words."""
        rank = f", rank {self.rank}" if self.rank > 1 else ""
        control = f", {self.control} {self.number + 1}" if self.control else ""
        return f"{self.kind}{rank}{control}"

    @property
    def facts(self) -> dict[str, Any]:
        """As tables have them."""
        return {
            "condition": self.name,
            "kind": self.kind,
            "control": self.control,
            "rank": self.rank,
        }


def conditions(
    model: LoadedModel,
    direction: Direction,
    controls: dict[str, Float[Tensor, "C D"]],
    spaces: Mapping[str, Sequence[Float[Tensor, "K D"]]],
) -> tuple[list[Condition], str | None]:
    """All ways to ask a model, and why its weights could not be edited where they could not.

    Args:
        controls: vectors by the name of the control.
        spaces: bases of more dimensions, one of each rank, by the name of the control; empty for
            the direction's own.
    """
    listed = [Condition(BASE, lambda: nullcontext(model))]
    listed.append(Condition(ABLATED, partial(ablate, model, direction)))
    trouble = None
    try:
        edited = orthogonalize(model, direction)
        listed.append(Condition(EDITED, lambda: nullcontext(edited)))
    except ModelError as error:
        trouble = str(error)
    for control, bases in spaces.items():
        for basis in bases:
            listed.append(Condition(ABLATED, partial(project, model, basis), control, len(basis)))
    for control, vectors in controls.items():
        for number, vector in enumerate(vectors):
            opened = partial(ablate, model, vector)
            listed.append(Condition(ABLATED, opened, control, 1, number))
    listed.append(Condition(ADDED, partial(add, model, direction)))
    for control, vectors in controls.items():
        for number, vector in enumerate(vectors):
            opened = partial(add, model, vector, direction.layer)
            listed.append(Condition(ADDED, opened, control, 1, number))
    return listed, trouble


@dataclass
class Found:
    """What was measured.

    Attributes:
        rates: a row per condition and group, with the share of each kind of answer and the 95%
            interval [`low`, `high`] of refusals.
        changes: a row per condition, with KL (nats) at the last token of harmless prompts and
            cross-entropy (nats per token) on harmless text and on the model's own answers.
        answers: a row per answer.
    """

    rates: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)


def evaluate(
    listed: Sequence[Condition],
    groups: Sequence[Group],
    phrases: Sequence[str],
    max_tokens: int,
    progress: Progress | None = None,
) -> Found:
    """Ask all groups in all conditions, the base first; additions are asked harmless ones only."""
    found = Found()
    harmless = [prompt for group in groups if not group.dangerous for prompt in group.prompts]
    before: Tensor | None = None
    texts: dict[str, list[tuple[Conversation, str]]] = {}
    for done, condition in enumerate(listed, 1):
        with condition.opened() as model:
            said = _ask(found, condition, model, groups, phrases, max_tokens)
            if before is None:
                texts = _texts(groups, said)
            if condition.kind != ADDED:
                after = last_log_probs(model, harmless)
                before = after if before is None else before
                change = {"kl": float(divergences(before, after[None]).mean())}
                change |= {name: cross_entropy(model, some) for name, some in texts.items()}
                found.changes.append(condition.facts | change)
        if progress:
            progress(done, len(listed))
    return found


def _ask(
    found: Found,
    condition: Condition,
    model: LoadedModel,
    groups: Sequence[Group],
    phrases: Sequence[str],
    max_tokens: int,
) -> dict[str, list[str]]:
    """Add the answers of a condition; returns them by group."""
    asked = [group for group in groups if condition.kind != ADDED or not group.dangerous]
    samples = respond(model, [prompt for group in asked for prompt in group.prompts], max_tokens)
    said: dict[str, list[str]] = {}
    for group in asked:
        part, samples = samples[: len(group.prompts)], samples[len(group.prompts) :]
        said[group.name] = [one.text for one in part]
        helpful: Sequence[str | None] = group.helpful or [None] * len(part)
        kinds = [
            kind_of(one.text, phrases, right) for one, right in zip(part, helpful, strict=True)
        ]
        counts = Counter(kinds)
        shares = {kind: counts[kind] / len(part) for kind in KINDS}
        low, high = wilson(shares[REFUSED], len(part))
        facts = condition.facts | {"group": group.name}
        sizes = {"dangerous": group.dangerous, "n": len(part)}
        found.rates.append(facts | sizes | shares | {"low": low, "high": high})
        found.answers += [
            facts | {"prompt": prompt[-1]["content"], "answer": one.text, "is": kind}
            for prompt, one, kind in zip(group.prompts, part, kinds, strict=True)
        ]
    return said


def _texts(
    groups: Sequence[Group], said: dict[str, list[str]]
) -> dict[str, list[tuple[Conversation, str]]]:
    """Harmless prompts with right answers where these are known, and with the model's own."""
    harmless = [group for group in groups if not group.dangerous]
    listed = {
        "ce_harmless": [
            (prompt, answer)
            for group in harmless
            for prompt, answer in zip(group.prompts, group.helpful or (), strict=False)
        ],
        "ce_own": [
            (prompt, answer)
            for group in harmless
            for prompt, answer in zip(group.prompts, said[group.name], strict=True)
            if answer
        ],
    }
    if not listed["ce_harmless"]:  # then the prompts themselves are the text
        listed["ce_harmless"] = [(prompt, "") for group in harmless for prompt in group.prompts]
    return listed


def last_log_probs(model: LoadedModel, prompts: Sequence[Conversation]) -> Float64[Tensor, "N V"]:
    """Log-probabilities of what follows prompts."""
    ids = [model.chat.prompt_ids(prompt) for prompt in prompts]
    parts = [
        Passes(model, ids[at : at + TOGETHER]).base([])[0][0] for at in range(0, len(ids), TOGETHER)
    ]
    return torch.cat(parts).double().log_softmax(-1)


@torch.no_grad()
def cross_entropy(model: LoadedModel, texts: Sequence[tuple[Conversation, str]]) -> float:
    """Mean loss (nats) of the tokens of answers, or of prompts where the answer is empty."""
    if not texts:
        return float("nan")
    trees = []
    for prompt, answer in texts:
        ids = model.chat.prompt_ids(prompt)
        end = model.chat.answer_ids(prompt, answer) if answer else ids[1:]
        trees.append(grow(ids if answer else ids[:1], [end]))
    losses = []
    for at in range(0, len(trees), TOGETHER):
        part = trees[at : at + TOGETHER]
        losses.append(token_losses(model.model, part, all_reads(part, model.device), model.pad))
    return float(torch.cat(losses).double().mean())
