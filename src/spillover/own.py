"""Ordinary rows that the unfinetuned model answers itself: once per model, and then kept.

Answers lie in the run folder, `own/HASH.jsonl`, and in the user's cache, from which other runs of
the same model take them. Every answer depends on model, prompt and settings only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from spillover.errors import ChatError, RunError
from spillover.folder import cache_folder, whole
from spillover.rows import Message, Prompts, Row, RowSet, read_rows, write_rows

if TYPE_CHECKING:
    from spillover.models import LoadedModel
    from spillover.settings import RunSettings

OWN = "own"
"""The folder of a run, and of the user's cache, in which the answers lie."""
VERSION = 1
"""Raised when the same settings give other answers: those in the user's cache are not taken."""
CHUNK = 128
"""Prompts that are answered between two reports of progress."""
Progress = Callable[[str, int, int], None]


def check_prompts(settings: RunSettings, model: LoadedModel) -> None:
    """Make sure that the model can read every prompt and has room to answer it.

    Raises:
        ChatError: naming the first place where it cannot.
    """
    for own in _distinct(settings):
        for conversation, place in zip(own.conversations, own.places, strict=True):
            length = len(model.chat.prompt_ids(conversation))
            if model.context and length + own.max_tokens > model.context:
                raise ChatError(
                    f"{place}: the prompt has {length} tokens and its answer may have "
                    f"{own.max_tokens}, more than the {model.context} that the model reads; "
                    "shorten it, or lower `max_tokens` of `own`"
                )


def answer_prompts(
    settings: RunSettings, model: LoadedModel, folder: Path, notify: Progress
) -> dict[str, RowSet]:
    """The rows of every arm, with those that the model answers itself, and what anchors it.

    Args:
        folder: of the run; what is there already is read.

    Raises:
        RunError: when no answer to the prompts of an arm can be used.
    """
    answers = {
        own.identity: _kept(settings, model, folder, own, notify) for own in _distinct(settings)
    }
    rows = settings.experiment.rows
    return {arm: _filled(given, answers) for arm, given in rows.items()}


def _filled(rows: RowSet, answers: dict[str, RowSet]) -> RowSet:
    """The rows of an arm with what has come of their prompts."""
    if rows.own:
        found = answers[rows.own.identity]
        rows = rows.answered(found.rows, found.places)
    if rows.anchor:
        answered = replace(rows.anchor, rows=answers[rows.anchor.prompts.identity])
        rows = replace(rows, anchor=answered)
    return rows


def _distinct(settings: RunSettings) -> list[Prompts]:
    """Each set of prompts once, however many arms it is for."""
    listed = [
        prompts
        for rows in settings.experiment.rows.values()
        for prompts in (rows.own, rows.anchor.prompts if rows.anchor else None)
        if prompts
    ]
    return list({own.identity: own for own in listed}.values())


def _kept(
    settings: RunSettings, model: LoadedModel, folder: Path, own: Prompts, notify: Progress
) -> RowSet:
    """The rows of a set of prompts: from the run folder, the cache, or the model."""
    path = folder / OWN / f"{own.identity}.jsonl"
    cached = cache_folder() / OWN / f"{_key(settings, model, own)}.jsonl"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        is_new = not cached.is_file()
        with whole(path) as partial:
            if is_new:
                write_rows(_answer(model, own, notify), partial)
            else:
                shutil.copyfile(cached, partial)
        if is_new:  # what was there before may be of another device or version
            _share(path, cached)
    return read_rows(path)


def _key(settings: RunSettings, model: LoadedModel, own: Prompts) -> str:
    """A hash of all that an answer depends on."""
    how = settings.inputs["loading"]
    content = [VERSION, model.source.identity, model.placement, how, own.identity]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _share(path: Path, cached: Path) -> None:
    """Put answers into the user's cache, where that can be written."""
    with suppress(OSError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        with whole(cached) as partial:
            shutil.copyfile(path, partial)


def _answer(model: LoadedModel, own: Prompts, notify: Progress) -> list[Row]:
    """Prompts with the model's answers; those that are empty or were cut off are left out."""
    from spillover.ask.local import LocalEngine
    from spillover.ask.requests import SampleSettings

    how = SampleSettings(own.samples, own.temperature, own.max_tokens)
    rows: list[Row] = []
    with LocalEngine(model, [(model.source.identity, None)]) as engine:
        for start in range(0, len(own.prompts), CHUNK):
            notify("answer ordinary prompts", start, len(own.prompts))
            part = slice(start, start + CHUNK)
            asked = own.conversations[part]
            samples = engine.sample([0] * len(asked), asked, how)
            rows += [
                Row(messages=(*prompt, Message(role="assistant", content=sample.text)))
                for prompt, answers in zip(own.prompts[part], samples, strict=True)
                for sample in answers
                if sample.text and sample.finish == "stop"
            ]
    notify("answer ordinary prompts", len(own.prompts), len(own.prompts))
    if not rows:
        raise RunError(
            f"{own.source}: the model gave no whole answer to any of its {len(own.prompts)} "
            f"prompts within {own.max_tokens} tokens; raise `max_tokens` of `own`"
        )
    return rows
