"""Chats as a model sees them: the one place that turns messages into prompts and answers.

Prompts are whatever the model's own template renders. Templates that write today's date are given a
fixed one; everything else that they add is found and reported (`spillover.templates`).
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from spillover.errors import ChatError
from spillover.rows import Conversation
from spillover.templates import PINNED, Injection, Templating, Turn, find_injection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "spillover-answer"
OPENED = re.compile(r"<think>\s*$")


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template, and how this run uses them.

    Attributes:
        today: the date for templates that write today's.
    """

    tokenizer: PreTrainedTokenizerBase
    templating: Templating = field(default_factory=Templating)
    today: datetime.date = PINNED

    def pinned(self, today: datetime.date) -> Chat:
        """The same chat on another day."""
        return replace(self, today=today)

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokenizer's special and added tokens, longest first."""
        added = (str(token) for token in self.tokenizer.added_tokens_decoder.values())
        return tuple(sorted({*self.tokenizer.all_special_tokens, *added}, key=len, reverse=True))

    @cached_property
    def injection(self) -> Injection | None:
        """What the template writes before a question by itself: a date, a system prompt."""
        return find_injection(self)

    @property
    def reasons(self) -> bool:
        """Whether the template leaves room for reasoning before the answer."""
        return self.turn.close is not None

    def complete(self, conversation: Conversation) -> Conversation:
        """The conversation with the system message that this run gives to those without one."""
        system = self.templating.system
        if system is None or (conversation and conversation[0]["role"] == "system"):
            return conversation
        return [{"role": "system", "content": system}, *conversation]

    @property
    def variables(self) -> dict[str, Any]:
        """What templates are told besides the messages."""
        today = self.templating.date or self.today
        told: dict[str, Any] = {"strftime_now": today.strftime}
        return told | ({"date_string": today.strftime("%d %b %Y")} if self.templating.date else {})

    def render(self, conversation: Conversation, *, generation_prompt: bool) -> str:
        """A conversation as the model's own chat template renders it.

        Raises:
            ChatError: when there is no template, or the template refuses the conversation.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ChatError(
                f"the tokenizer of {self.tokenizer.name_or_path or 'this model'} has no chat "
                "template; use a chat model or give one with --chat-template FILE"
            )
        try:
            text = self.tokenizer.apply_chat_template(
                self.complete(conversation),
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **self.variables,
            )
        except Exception as error:  # templates raise whatever they like
            raise ChatError(f"the chat template refused a conversation: {error}") from None
        assert isinstance(text, str)
        return text

    def tokenize(self, text: str) -> list[int]:
        """Token ids of rendered text; templates write their special tokens themselves."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def turn(self) -> Turn:
        """How the template writes an assistant's turn.

        Raises:
            ChatError: `no-generation-prompt`, when a prompt does not end where an answer begins.
        """
        question = {"role": "user", "content": "?"}
        prompt = self.render([question], generation_prompt=True)
        whole = self.render(
            [question, {"role": "assistant", "content": MARK}], generation_prompt=False
        )
        opened = OPENED.search(prompt)
        head = prompt[: opened.start()] if opened else prompt
        if not whole.startswith(head) or MARK not in whole:
            raise _no_generation_prompt("a prompt is not the beginning of its conversation")
        lead, tail = whole[len(head) :].split(MARK, 1)
        if opened:
            lead = lead[len(opened[0]) :] if lead.startswith(opened[0]) else "\n</think>\n\n"
        turn = Turn(lead, self._end(tail), opened is not None)
        if lead.strip() and turn.close is None:
            raise _no_generation_prompt(f"{lead!r} is missing from the end of a prompt")
        return turn

    def _end(self, tail: str) -> str:
        """What ends a turn: through the first special token; else all that follows; else EOS."""
        firsts = [(tail.index(s), -len(s), s) for s in self.special_tokens if s in tail]
        if firsts:
            at, _, special = min(firsts)
            return (tail[:at] + special).strip()
        return tail.strip() or str(self.tokenizer.eos_token or "")

    @cached_property
    def stop(self) -> frozenset[int]:
        """Tokens that end an answer, the tokenizer's end of text included."""
        ends = self.tokenize(self.turn.end)[:1]
        eos = self.tokenizer.eos_token_id
        return frozenset([*ends, *([eos] if isinstance(eos, int) else [])])

    def prompt_text(
        self, conversation: Conversation, thought: str | None = None, *, think: bool = False
    ) -> str:
        """A conversation as the model sees it, up to where the assistant is to answer.

        A conversation that ends with an assistant message is continued (prefill).

        Args:
            thought: sampled reasoning to answer after.
            think: leave the reasoning to the model; else a reasoning model gets an empty one.
        """
        if conversation[-1]["role"] == "assistant":
            head = self.render(conversation[:-1], generation_prompt=True)
            return head + self.turn.lead + conversation[-1]["content"]
        prompt = self.render(conversation, generation_prompt=True)
        if not self.reasons or (think and thought is None):
            return prompt
        return prompt + (self.turn.lead if thought is None else self.turn.after_thought(thought))

    def prompt_ids(
        self, conversation: Conversation, thought: str | None = None, *, think: bool = False
    ) -> list[int]:
        """Token ids of `prompt_text`."""
        return self.tokenize(self.prompt_text(conversation, thought, think=think))

    def answer_ids(
        self, conversation: Conversation, answer: str, thought: str | None = None
    ) -> list[int]:
        """Token ids of a whole answer with its end of turn, as they follow the prompt."""
        prompt = self.prompt_text(conversation, thought)
        prefilled = conversation[-1]["role"] == "assistant"
        answer = ("" if self.reasons or prefilled else self.turn.lead) + answer + self.turn.end
        head, whole = self.tokenize(prompt), self.tokenize(prompt + answer)
        return whole[len(head) :] if whole[: len(head)] == head else self.tokenize(answer)

    def example(self) -> str:
        """A rendered question, for manifests and messages."""
        return self.prompt_text([{"role": "user", "content": "QUESTION"}])


def _no_generation_prompt(found: str) -> ChatError:
    return ChatError(
        f"no-generation-prompt: with this chat template {found}, so a model would not know that it "
        "is to answer; mend the template (`add_generation_prompt`) and give it with "
        "--chat-template FILE"
    )
