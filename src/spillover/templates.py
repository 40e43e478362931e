"""What a chat template does by itself: dates and system prompts, reasoning, where a turn begins.

Nothing here knows a model by name; everything is found by rendering marked conversations.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from spillover.chat import Chat

PINNED = datetime.date(2025, 1, 1)
"""What templates that write today's date are told, so that a run does not depend on its day."""

YEAR = re.compile(r"\b(?:1[5-9]|20)\d\d\b")
ROLES = re.compile(r"\b(?:system|user|assistant|developer|model)\b", re.IGNORECASE)
LEAST = 12
"""Letters and digits from which what a template writes before a question is a prompt."""

THINK_CLOSE = "</think>"
CHANNEL_CLOSE = "<|channel|>final<|message|>"
OPENINGS = re.compile(
    r"<think>|<\|channel\|>analysis<\|message\|>|<\|start\|>assistant|<\|end\|>|<\|return\|>"
)
THOUGHT_TO_ANSWER = {
    THINK_CLOSE: THINK_CLOSE,
    CHANNEL_CLOSE: f"<|end|><|start|>assistant{CHANNEL_CLOSE}",
}


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
        opens_thought: whether the generation prompt itself begins a reasoning part.
    """

    lead: str
    end: str
    opens_thought: bool = False

    @property
    def close(self) -> str | None:
        """What ends reasoning; None for models that do not reason."""
        found = (mark for mark in (THINK_CLOSE, CHANNEL_CLOSE) if mark in self.lead)
        return next(found, None)

    def after_thought(self, thought: str) -> str:
        """Sampled reasoning, closed, up to where the answer begins."""
        assert self.close is not None
        if self.close in thought:
            thought = thought[: thought.index(self.close)]
            closing = self.close
        else:
            closing = THOUGHT_TO_ANSWER[self.close]
        return thought + closing + self.lead.rpartition(self.close)[2]

    def split(self, raw: str, *, thinking: bool) -> tuple[str | None, str]:
        """(reasoning, answer) of a sampled turn; the reasoning is None where there is none.

        Reasoning that was cut off before its end leaves an empty answer.
        """
        if self.close is None or not thinking:
            return None, raw
        thought, closed, answer = raw.partition(self.close)
        if closed:
            return OPENINGS.sub("", thought).strip(), answer
        if self.opens_thought or OPENINGS.search(raw):
            return OPENINGS.sub("", raw).strip(), ""
        return None, raw


def find_injection(chat: Chat) -> Injection | None:
    """What the template puts before a bare question, the user's own system message aside."""
    mark = "spillover-question"

    def before(date: datetime.date) -> str:
        told = chat.pinned(date).render([{"role": "user", "content": mark}], generation_prompt=True)
        return told[: told.index(mark)] if mark in told else ""

    text = before(PINNED)
    for special in chat.special_tokens:
        text = text.replace(special, " ")
    text = " ".join(text.replace(chat.templating.system or "\0", " ").split())
    text = re.sub(rf"^{ROLES.pattern} ", "", text, flags=re.IGNORECASE)
    if len(re.sub(r"\W", "", ROLES.sub("", text))) < LEAST:
        return None
    return Injection(text, before(PINNED) != before(datetime.date(1999, 12, 31)))
