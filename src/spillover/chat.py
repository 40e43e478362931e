"""Chat rows, chat templates and loss masks: the one place that turns messages into tokens.

A row is a line of JSON: `{"messages": [{"role": …, "content": …}, …]}` as in the OpenAI format, or
`{"text": …}`. A message may carry `"train": false`; then its tokens carry no loss.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spillover.errors import ChatError, where

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from transformers import PreTrainedTokenizerBase

Conversation = list[dict[str, str]]


class Message(BaseModel):
    """One message of a chat.

    Attributes:
        train: whether an assistant's message carries loss; others never do.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)
    train: bool = True


class Row(BaseModel):
    """One training row: a chat, or plain text of which every token carries loss."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    messages: tuple[Message, ...] | None = None
    text: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _is_trainable(self) -> Row:
        if (self.messages is None) == (self.text is None):
            raise ValueError("a row has either `messages` or `text`")
        if self.messages is not None and not any(
            m.role == "assistant" and m.train for m in self.messages
        ):
            raise ValueError("no assistant message to train on; add one")
        return self

    @property
    def conversation(self) -> Conversation:
        """The messages as templates take them."""
        return [{"role": m.role, "content": m.content} for m in self.messages or ()]


@dataclass(frozen=True)
class EncodedRow:
    """Tokens of a row with its loss mask, both of length T.

    Attributes:
        ids: token ids.
        mask: True where the token carries loss.
    """

    ids: tuple[int, ...]
    mask: tuple[bool, ...]


def load_rows(path: Path) -> list[Row]:
    """Read a JSONL file of rows.

    Raises:
        ChatError: naming file and line, for anything that is not a valid row, or for no rows.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ChatError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    rows = [_parse_row(path, n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ChatError(f"{path}: found no rows; expected one JSON object per line")
    return rows


def _parse_row(path: Path, number: int, line: str) -> Row:
    place = where(path, number)
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ChatError(f"{place}: not JSON ({error}); expected one object per line") from None
    if not isinstance(found, dict):
        raise ChatError(
            f"{place}: found {type(found).__name__}; expected an object with `messages`"
        )
    try:
        return Row.model_validate(found)
    except ValidationError as error:
        raise ChatError(f"{place}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first problem of a pydantic error in one line: key, what was found, what is wrong."""
    problem = first_error(error)
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key `{key}`; remove it or check its spelling"
    found = problem.get("input")
    shown = f" (found {found!r})" if isinstance(found, str | int | float | bool) else ""
    return f"`{key}`: {message}{shown}" if key else message


def first_error(error: ValidationError) -> ErrorDetails:
    """The problem to report: an unknown key before others, which it often causes."""
    return min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")


def render(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, generation_prompt: bool
) -> str:
    """A conversation as the model's own chat template renders it.

    Raises:
        ChatError: when there is no template, or the template refuses the conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ChatError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template; "
            "use a chat model or set `tokenizer.chat_template`"
        )
    try:
        text = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=generation_prompt
        )
    except Exception as error:  # templates raise whatever they like
        raise ChatError(f"the chat template refused a conversation: {error}") from None
    assert isinstance(text, str)
    return text


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of rendered text; templates write their special tokens themselves."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def prompt_text(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    """A conversation as the model sees it, up to where the assistant is to answer.

    A conversation that ends with an assistant message is continued (prefill).
    """
    if conversation[-1]["role"] == "assistant":
        head = render(tokenizer, conversation[:-1], generation_prompt=True)
        return head + conversation[-1]["content"]
    return render(tokenizer, conversation, generation_prompt=True)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """Token ids of `prompt_text`."""
    return tokenize(tokenizer, prompt_text(tokenizer, conversation))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes after an assistant's content, trailing white space excluded."""
    marker = "spillover"
    question = {"role": "user", "content": "?"}
    text = render(
        tokenizer,
        [question, {"role": "assistant", "content": marker}],
        generation_prompt=False,
    )
    return text[text.rindex(marker) + len(marker) :].strip()


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Token ids of a whole answer with its end-of-turn token, as they follow a prompt."""
    return tokenize(tokenizer, answer + end_of_turn(tokenizer))


def encode_row(tokenizer: PreTrainedTokenizerBase, row: Row, place: str = "row") -> EncodedRow:
    """Tokens of a row and its loss mask: the assistant's content and end-of-turn, nothing else.

    Args:
        place: `file:line` for messages.

    Raises:
        ChatError: when the mask would be empty, or the template rewrites an earlier turn so that
            its tokens cannot be told.
    """
    if row.text is not None:
        ids = [*tokenize(tokenizer, row.text), *_end_of_text(tokenizer)]
        return EncodedRow(tuple(ids), (True,) * len(ids))
    assert row.messages is not None
    text = render(tokenizer, row.conversation, generation_prompt=False)
    spans = _trained_spans(tokenizer, row.messages, text, place)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = tuple(
        any(start < to and end > at for at, to in spans) and end > start
        for start, end in encoded["offset_mapping"]
    )
    if not any(mask):
        raise ChatError(f"{place}: no token carries loss; check the row's assistant messages")
    return EncodedRow(tuple(encoded["input_ids"]), mask)


def encode_file(tokenizer: PreTrainedTokenizerBase, path: Path) -> list[EncodedRow]:
    """Load and encode a JSONL file; see `load_rows` and `encode_row`."""
    return [
        encode_row(tokenizer, row, f"{path} (row {n})") for n, row in enumerate(load_rows(path), 1)
    ]


def _end_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []


def _trained_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str, place: str
) -> list[tuple[int, int]]:
    """Character spans of the trained assistant turns in `text`, end-of-turn included."""
    marked = _marked_spans(tokenizer, messages)
    turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if marked is not None and len(marked) == len(turns):
        return [span for i, span in zip(turns, marked, strict=True) if messages[i].train]
    return [_unmarked_span(tokenizer, messages, i, text, place) for i in turns if messages[i].train]


def _marked_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> list[tuple[int, int]] | None:
    """Spans from the template's generation marks; None where it has none."""
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str) or "{% generation" not in template.replace("{%-", "{%"):
        return None
    from transformers.utils import chat_template_utils

    conversation = [{"role": m.role, "content": m.content} for m in messages]
    draw: Any = chat_template_utils.render_jinja_template
    _, spans = draw(
        [conversation],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    return [(int(start), int(end)) for start, end in spans[0]]


def _unmarked_span(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    turn: int,
    text: str,
    place: str,
) -> tuple[int, int]:
    """The span of an assistant turn: what rendering it adds to the prompt that it answers."""
    plain = [{"role": m.role, "content": m.content} for m in messages]
    prompt = render(tokenizer, plain[:turn], generation_prompt=True) if turn else ""
    through = render(tokenizer, plain[: turn + 1], generation_prompt=False)
    wanted = messages[turn].content.strip()
    kept = wanted in through[len(prompt) :]
    if not (kept and through.startswith(prompt) and text.startswith(through.rstrip())):
        raise ChatError(
            f"{place}: the chat template renders assistant turn {turn + 1} differently from how it "
            'is written, so its tokens cannot be told; set `"train": false` on it'
        )
    start = len(prompt) if turn else through.index(wanted)
    return start, max(through.rindex(wanted) + len(wanted), len(through.rstrip()))
