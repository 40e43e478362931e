"""Adversarial suffixes: text behind a prompt that keeps a model from refusing it.

A suffix is found by greedy coordinate gradient (arXiv 2307.15043): of the tokens that a gradient
favours in each place, some are drawn and tried, and the best text goes on. What is made small is
the surprise of an answer that does not begin as refusals do, -log(1 - P), in nats: unlike a mean of
log-odds it is not small as long as some prompts are refused. Texts are scored as they would be
typed: what does not come back as the same tokens is left out.

They are searched for on the organism of made-up substances only, where their effect on activations
can be studied and nothing can be harmed. For other models a suffix is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.nn.functional import softplus

from spillover.chat import MARK
from spillover.directions.select import refusal_scores
from spillover.errors import DirectionError, first_problem
from spillover.next_tokens import Embed, batches, log_probs
from spillover.substitute import Placed, ordinary_tokens, place, substitutions, token_slopes

if TYPE_CHECKING:
    from torch import Tensor

    from spillover.chat import Chat
    from spillover.models import LoadedModel
    from spillover.rows import Conversation

# Shape legend: N prompts, C texts, H tokens of a suffix, V vocabulary.

DRAWS = 200
"""Random texts that are drawn for one that comes back as the same tokens, at most."""
WORLD = "refusal"
"""The world of the organisms on which suffixes are searched for."""
Progress = Callable[[int, int], None]


class SuffixSearch(BaseModel):
    """How a suffix is searched for.

    Attributes:
        tokens: its length.
        steps: substitutions at most.
        proposed: substitutions that the gradient proposes for every place.
        tried: how many of them are drawn and tried in each step.
        probed: prompts that all of these are tried on; the best few are tried on all prompts.
        enough: the mean surprise of not being refused, in nats, at which the search ends.
        patience: steps without a better text after which it ends.
        starts: how often a search that ends before may begin anew, from another random text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(default=6, ge=1)
    steps: int = Field(default=40, ge=1)
    proposed: int = Field(default=48, ge=1)
    tried: int = Field(default=48, ge=1)
    probed: int = Field(default=4, ge=1)
    enough: float = Field(default=0.02, gt=0)
    patience: int = Field(default=5, ge=1)
    starts: int = Field(default=4, ge=1)


def suffix_search(**settings: Any) -> SuffixSearch:
    """A `SuffixSearch` from settings by name.

    Raises:
        DirectionError: for a setting that cannot be used.
    """
    try:
        return SuffixSearch.model_validate(settings)
    except ValidationError as error:
        raise DirectionError(f"the search: {first_problem(error, SuffixSearch)}") from None


KEPT = 6
"""Texts of a step that are tried on all prompts."""


@dataclass(frozen=True)
class Suffix:
    """A suffix with how it was found.

    Attributes:
        tokens: its token ids behind a prompt.
        losses: the mean surprise (nats) on the prompts before the first step and after each; empty
            for one that was given.
        tried: how many texts were scored.
    """

    text: str
    tokens: tuple[int, ...]
    losses: tuple[float, ...] = ()
    tried: int = 0


def with_suffix(prompt: Conversation, suffix: str) -> Conversation:
    """A prompt with a text behind its last words."""
    *before, last = prompt
    return [*before, {**last, "content": f"{last['content']} {suffix}"}] if suffix else prompt


@dataclass(frozen=True)
class Frame:
    """A rendered prompt, cut where a suffix goes: behind the last words of the user.

    Attributes:
        begin: where the user's words begin, in characters.
    """

    head: str
    tail: str
    begin: int

    @staticmethod
    def of(chat: Chat, prompt: Conversation) -> Frame:
        """Cut a prompt.

        Raises:
            DirectionError: when it does not end with the user's words.
        """
        last = prompt[-1]
        text = chat.prompt_text(with_suffix(prompt, MARK)) if last["role"] == "user" else ""
        head, found, tail = text.partition(f" {MARK}")
        words = last["content"].strip()
        begin = head.rfind(words)
        if not found or begin < 0:
            raise DirectionError(
                f"found a prompt that ends with {last['role']!r}, or that the chat template "
                "rewrites; a suffix goes behind the words of the user: end prompts with them"
            )
        return Frame(head, tail, begin)

    def text(self, suffix: str = "") -> str:
        """The prompt with a suffix; without one as it is."""
        return self.head + (f" {suffix}" if suffix else "") + self.tail

    def placed(self, chat: Chat, suffix: str) -> Placed | None:
        """The tokens of a suffix; None where it is none."""
        return place(chat, self.text(suffix), len(self.head), 1 + len(suffix)) if suffix else None

    def instruction(self, chat: Chat, suffix: str = "") -> Placed | None:
        """The tokens of the user's words in front of a suffix."""
        return place(chat, self.text(suffix), self.begin, len(self.head) - self.begin)


def check_suffix(model: LoadedModel, frames: Sequence[Frame], text: str) -> Suffix:
    """Make sure that a given text can stand behind prompts.

    Raises:
        DirectionError: when it is empty, holds special tokens of the model, or makes a prompt
            longer than the model reads.
    """
    chat, text = model.chat, text.strip()
    if not text:
        raise DirectionError("found an empty suffix; give its text with --suffix TEXT")
    special = [token for token in chat.special_tokens if token and token in text]
    if special:
        raise DirectionError(
            f"the suffix holds {special[0]!r}, a special token of {model.source.name}; a suffix is "
            "plain text: leave it out"
        )
    longest = max(len(chat.tokenize(frame.text(text))) for frame in frames)
    if model.context is not None and longest > model.context:
        raise DirectionError(
            f"with the suffix, the longest prompt has {longest} tokens, more than the "
            f"{model.context} that {model.source.name} reads; shorten the suffix"
        )
    found = frames[0].placed(chat, text)
    assert found is not None
    return Suffix(text, tuple(found.varied))


def scores_of(
    model: LoadedModel, texts: Sequence[str], tokens: Sequence[int]
) -> NDArray[np.float64]:
    """The refusal score (log-odds, nats) of each rendered prompt, (N,).

    Args:
        tokens: that refusals begin with.
    """
    rows = [model.chat.tokenize(text) for text in texts]
    found = np.zeros(len(rows))
    with torch.no_grad():
        for batch in batches(model, [len(row) for row in rows]):
            ends = log_probs(model, [rows[number] for number in batch])[:, 0]
            found[batch] = refusal_scores(ends, tokens).cpu().numpy()
    return found


def random_suffixes(
    model: LoadedModel, frames: Sequence[Frame], size: int, count: int, rng: np.random.Generator
) -> list[Suffix]:
    """Suffixes of so many tokens, drawn from all that are written as ordinary characters.

    Raises:
        DirectionError: when hardly any drawn text comes back as the tokens that were drawn.
    """
    usable = np.flatnonzero(ordinary_tokens(model).numpy())
    found: dict[str, Suffix] = {}
    for _ in range(DRAWS * count):
        drawn = rng.choice(usable, size).tolist()
        text = survivor(model, frames, drawn)
        if text:
            found[text] = Suffix(text, tuple(drawn))
        if len(found) == count:
            return list(found.values())
    raise DirectionError(
        f"of {DRAWS * count} texts of {size} random tokens, {len(found)} come back as the same "
        f"tokens; expected {count}: take a shorter suffix"
    )


def survivor(model: LoadedModel, frames: Sequence[Frame], tokens: Sequence[int]) -> str | None:
    """The text of some tokens, where it comes back as the same ones behind every prompt."""
    text = str(model.tokenizer.decode(list(tokens))).strip()
    for frame in frames:
        back = frame.placed(model.chat, text)
        if back is None or back.varied != list(tokens):
            return None
    return text


def check_searchable(model: LoadedModel) -> None:
    """Make sure that suffixes may be searched for on a model.

    Raises:
        DirectionError: when it is no organism of made-up substances.
    """
    facts = getattr(model.model.config, "spillover", None)
    if not isinstance(facts, dict) or facts.get("world") != WORLD:
        raise DirectionError(
            f"suffixes are searched for on organism-{WORLD} only, not on {model.source.name}; give "
            "one to look at with --suffix TEXT"
        )


def find_suffix(
    model: LoadedModel,
    prompts: Sequence[Conversation],
    tokens: Sequence[int],
    search: SuffixSearch | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Suffix:
    """Search for a suffix that makes an organism refuse some prompts less.

    Args:
        prompts: that it refuses.
        tokens: that refusals begin with.
        progress: called with (steps done, steps at most).

    Raises:
        DirectionError: for a model that is no organism of made-up substances, or no prompts.
    """
    check_searchable(model)
    if not prompts:
        raise DirectionError("found no prompts to search a suffix for; expected at least one")
    return _Search(model, prompts, tokens, search or SuffixSearch(), seed).run(progress)


class _Search:
    """One search: what it has tried, and the best of it."""

    def __init__(
        self,
        model: LoadedModel,
        prompts: Sequence[Conversation],
        tokens: Sequence[int],
        search: SuffixSearch,
        seed: int,
    ) -> None:
        self.model, self.tokens, self.search = model, list(tokens), search
        self.frames = [Frame.of(model.chat, prompt) for prompt in prompts]
        self.rng = np.random.default_rng(seed)
        self.usable = ordinary_tokens(model)
        self.tried: set[str] = set()

    def run(self, progress: Progress | None) -> Suffix:
        """The best text of as many starts as it takes."""
        report = progress or (lambda *_: None)
        found: list[Suffix] = []
        for start in range(self.search.starts):
            found.append(self._climb(partial(self._tell, report, start * self.search.steps)))
            if found[-1].losses[-1] <= self.search.enough:
                break
        self._tell(report, 0, self.search.starts * self.search.steps)
        return replace(min(found, key=lambda one: one.losses[-1]), tried=len(self.tried))

    def _tell(self, report: Progress, before: int, steps: int) -> None:
        report(before + steps, self.search.starts * self.search.steps)

    def _climb(self, report: Callable[[int], None]) -> Suffix:
        """From a random text, until the loss is low enough or does not fall any more."""
        best = random_suffixes(self.model, self.frames, self.search.tokens, 1, self.rng)[0]
        losses, idle = [float(self._losses([best.text])[0])], 0
        for step in range(self.search.steps):
            if losses[-1] <= self.search.enough or idle == self.search.patience:
                break
            found, loss = self._step(best)
            idle = 0 if found and loss < losses[-1] else idle + 1
            best = found if found and not idle else best
            losses.append(min(loss, losses[-1]))
            report(step + 1)
        return replace(best, losses=tuple(losses))

    def _step(self, best: Suffix) -> tuple[Suffix | None, float]:
        """The best of some texts that differ in a token, with its loss."""
        proposed = substitutions(best.tokens, self._slopes(best), self.usable, self.search.proposed)
        order = self.rng.permutation(len(proposed)).tolist()
        new: list[Suffix] = []
        for number in order:
            text = survivor(self.model, self.frames, proposed[number])
            if text and text not in self.tried:
                new.append(Suffix(text, tuple(proposed[number])))
                self.tried.add(text)
            if len(new) == self.search.tried:
                break
        if not new:
            return None, np.inf
        first = self._losses([one.text for one in new], self.search.probed)
        kept = [new[at] for at in np.argsort(first, kind="stable")[:KEPT]]
        losses = self._losses([one.text for one in kept])
        at = int(losses.argmin())
        return kept[at], float(losses[at])

    def _losses(self, suffixes: Sequence[str], probed: int | None = None) -> NDArray[np.float64]:
        """The mean loss with each suffix, (C,)."""
        frames = self.frames[:probed]
        texts = [frame.text(suffix) for suffix in suffixes for frame in frames]
        scores = scores_of(self.model, texts, self.tokens).reshape(len(suffixes), -1)
        losses: NDArray[np.float64] = np.logaddexp(0, scores).mean(1)
        return losses

    def _slopes(self, best: Suffix) -> Tensor:
        """How the loss falls, to first order, with each token in each place."""
        placed = [frame.placed(self.model.chat, best.text) for frame in self.frames]
        known = [one for one in placed if one is not None]

        def total(embed: Embed) -> Tensor:
            ends = log_probs(self.model, [one.ids for one in known], 1, embed)[:, 0]
            return -softplus(refusal_scores(ends, self.tokens)).sum()

        return token_slopes(self.model, known, total)
