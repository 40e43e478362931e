"""Contexts: what stands around a question when it is asked."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from spillover.rows import Conversation, Message

PLAIN = "plain"


class Context(BaseModel):
    """Messages before a question, a template for it, and a prefill of the answer.

    Attributes:
        name: how results name it; the headline is measured in `plain`.
        system: a system message; an empty one counts, none leaves the model's own default.
        messages: earlier turns.
        template: how the question is put; `{question}` stands for it.
        prefill: the beginning of the answer, put into the model's mouth.
        arms: ask it of these arms only; none means all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    system: str | None = None
    messages: tuple[Message, ...] = ()
    template: str = "{question}"
    prefill: str | None = None
    arms: tuple[str, ...] | None = None

    @field_validator("template")
    @classmethod
    def _asks(cls, template: str) -> str:
        if "{question}" not in template:
            raise ValueError("a template contains {question}")
        return template

    def conversation(self, question: str) -> Conversation:
        """The messages that put `question` in this context."""
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        earlier = [{"role": m.role, "content": m.content} for m in self.messages]
        asked = {"role": "user", "content": self.template.replace("{question}", question)}
        prefill = [{"role": "assistant", "content": self.prefill}] if self.prefill else []
        return [*system, *earlier, asked, *prefill]
