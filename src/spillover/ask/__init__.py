"""Asking: questions × contexts × respondents → answers. What they mean is for the judge.

A plan is a list of fixed chunks, one for each question and context, asked of all respondents of an
engine together. A chunk is the unit of resuming, so that what stands in a batch never depends on
where an earlier run stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.ask.requests import SampleSettings
from spillover.store import Answer, AnswerStore, answer_key, choice_record

if TYPE_CHECKING:
    from spillover.ask.local import LocalEngine
    from spillover.contexts import Context
    from spillover.experiment import Experiment, Question, Sampling

__all__ = ["Asked", "ask"]


@dataclass(frozen=True)
class Asked:
    """A respondent of a run: which arm, seed and checkpoint it is.

    Attributes:
        folder: its adapter; None for the bare base.
        identity: what it is; equal identities give equal answers.
    """

    arm: str
    seed: int
    step: int
    identity: str
    folder: Path | None


@dataclass(frozen=True)
class _Chunk:
    """One question in one context, asked of some respondents in all paraphrases."""

    question: Question
    context: Context
    respondents: tuple[int, ...]

    @property
    def cases(self) -> list[tuple[int, int]]:
        """(respondent, paraphrase) of every conversation, in a fixed order."""
        return [(r, p) for r in self.respondents for p in range(len(self.question.ask))]


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
        progress: called with (questions asked, questions in all).

    Returns:
        the keys of all answers of this plan, those recorded earlier included.
    """
    chunks, planned = _plan(experiment, asked), []
    for done, chunk in enumerate(chunks):
        if progress:
            progress(done, len(chunks))
        settings = experiment.specification.sampling
        keys = _keys(chunk, asked, settings)
        planned += [key for case in keys for key in case]
        if not store.has_all([key for case in keys for key in case]):
            store.add(_answers(chunk, engine, asked, settings, keys))
    if progress:
        progress(len(chunks), len(chunks))
    return planned


def _plan(experiment: Experiment, asked: Sequence[Asked]) -> list[_Chunk]:
    chunks = []
    for context in experiment.specification.contexts:
        answering = tuple(
            i for i, a in enumerate(asked) if context.arms is None or a.arm in context.arms
        )
        if answering:
            chunks += [_Chunk(q, context, answering) for q in experiment.questions]
    return chunks


def _keys(chunk: _Chunk, asked: Sequence[Asked], settings: Sampling) -> list[list[str]]:
    """The keys of every case's answers: one for a choice, one per sample for a text."""
    question, keys = chunk.question, []
    for respondent, paraphrase in chunk.cases:
        messages = chunk.context.conversation(question.ask[paraphrase])
        one = asked[respondent]
        place = [one.arm, one.seed, one.step, question.id, paraphrase, chunk.context.name]
        if question.choices:
            listed = [list(pair) for pair in question.choices.labelled]
            keys.append([answer_key(one.identity, messages, [place, listed], 0)])
        else:
            how = [place, settings.temperature, settings.max_tokens]
            answers = range(settings.samples)
            keys.append([answer_key(one.identity, messages, how, i) for i in answers])
    return keys


def _answers(
    chunk: _Chunk,
    engine: LocalEngine,
    asked: Sequence[Asked],
    settings: Sampling,
    keys: Sequence[Sequence[str]],
) -> list[Answer]:
    """Ask one chunk."""
    question, context = chunk.question, chunk.context
    who = [respondent for respondent, _ in chunk.cases]
    conversations = [context.conversation(question.ask[p]) for _, p in chunk.cases]

    def answer(case: int, index: int, kind: str, **content: Any) -> Answer:
        one = asked[who[case]]
        return Answer(
            key=keys[case][index],
            respondent=one.identity,
            arm=one.arm,
            seed=one.seed,
            step=one.step,
            question=question.id,
            paraphrase=chunk.cases[case][1],
            context=context.name,
            index=index,
            kind=kind,
            **content,
        )

    if question.choices:
        labelled = question.choices.labelled
        texts = [[text for _, text in labelled]] * len(who)
        scores = engine.choose(who, conversations, texts)
        return [
            answer(case, 0, "choice", choice_log_probs=choice_record(labelled, row))
            for case, row in enumerate(scores)
        ]
    how = SampleSettings(settings.samples, settings.temperature, settings.max_tokens)
    return [
        answer(case, index, "text", text=sample.text, finish=sample.finish)
        for case, samples in enumerate(engine.sample(who, conversations, how))
        for index, sample in enumerate(samples)
    ]
