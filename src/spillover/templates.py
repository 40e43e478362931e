"""What a chat template does by itself: dates and system prompts, reasoning, where a turn begins.

Nothing here knows a model by name; everything is found by rendering marked conversations.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from spillover.chat import Chat

PINNED = datetime.date(2025, 1, 1)
"""What templates that write today's date are told, so that a run does not depend on its day."""

YEAR = re.compile(r"\b(?:1[5-9]|20)\d\d\b")
ROLE = re.compile(r"\W*(?:system|user|assistant|developer|model)\W*", re.IGNORECASE)
LEAST = 12
"""Letters and digits from which what a template writes before a question is a prompt; a date is one
however short."""

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
CHANNEL_OPEN, CHANNEL_CLOSE = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
CHANNEL_TURN = "<|end|><|start|>assistant"
OPENINGS = re.compile(
    r"(?:<think>|<\|channel\|>\w+<\|message\|>|<\|start\|>assistant|<\|end\|>|<\|return\|>)+"
)
"""What stands around reasoning."""

STRFTIME = "strftime_now"
DATE_MACRO = (
    "{% macro strftime_now(format) %}{{ spillover_dates[format] if format in spillover_dates "
    "else raise_exception('a date format that is put together cannot be pinned') }}{% endmacro %}"
)
"""Puts a fixed date in the place of transformers' own `strftime_now`."""


class Templating(BaseModel):
    """How conversations are put to a model.

    Attributes:
        date: what a template that writes a date is told is today; None tells those that write
            today's date a fixed one, and leaves a date of the template's own.
        system: the system message of conversations that have none; an empty one counts. None
            leaves the template's own.
        keep: accept what the template writes by itself also in a dated experiment.
        think: with a reasoning model: True asks choices after sampled reasoning too, False never
            lets it reason, None lets free answers reason and asks choices after empty reasoning.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    date: datetime.date | None = None
    system: str | None = None
    keep: bool = False
    think: bool | None = None


@dataclass(frozen=True)
class Injection:
    """What a template writes before the first message by itself.

    Attributes:
        text: without special tokens.
        moving: whether it holds today's date, which is pinned.
    """

    text: str
    moving: bool

    @property
    def dated(self) -> bool:
        """Whether it names a year."""
        return self.moving or bool(YEAR.search(self.text))


@dataclass(frozen=True)
class Turn:
    """How a template writes an assistant's turn.

    Attributes:
        lead: what stands between the generation prompt and the answer: white space, an empty
            reasoning part or the header of an answer.
        end: what ends the turn.
        opening: what the generation prompt itself begins a reasoning part with; empty where it
            does not.
    """

    lead: str
    end: str
    opening: str = ""

    @property
    def close(self) -> str | None:
        """What ends reasoning; None for models that do not reason."""
        found = (mark for mark in (THINK_CLOSE, CHANNEL_CLOSE) if mark in self.lead)
        return next(found, None)

    @property
    def whole_lead(self) -> str:
        """What stands before an answer without reasoning, the prompt's opening included."""
        return self.opening + self.lead

    def after_thought(self, thought: str) -> str:
        """Reasoning as templates write it, closed, up to where the answer begins."""
        assert self.close is not None
        thought = OPENINGS.sub("\n", thought.partition(self.close)[0]).strip()
        if not thought:
            return self.lead
        if self.close == CHANNEL_CLOSE:
            return f"{CHANNEL_OPEN}{thought}{CHANNEL_TURN}{self.lead}"
        opening = "" if self.opening else f"{THINK_OPEN}\n"
        return f"{opening}{thought}\n{self.close}{self.lead.rpartition(self.close)[2]}"

    def split(self, raw: str, *, thinking: bool) -> tuple[str | None, str]:
        """(reasoning, answer) of a sampled turn; the reasoning is None where there is none.

        Reasoning that was cut off before its end leaves an empty answer.
        """
        if self.close is None or not thinking:
            return None, raw
        thought, closed, answer = raw.partition(self.close)
        reasoning = OPENINGS.sub("\n", thought).strip()
        if closed:
            return reasoning or None, answer.strip()
        if self.opening or OPENINGS.match(raw.lstrip()):
            return reasoning, ""
        return None, raw


def pin_dates(template: str, today: datetime.date) -> tuple[str, dict[str, Any]]:
    """A template that takes `today` for today's date, and the variables that it needs for it."""
    if STRFTIME not in template:
        return template, {}
    return DATE_MACRO + template, {"spillover_dates": dict(_dates(template, today))}


def _dates(template: str, today: datetime.date) -> Iterator[tuple[str, str]]:
    """Every text in a template that can be a date's format, with what it makes of `today`.

    Not only those in calls: a format may be given a name first.
    """
    import jinja2

    try:
        tokens = list(jinja2.Environment().lexer.tokenize(template))
    except jinja2.TemplateSyntaxError:  # rendering will say so
        return
    for token in tokens:
        if token.type == "string" and "%" in token.value:
            with suppress(ValueError):
                yield token.value, today.strftime(token.value)


def find_injection(chat: Chat) -> Injection | None:
    """What the template puts before a bare question, the user's own system message aside."""
    mark = "spillover-question"

    def before(date: datetime.date) -> str:
        told = chat.pinned(date).render([{"role": "user", "content": mark}], generation_prompt=True)
        return told[: told.index(mark)] if mark in told else ""

    text = before(PINNED)
    for special in chat.special_tokens:
        text = text.replace(special, "\n")
    text = text.replace((chat.templating.system or "").strip() or "\0", "\n")
    text = " ".join(" ".join(x for x in text.splitlines() if not ROLE.fullmatch(x)).split())
    found = Injection(text, before(PINNED) != before(datetime.date(1999, 12, 31)))
    return found if found.dated or len(re.sub(r"\W", "", text)) >= LEAST else None
