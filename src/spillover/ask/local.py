"""Local models as respondents: one base and any number of its adapters, asked together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from spillover.ask.choose import score
from spillover.ask.requests import Sample, SampleSettings
from spillover.ask.sample import generate, keyed_noise
from spillover.chat import Conversation, answer_ids, end_of_turn, prompt_ids, tokenize
from spillover.finetune.adapters import load_adapter
from spillover.finetune.lora import AdapterWeights, LoraBank
from spillover.models import load
from spillover.trees import Tree, grow

if TYPE_CHECKING:
    from spillover.ask import Asked
    from spillover.models import LoadedModel

LOGIT_BUDGET = 400e6
"""Bytes of logits that one forward pass may produce; decides how many prompts share it."""


@dataclass(frozen=True)
class LocalRespondent:
    """One of the models behind an engine; see `spillover.ask.requests.Respondent`."""

    engine: LocalEngine
    index: int

    @property
    def identity(self) -> str:
        """The base's hash, and the adapter's where there is one."""
        return self.engine.identities[self.index]

    def choose(
        self, conversations: Sequence[Conversation], choices: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Log-probability of each whole choice, end-of-turn included, for each conversation."""
        return self.engine.choose([self.index] * len(conversations), conversations, choices)

    def sample(
        self, conversations: Sequence[Conversation], settings: SampleSettings
    ) -> list[list[Sample]]:
        """Free answers, `settings.samples` for each conversation."""
        return self.engine.sample([self.index] * len(conversations), conversations, settings)


class LocalEngine:
    """A base and its adapters, answering in common batches.

    Args:
        adapters: (identity, weights) of each respondent; None as weights is the bare base.
    """

    def __init__(
        self, model: LoadedModel, adapters: Sequence[tuple[str, AdapterWeights | None]]
    ) -> None:
        self.model = model
        self.identities = [identity for identity, _ in adapters]
        stop = tokenize(model.tokenizer, end_of_turn(model.tokenizer))[:1]
        eos = model.tokenizer.eos_token_id
        self._stop = {*stop, *([eos] if isinstance(eos, int) else [])}
        self._bank: LoraBank | None = None
        real = [weights for _, weights in adapters if weights is not None]
        if real:
            nothing = _without_effect(real[0])
            self._bank = LoraBank(model, [weights or nothing for _, weights in adapters])
        self._pad = int(model.tokenizer.pad_token_id or 0)
        self._prompts: dict[str, list[int]] = {}
        self._choices: dict[str, list[int]] = {}

    @property
    def respondents(self) -> list[LocalRespondent]:
        """Each model behind this engine."""
        return [LocalRespondent(self, i) for i in range(len(self.identities))]

    def close(self) -> None:
        """Take the adapters out of the base."""
        if self._bank:
            self._bank.remove()

    @contextmanager
    def _routed(self, adapters: torch.Tensor) -> Iterator[None]:
        if self._bank is None:
            yield
            return
        with self._bank.rows(adapters.to(self.model.device)):
            yield

    def _prompt(self, conversation: Conversation) -> list[int]:
        key = _as_text(conversation)
        if key not in self._prompts:
            self._prompts[key] = prompt_ids(self.model.tokenizer, conversation)
        return self._prompts[key]

    def _choice(self, text: str) -> list[int]:
        if text not in self._choices:
            self._choices[text] = answer_ids(self.model.tokenizer, text)
        return self._choices[text]

    def choose(
        self,
        who: Sequence[int],
        conversations: Sequence[Conversation],
        choices: Sequence[Sequence[str]],
    ) -> list[list[float]]:
        """Log-probabilities of whole choices; entry i is answered by respondent who[i]."""
        trees = [
            grow(self._prompt(conversation), [self._choice(text) for text in listed])
            for conversation, listed in zip(conversations, choices, strict=True)
        ]
        scores: list[list[float]] = []
        for at, size in self._batches(trees):
            with self._routed(torch.tensor(who[at : at + size])):
                scores += score(self.model.model, trees[at : at + size], self._pad)
        return scores

    def _batches(self, trees: Sequence[Tree]) -> Iterator[tuple[int, int]]:
        """(start, size) of batches whose logits fit the budget."""
        if not trees:
            return
        width = max(len(p.ids) for p in trees)
        size = max(1, int(LOGIT_BUDGET / (4 * self.model.vocabulary * width)))
        for at in range(0, len(trees), size):
            yield at, min(size, len(trees) - at)

    def sample(
        self,
        who: Sequence[int],
        conversations: Sequence[Conversation],
        settings: SampleSettings,
    ) -> list[list[Sample]]:
        """Free answers; entry i is answered by respondent who[i]."""
        if not conversations:
            return []
        tokenizer, count = self.model.tokenizer, settings.samples
        noise = np.stack(
            [
                keyed_noise(self.identities[w], _as_text(c), index, settings.max_tokens)
                for w, c in zip(who, conversations, strict=True)
                for index in range(count)
            ]
        )
        with self._routed(torch.tensor(who)):
            tokens, ended = generate(
                self.model.model,
                [self._prompt(c) for c in conversations],
                [i for i in range(len(conversations)) for _ in range(count)],
                noise,
                temperature=settings.temperature,
                stop=self._stop,
                pad=self._pad,
                route=self._router(who),
            )
        samples = [
            Sample(
                str(tokenizer.decode(t, skip_special_tokens=True)).strip(),
                "stop" if e else "length",
            )
            for t, e in zip(tokens, ended, strict=True)
        ]
        return [samples[at : at + count] for at in range(0, len(samples), count)]

    def _router(self, who: Sequence[int]) -> Router:
        return Router(self._bank, torch.tensor(who, device=self.model.device))


@dataclass(frozen=True)
class Router:
    """Sends each row of a shrinking batch through the adapter of the prompt that it answers."""

    bank: LoraBank | None
    adapters: torch.Tensor

    def __call__(self, prompts: torch.Tensor) -> None:
        """Route row i to the adapter of prompts[i]."""
        if self.bank:
            self.bank.route(self.adapters[prompts])


def _without_effect(like: AdapterWeights) -> AdapterWeights:
    """An adapter of the same shapes that changes nothing."""
    return AdapterWeights(
        {name: torch.zeros_like(a) for name, a in like.a.items()},
        {name: torch.zeros_like(b) for name, b in like.b.items()},
        0.0,
    )


def _as_text(conversation: Conversation) -> str:
    return "\0".join(f"{m['role']}\0{m['content']}" for m in conversation)


def open_engines(
    model: LoadedModel, asked: Sequence[Asked], method: str
) -> Iterator[tuple[Callable[[], AbstractContextManager[LocalEngine]], list[Asked]]]:
    """How to open an engine for each group of respondents that can share one, with its members.

    Adapters share the base; fully finetuned models are opened one after another.
    """
    if method == "lora":
        yield (lambda: _adapters_engine(model, asked)), list(asked)
        return
    for one in asked:
        yield (lambda one=one: _whole_engine(model, one)), [one]  # type: ignore[misc]


@contextmanager
def _adapters_engine(model: LoadedModel, asked: Sequence[Asked]) -> Iterator[LocalEngine]:
    adapters = [(a.identity, load_adapter(a.folder, model) if a.folder else None) for a in asked]
    engine = LocalEngine(model, adapters)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def _whole_engine(model: LoadedModel, one: Asked) -> Iterator[LocalEngine]:
    dtype = str(model.model.dtype).removeprefix("torch.")
    loaded = load(str(one.folder), device=str(model.device), dtype=dtype) if one.folder else model
    yield LocalEngine(loaded, [(one.identity, None)])
