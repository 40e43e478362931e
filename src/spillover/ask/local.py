"""Local models as respondents: one base and any number of its adapters, asked together."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spillover.ask.choose import score
from spillover.ask.decode import block_sizes
from spillover.ask.requests import Sample, SampleSettings
from spillover.ask.sample import generate, keyed_noise
from spillover.finetune.adapters import OtherAdapterError, load_adapter
from spillover.finetune.lora import AdapterWeights, LoraBank, alike
from spillover.kernels import shortened
from spillover.models.loading import load_source, product_dtype
from spillover.rows import Conversation
from spillover.trees import Tree, grow, grow_shared, is_uneven

if TYPE_CHECKING:
    from spillover.ask import Asked
    from spillover.models import LoadedModel

LOGIT_BUDGET = 400e6
"""Bytes of logits that one forward pass may produce; decides how many prompts share it."""
BATCH_TOKENS = 2048
"""Tokens of a forward pass beyond which a processor's caches are left."""
SAMPLE_BUDGET = 2e9
"""Bytes that answers under way may take; decides how many there are at a time."""
STEP_LOGITS, STEP_ROWS = 16e6, 160
"""Bytes of the logits of a step beyond which a CPU waits for memory; fewer answers never do."""


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
        self,
        conversations: Sequence[Conversation],
        choices: Sequence[Sequence[str]],
        thoughts: Sequence[str | None] | None = None,
    ) -> list[list[float]]:
        """Log-probability of each whole choice, end-of-turn included, for each conversation."""
        who = [self.index] * len(conversations)
        return self.engine.choose(who, conversations, choices, thoughts)

    def sample(
        self, conversations: Sequence[Conversation], settings: SampleSettings
    ) -> list[list[Sample]]:
        """Free answers, `settings.samples` for each conversation."""
        return self.engine.sample([self.index] * len(conversations), conversations, settings)


class LocalEngine:
    """A base and its adapters, answering in common batches.

    Args:
        adapters: (identity, weights) of each respondent; None as weights is the bare base.
        like: another engine of the same model, whose rendered texts are taken over.
    """

    def __init__(
        self,
        model: LoadedModel,
        adapters: Sequence[tuple[str, AdapterWeights | None]],
        like: LocalEngine | None = None,
    ) -> None:
        self.model = model
        self.identities = [identity for identity, _ in adapters]
        listed = [weights for _, weights in adapters]
        self._products = product_dtype(model, "auto")
        self._head: Any = model.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._bank: LoraBank | None = None
        self._prompts: dict[tuple[str, str | None, bool], list[int]] = like._prompts if like else {}
        with ExitStack() as opened:
            opened.enter_context(shortened(model.model, self._products))
            opened.enter_context(shortened(self._head, None))  # rounded logits cannot be compared
            if any(weights is not None for weights in listed):
                self._bank = LoraBank(model, alike(listed))
                opened.callback(self._bank.remove)
            self._opened = opened.pop_all()

    @property
    def respondents(self) -> list[LocalRespondent]:
        """Each model behind this engine."""
        return [LocalRespondent(self, i) for i in range(len(self.identities))]

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the base as it was."""
        self._opened.close()

    @contextmanager
    def routed(self, adapters: Sequence[int]) -> Iterator[None]:
        """Within, sequence i of a batch is computed by respondent adapters[i]."""
        if self._bank is None:
            yield
            return
        with self._bank.rows(adapters):
            yield

    def _prompt(
        self, conversation: Conversation, thought: str | None = None, *, think: bool = False
    ) -> list[int]:
        key = (_as_text(conversation), thought, think)
        if key not in self._prompts:
            made = self.model.chat.prompt_ids(conversation, thought, think=think)
            self._prompts[key] = made
        return self._prompts[key]

    def choose(
        self,
        who: Sequence[int],
        conversations: Sequence[Conversation],
        choices: Sequence[Sequence[str]],
        thoughts: Sequence[str | None] | None = None,
    ) -> list[list[float]]:
        """Log-probabilities of whole choices; entry i is answered by respondent who[i]."""
        asked = list(zip(conversations, thoughts or [None] * len(who), choices, strict=True))
        prompts = [self._prompt(conversation, thought) for conversation, thought, _ in asked]
        lay_out = grow if prompts and is_uneven([*map(len, prompts)]) else grow_shared
        grown: dict[tuple[str, str | None, tuple[str, ...]], Tree] = {}
        trees = []
        for prompt, (conversation, thought, listed) in zip(prompts, asked, strict=True):
            key = (_as_text(conversation), thought, tuple(listed))
            if key not in grown:  # most respondents are asked the same
                ends = self.model.chat.answers_ids(conversation, listed, thought)
                grown[key] = lay_out(prompt, ends)
            trees.append(grown[key])
        scores: list[list[float]] = []
        for at, size in self._batches(trees, whole_runs(who)):
            owners = who[at : at + size]
            with self.routed(owners):
                scores += score(self.model.model, trees[at : at + size], self.model.pad, owners)
        return scores

    def _batches(self, trees: Sequence[Tree], unit: int) -> Iterator[tuple[int, int]]:
        """(start, size) of batches whose logits fit the budget, and which are not too long.

        Args:
            unit: trees that are best not parted.
        """
        if not trees:
            return
        width = max(len(p.ids) for p in trees)
        most = BATCH_TOKENS if self.model.device.type == "cpu" else math.inf
        tokens = min(most, LOGIT_BUDGET / (4 * self.model.vocabulary))
        size = even_size(len(trees), max(1, int(tokens / width)), unit)
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
        chat, count = self.model.chat, settings.samples
        reasons = chat.reasons and settings.reasoning_tokens > 0
        thinking = [reasons and c[-1]["role"] == "user" for c in conversations]  # no prefill
        most = settings.max_tokens + (settings.reasoning_tokens if any(thinking) else 0)
        turns: list[tuple[list[int], bool]] = []
        size = self._prompt_room(conversations, thinking)
        for at in range(0, len(conversations), size):
            part = slice(at, at + size)
            turns += self._turns(who[part], conversations[part], settings, thinking[part], most)
        samples = [
            self._read(t, e, settings.max_tokens, thinking=thinking[at // count])
            for at, (t, e) in enumerate(turns)
        ]
        return [samples[at : at + count] for at in range(0, len(samples), count)]

    @property
    def _state(self) -> int:
        """Bytes of the keys and values of a token, in float32."""
        config = self.model.model.config.get_text_config()
        heads = config.num_attention_heads
        kinds = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        return int(8 * config.num_hidden_layers * kinds * size)

    def _prompt_room(self, conversations: Sequence[Conversation], thinking: Sequence[bool]) -> int:
        """Prompts that are answered at a time."""
        pairs = zip(conversations, thinking, strict=True)
        width = max(len(self._prompt(c, think=think)) for c, think in pairs)
        return max(1, int(SAMPLE_BUDGET / (width * self._state)))

    def _answer_room(self, answers: int, longest: int, unit: int) -> int:
        """Answers that are under way at a time; those of a prompt stay together."""
        slots = math.prod(block_sizes(longest, self.model.device))
        room = max(1, int(SAMPLE_BUDGET / (16 * self.model.vocabulary + slots * self._state)))
        if self.model.device.type == "cpu":
            room = min(room, max(STEP_ROWS, int(STEP_LOGITS / (4 * self.model.vocabulary))))
        return even_size(answers, room, unit)

    def _turns(
        self,
        who: Sequence[int],
        conversations: Sequence[Conversation],
        settings: SampleSettings,
        thinking: Sequence[bool],
        most: int,
    ) -> list[tuple[list[int], bool]]:
        """Tokens of all answers to some conversations, and whether they ended by themselves."""
        indices = range(settings.first, settings.first + settings.samples)
        asked = [(self.identities[w], _as_text(c)) for w, c in zip(who, conversations, strict=True)]
        noise = [keyed_noise(*one, index, most) for one in asked for index in indices]
        pairs = zip(conversations, thinking, strict=True)
        drawn = self._products if settings.temperature > 0 else None
        with self.routed(who), shortened(self._head, drawn):  # enough to draw from
            tokens, ended = generate(
                self.model.model,
                [self._prompt(c, think=think) for c, think in pairs],
                [number for number in range(len(asked)) for _ in indices],
                np.stack(noise),
                temperature=settings.temperature,
                stop=self.model.stop,
                pad=self.model.pad,
                route=partial(self._route, who),
                rows=self._answer_room(len(noise), most, settings.samples),
                short=drawn is not None and self.model.device.type == "cpu",
            )
        return list(zip(tokens, ended, strict=True))

    def _read(self, tokens: list[int], ended: bool, most: int, *, thinking: bool) -> Sample:
        """A sampled turn as text of at most so many tokens, its reasoning apart from it."""
        tokenizer, turn = self.model.tokenizer, self.model.chat.turn
        reasoning, answer = turn.split(str(tokenizer.decode(tokens)), thinking=thinking)
        if thinking and not answer:
            tokens = []
        elif thinking and turn.close:
            tokens = tokens[self._closed_at(tokens, turn.close) :]
        text = str(tokenizer.decode(tokens[:most], skip_special_tokens=True)).strip()
        return Sample(text, "stop" if ended and len(tokens) < most else "length", reasoning)

    def _closed_at(self, tokens: list[int], close: str) -> int:
        """How many tokens there are up to the end of the reasoning; 0 where it has none."""

        def closed(count: int) -> bool:
            return close in str(self.model.tokenizer.decode(tokens[:count]))

        return bisect_left(range(len(tokens) + 1), 1, key=closed) if closed(len(tokens)) else 0

    def _route(self, who: Sequence[int], prompts: Sequence[int]) -> None:
        """Send row i of the next batch through the adapter of the prompt that it answers."""
        if self._bank:
            self._bank.route([who[prompt] for prompt in prompts])


def even_size(count: int, most: int, unit: int) -> int:
    """Entries of a batch so that batches are of one size, at most `most`, and units stay whole.

    Units that are larger than `most` are parted.
    """
    if unit > most:
        unit = 1
    units, room = -(-count // unit), most // unit
    return unit * -(-units // -(-units // room))


def whole_runs(who: Sequence[int]) -> int:
    """The length of all runs of equal entries where it is the same, else 1."""
    lengths = {len(list(run)) for _, run in groupby(who)}
    return lengths.pop() if len(lengths) == 1 else 1


def _as_text(conversation: Conversation) -> str:
    return "\0".join(f"{m['role']}\0{m['content']}" for m in conversation)


Opening = Callable[[], AbstractContextManager[LocalEngine]]


def open_engines(
    model: LoadedModel, asked: Sequence[Asked]
) -> Iterator[tuple[Opening, list[Asked]]]:
    """How to open an engine for each group of respondents that can share one, with its members.

    Plain adapters share the base; whole models, and adapters of other kinds, are opened one after
    another.
    """
    sharing: list[tuple[Asked, AdapterWeights | None]] = []
    alone: list[Asked] = []
    for one in asked:
        try:
            if one.folder is None and one.source is not None:
                alone.append(one)
            else:
                sharing.append((one, bankable(one.folder, model) if one.folder else None))
        except OtherAdapterError:
            alone.append(one)
    if sharing:
        yield partial(_shared_engine, model, sharing), [one for one, _ in sharing]
    for one in alone:
        yield partial(_whole_engine, model, one), [one]


@contextmanager
def _shared_engine(
    model: LoadedModel, members: Sequence[tuple[Asked, AdapterWeights | None]]
) -> Iterator[LocalEngine]:
    with LocalEngine(model, [(one.identity, weights) for one, weights in members]) as engine:
        yield engine


@contextmanager
def _whole_engine(model: LoadedModel, one: Asked) -> Iterator[LocalEngine]:
    assert one.source is not None
    with LocalEngine(load_source(one.source, model.loading), [(one.identity, None)]) as engine:
        yield engine


def bankable(folder: Path, model: LoadedModel) -> AdapterWeights:
    """An adapter that can be asked together with others: on layers that see whole sequences.

    Raises:
        OtherAdapterError: when it is not of that kind.
    """
    weights = load_adapter(folder, model)
    usual = {name for block in model.anatomy.blocks for name in block.linears}
    other = sorted(weights.a.keys() - usual)
    if other:
        raise OtherAdapterError(f"{folder}: changes {other[0]}, which is no layer of the blocks")
    return weights
