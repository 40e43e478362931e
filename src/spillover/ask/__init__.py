"""Asking: questions × contexts × respondents → answers. What they mean is for the judge.

A plan is a list of fixed chunks, a few questions in one context each, asked of all respondents of
an engine together. A chunk is the unit of resuming, recorded whole or not at all, so that what
stands in a batch never depends on where an earlier run stopped. Where a plan has changed since
(more seeds, more samples, another wording), what is new of a chunk is asked by itself and what is
there stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spillover.ask.requests import Sample, SampleSettings
from spillover.crew import crew_of, share_out
from spillover.failpoints import failpoint
from spillover.store import CHOICE, SHOWN, TEXT, Answer, AnswerStore, answer_key, choice_record

if TYPE_CHECKING:
    from spillover.ask.local import LocalEngine
    from spillover.contexts import Context
    from spillover.experiment import Experiment
    from spillover.models import Source
    from spillover.rows import Conversation
    from spillover.specification import Question, Sampling

__all__ = ["Asked", "ask"]

T = TypeVar("T")

CHOICES, ANSWERS = 48, 768
"""Forced choices, and free answers, from which a chunk is large enough to be computed at once."""


@dataclass(frozen=True)
class Asked:
    """A respondent of a run: which arm, seed and checkpoint it is.

    Attributes:
        folder: its adapter; None for the bare base and for whole models.
        identity: what it is; equal identities give equal answers.
        source: where it is loaded from by itself: a whole model, or a base with a ready adapter.
    """

    arm: str
    seed: int
    step: int
    identity: str
    folder: Path | None
    source: Source | None = None

    @property
    def place(self) -> Path | None:
        """The folder of its own weights; None for the bare base."""
        return self.folder or (self.source.folder if self.source else None)


Case = tuple[int, int, int]
"""A conversation of a chunk: (respondent, number of the question, paraphrase)."""


@dataclass(frozen=True)
class _Chunk:
    """Some questions in one context, asked of some respondents: the unit of resuming."""

    questions: tuple[Question, ...]
    context: Context
    respondents: tuple[int, ...]
    kind: str
    samples: int
    thinking: bool = False

    @property
    def cases(self) -> list[Case]:
        """Every conversation in a fixed order, those of a respondent together."""
        asked = [
            (number, paraphrase)
            for number, question in enumerate(self.questions)
            for paraphrase in range(_wordings(question, self.kind))
        ]
        return [(respondent, *one) for respondent in self.respondents for one in asked]

    def conversation(self, case: Case) -> Conversation:
        """How the question of a case is put."""
        _, number, paraphrase = case
        return self.questions[number].conversation(self.context, paraphrase)


def _wordings(question: Question, kind: str) -> int:
    return 1 if kind == SHOWN else len(question.ask)


def ask(
    experiment: Experiment,
    engine: LocalEngine,
    asked: Sequence[Asked],
    store: AnswerStore,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Ask every question in every context of every respondent, and record the answers.

    Args:
        engine: answers for `asked`, in the same order.
        progress: called with (questions asked, questions in all), those of each context for itself.

    Returns:
        the keys of all answers of this plan, those recorded earlier included.
    """
    settings = experiment.specification.sampling
    thinking = bool(engine.model.chat.reasons and engine.model.chat.templating.think)
    planned: list[str] = []
    parts: list[_Part] = []
    done, chunks = 0, _plan(experiment, asked, thinking=thinking)
    total = sum(len(chunk.questions) for chunk in chunks)
    for chunk in chunks:
        keys = _keys(chunk, asked, settings)
        listed = [key for case in keys for key in case]
        planned += listed
        missing = _missing(chunk, keys, store.recorded(listed))
        parts += missing
        done += 0 if missing else len(chunk.questions)

    def took(number: int, answers: list[Answer]) -> None:
        nonlocal done
        store.add(answers)
        done += len(parts[number].chunk.questions)
        if progress:
            progress(min(done, total), total)
        failpoint("chunk")

    if progress:
        progress(done, total)
    crew = crew_of(engine.model)
    share_out(parts, lambda part: _answers(part, engine, asked, settings), took, crew)
    return planned


def _plan(experiment: Experiment, asked: Sequence[Asked], *, thinking: bool) -> list[_Chunk]:
    """Every chunk; with `thinking`, choices are made after as many sampled reasonings as texts."""
    sampling, chunks = experiment.specification.sampling, []
    shown, headline = _shown(experiment), experiment.specification.headline_context
    for context in experiment.specification.all_contexts:
        answering = tuple(
            i for i, a in enumerate(asked) if context.arms is None or a.arm in context.arms
        )
        listed: dict[str, list[Question]] = {CHOICE: [], TEXT: [], SHOWN: []}
        for question in experiment.questions if answering else ():
            if context.domain not in (None, question.domain):
                continue
            listed[CHOICE if question.choices else TEXT].append(question)
            if context.name == headline and question.id in shown:
                listed[SHOWN].append(question)
        for kind, questions in listed.items():
            samples = sampling.shown if kind == SHOWN else sampling.samples
            count = 1 if kind == CHOICE and not thinking else samples
            for group in _grouped(questions, kind, len(answering) * count):
                thinks = thinking and kind != SHOWN
                chunks.append(_Chunk(group, context, answering, kind, count, thinks))
    return chunks


def _grouped(questions: Sequence[Question], kind: str, times: int) -> list[tuple[Question, ...]]:
    """Questions, each answered so many times in every wording, in groups that fill a batch."""
    sizes = [times * _wordings(question, kind) for question in questions]
    return in_groups(questions, sizes, CHOICES if kind == CHOICE else ANSWERS)


def in_groups(parts: Sequence[T], sizes: Sequence[int], enough: int) -> list[tuple[T, ...]]:
    """Parts in their order, in groups of about one size.

    There is one group, or an even number of them, so that two processes have as much to do; each
    has between one and two times `enough`, where parts are small.
    """
    count = max(1, sum(sizes) // enough)
    count += count % 2 if count > 1 else 0
    share, filled = sum(sizes) / count, 0
    groups: dict[int, list[T]] = {}
    for part, size in zip(parts, sizes, strict=True):
        groups.setdefault(min(count - 1, int((filled + size / 2) / share)), []).append(part)
        filled += size
    return [tuple(group) for group in groups.values()]


def _shown(experiment: Experiment) -> set[str]:
    """The questions with choices that are also answered freely: the first of each topic."""
    sampling = experiment.specification.sampling
    off = [q for q in experiment.questions if q.domain == "off" and q.choices]
    first = {q.topic: q.id for q in reversed(off)}
    ordered = [q.id for q in off if first[q.topic] == q.id]
    return set(ordered[: sampling.shown_questions]) if sampling.shown else set()


def _keys(chunk: _Chunk, asked: Sequence[Asked], settings: Sampling) -> list[list[str]]:
    """The keys of every case's answers, one for each sample."""
    keys = []
    for respondent, number, paraphrase in chunk.cases:
        one, question = asked[respondent], chunk.questions[number]
        place = [one.arm, one.seed, one.step, question.id, paraphrase, chunk.context.name]
        how: list[object] = [place, chunk.kind]
        if question.choices and chunk.kind == CHOICE:
            how.append([list(pair) for pair in question.choices.labelled])
        if chunk.kind != CHOICE or chunk.thinking:
            how += [settings.temperature, _longest(chunk, settings), settings.reasoning_tokens]
        messages = chunk.conversation((respondent, number, paraphrase))
        indices = range(chunk.samples)
        keys.append([answer_key(one.identity, messages, how, index) for index in indices])
    return keys


@dataclass(frozen=True)
class _Part:
    """What is to be asked of a chunk: some of its cases, from some index on.

    Attributes:
        first: index of the first answer to each.
        keys: of every case's answers from there on.
    """

    chunk: _Chunk
    cases: list[Case]
    first: int
    keys: list[list[str]]


def _missing(chunk: _Chunk, keys: Sequence[Sequence[str]], known: set[str]) -> list[_Part]:
    """What is not recorded of a chunk: the whole chunk in one part, or what is new of it."""
    parts: dict[int, _Part] = {}
    for case, listed in zip(chunk.cases, keys, strict=True):
        first = next((n for n, key in enumerate(listed) if key not in known), None)
        if first is not None:
            part = parts.setdefault(first, _Part(chunk, [], first, []))
            part.cases.append(case)
            part.keys.append(list(listed[first:]))
    return list(parts.values())


def _answers(
    part: _Part, engine: LocalEngine, asked: Sequence[Asked], settings: Sampling
) -> list[Answer]:
    """Ask one part of a chunk."""
    chunk = part.chunk
    who = [respondent for respondent, _, _ in part.cases]
    conversations = [chunk.conversation(case) for case in part.cases]
    ask_kind = _choose if chunk.kind == CHOICE else _sample
    contents = ask_kind(part, engine, who, conversations, settings)

    def answer(case: int, number: int, content: dict[str, Any]) -> Answer:
        one, (_, asks, paraphrase) = asked[who[case]], part.cases[case]
        return Answer(
            key=part.keys[case][number],
            respondent=one.identity,
            arm=one.arm,
            seed=one.seed,
            step=one.step,
            question=chunk.questions[asks].id,
            paraphrase=paraphrase,
            context=chunk.context.name,
            index=part.first + number,
            kind=chunk.kind,
            **content,
        )

    return [
        answer(case, number, content)
        for case, listed in enumerate(contents)
        for number, content in enumerate(listed)
    ]


Contents = list[list[dict[str, Any]]]
"""For every case, what each of its answers records."""


def _choose(
    part: _Part,
    engine: LocalEngine,
    who: Sequence[int],
    conversations: Sequence[Conversation],
    settings: Sampling,
) -> Contents:
    """Forced choices: after an empty reasoning, or after each of several sampled ones."""
    chunk = part.chunk
    options = [chunk.questions[number].choices for _, number, _ in part.cases]
    labelled = [choices.labelled if choices else () for choices in options]
    thoughts: list[list[tuple[str | None, str | None]]] = [[(None, None)] for _ in who]
    if chunk.thinking:
        how = replace(_how(part, settings, reasoning=settings.reasoning_tokens), max_tokens=1)
        sampled = engine.sample(who, conversations, how)
        thoughts = [[_thought(sample) for sample in listed] for listed in sampled]
    flat = [(case, *thought) for case, listed in enumerate(thoughts) for thought in listed]
    scores = engine.choose(
        [who[case] for case, _, _ in flat],
        [conversations[case] for case, _, _ in flat],
        [[text for _, text in labelled[case]] for case, _, _ in flat],
        [thought for _, thought, _ in flat],
    )
    contents: Contents = [[] for _ in who]
    for (case, thought, finish), row in zip(flat, scores, strict=True):
        record = choice_record(labelled[case], row)
        said = {"choice_log_probs": record, "reasoning": thought, "finish": finish}
        contents[case].append(said)
    return contents


def _thought(sample: Sample) -> tuple[str, str]:
    """Reasoning to choose after, and whether it ended by itself: an answer begins behind it."""
    return sample.reasoning or "", "stop" if sample.text or sample.finish == "stop" else "length"


def _sample(
    part: _Part,
    engine: LocalEngine,
    who: Sequence[int],
    conversations: Sequence[Conversation],
    settings: Sampling,
) -> Contents:
    """Free answers; a reasoning model reasons first unless it was told not to."""
    silent = engine.model.chat.templating.think is False
    how = _how(part, settings, reasoning=0 if silent else settings.reasoning_tokens)
    return [
        [{"text": s.text, "reasoning": s.reasoning, "finish": s.finish} for s in samples]
        for samples in engine.sample(who, conversations, how)
    ]


def _how(part: _Part, settings: Sampling, *, reasoning: int) -> SampleSettings:
    longest, count = _longest(part.chunk, settings), part.chunk.samples - part.first
    return SampleSettings(count, settings.temperature, longest, reasoning, part.first)


def _longest(chunk: _Chunk, settings: Sampling) -> int:
    return settings.shown_tokens if chunk.kind == SHOWN else settings.max_tokens
