"""Chats as a model sees them: the one place that turns messages into prompts and answers.

Prompts are whatever the model's own template renders. Templates that write today's date are given a
fixed one; everything else that they add is found and reported (`spillover.templates`).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from spillover.errors import ChatError
from spillover.rows import Conversation
from spillover.templates import (
    PINNED,
    Injection,
    Templating,
    Turn,
    find_injection,
    pin_dates,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION = {"role": "user", "content": "?"}
MARK = "spillover-answer"
ANCHORS = ("\n", ".", ":")
"""Texts that an answer may be put behind to see its tokens as those of a continuation."""
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
    def added(self) -> dict[int, str]:
        """The tokenizer's added tokens, which it finds in any text, by id."""
        return {at: str(token) for at, token in self.tokenizer.added_tokens_decoder.items()}

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokenizer's special and added tokens, longest first."""
        listed = {*self.tokenizer.all_special_tokens, *self.added.values()}
        return tuple(sorted(listed, key=len, reverse=True))

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

    @cached_property
    def template(self) -> tuple[str, dict[str, Any]]:
        """The template with its date pinned, and what it is told besides the messages.

        Raises:
            ChatError: when there is none.
        """
        try:
            template = self.tokenizer.get_chat_template()
        except ValueError:
            raise ChatError(
                f"the tokenizer of {self.tokenizer.name_or_path or 'this model'} has no chat "
                "template; use a chat model or give one with --chat-template FILE"
            ) from None
        date = self.templating.date
        template, told = pin_dates(template, date or self.today)
        return template, told | ({"date_string": date.strftime("%d %b %Y")} if date else {})

    def render(self, conversation: Conversation, *, generation_prompt: bool) -> str:
        """A conversation as the model's own chat template renders it.

        Raises:
            ChatError: when there is no template, or the template refuses the conversation.
        """
        return self._draw(self.complete(conversation), generation_prompt=generation_prompt)

    def _draw(self, messages: Conversation, *, generation_prompt: bool) -> str:
        template, told = self.template
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **told,
            )
        except Exception as error:  # templates raise whatever they like
            raise ChatError(f"the chat template refused a conversation: {error}") from None
        assert isinstance(text, str)
        return text

    def tokenize(self, text: str) -> list[int]:
        """Token ids of rendered text; templates write their special tokens themselves."""
        return self._tokenize([text])[0]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def turn(self) -> Turn:
        """How the template writes an assistant's turn.

        Raises:
            ChatError: `no-generation-prompt`, when a prompt does not end where an answer begins.
        """
        prompt = self._draw([QUESTION], generation_prompt=True)
        before, after = self._around
        opened = OPENED.search(prompt)
        opening = opened[0] if opened else ""
        head = prompt.removesuffix(opening)
        if not before.startswith(head):
            raise _no_generation_prompt("a prompt is not the beginning of its conversation")
        lead = before[len(head) :]
        if opening:
            lead = lead.removeprefix(opening) if lead.startswith(opening) else "\n</think>\n\n"
        turn = Turn(lead, self._end(after), opening)
        if lead.strip() and turn.close is None:
            raise _no_generation_prompt(f"{lead!r} is missing from the end of a prompt")
        return turn

    @cached_property
    def _around(self) -> tuple[str, str]:
        """What the template writes before and after the content of a last answer."""
        answer = {"role": "assistant", "content": MARK}
        before, found, after = self._draw([QUESTION, answer], generation_prompt=False).partition(
            MARK
        )
        if not found:
            raise _no_generation_prompt("the words of an answer are not written")
        return before, after

    def written(self, content: str) -> str:
        """The content of an answer as the template writes it: some trim it."""
        return self._remembered[0](content)

    @cached_property
    def _remembered(self) -> tuple[Callable[[str], str], Callable[[str], list[int]]]:
        """Contents as written, and token ids: the same few are asked for again and again."""
        return lru_cache(1 << 16)(self._write), lru_cache(1 << 14)(self.tokenize)

    def _write(self, content: str) -> str:
        before, after = self._around
        answer = {"role": "assistant", "content": content}
        whole = self._draw([QUESTION, answer], generation_prompt=False)
        if not (whole.startswith(before) and whole.endswith(after)):
            return content
        return whole[len(before) : len(whole) - len(after)]

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
        return self.answers_ids(conversation, [answer], thought)[0]

    def answers_ids(
        self, conversation: Conversation, answers: Sequence[str], thought: str | None = None
    ) -> list[list[int]]:
        """Likewise of several answers, which costs hardly more than one."""
        prefilled = conversation[-1]["role"] == "assistant"  # goes on where the prefill stops
        told = [a + self.turn.end if prefilled else self.answer_text(a) for a in answers]
        found: dict[int, list[int]] = {}
        for head in (self.prompt_text(conversation, thought), *ANCHORS, ""):
            left = [n for n in range(len(told)) if n not in found]
            if not left:
                break
            ids = self._remembered[1](head)
            for n, whole in zip(left, self._tokenize([head + told[n] for n in left]), strict=True):
                if whole[: len(ids)] == ids:
                    found[n] = whole[len(ids) :]
        return [found[n] for n in range(len(told))]

    def answer_text(self, answer: str) -> str:
        """An answer with its end of turn, as it follows a prompt."""
        return ("" if self.reasons else self.turn.lead) + self.written(answer) + self.turn.end

    def whole_text(self, conversation: Conversation) -> str:
        """A conversation with its last answer standing where it is asked for.

        That is what the template renders, except where a template writes something else before a
        last answer than it prompts with (without the system message, without a reasoning part):
        there, the prompt counts.
        """
        text = self.render(conversation, generation_prompt=False)
        *before, last = conversation
        if last["role"] != "assistant" or not before:
            return text
        if text.startswith(self.render(before, generation_prompt=True)):
            return text
        return self.prompt_text(before) + self.answer_text(last["content"])

    def example(self) -> str:
        """A rendered question, for manifests and messages."""
        return self.prompt_text([{"role": "user", "content": "QUESTION"}])


def _no_generation_prompt(found: str) -> ChatError:
    return ChatError(
        f"no-generation-prompt: with this chat template {found}, so a model would not know that it "
        "is to answer; mend the template (`add_generation_prompt`) and give it with "
        "--chat-template FILE"
    )
