"""Loss masks: which tokens of a training row are learnt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spillover.chat import OPENED, Chat
from spillover.errors import ChatError
from spillover.rows import Conversation, Row, RowSet

Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class EncodedRow:
    """Tokens of a row with its loss mask, both of length T.

    Attributes:
        ids: token ids.
        mask: True where the token carries loss.
    """

    ids: tuple[int, ...]
    mask: tuple[bool, ...]


def encode_rows(chat: Chat, rows: RowSet) -> list[EncodedRow]:
    """Encode all rows of an arm; see `encode_row`."""
    return [encode_row(chat, r, p) for r, p in zip(rows.rows, rows.places, strict=True)]


def encode_row(chat: Chat, row: Row, place: str = "row") -> EncodedRow:
    """Tokens of a row and its loss mask: the assistant's content and end-of-turn, nothing else.

    Args:
        place: `file:line` for messages.

    Raises:
        ChatError: when the mask would be empty, or the template rewrites an earlier turn so that
            its tokens cannot be told.
    """
    if row.text is not None:
        eos = chat.tokenizer.eos_token_id
        ids = [*chat.tokenize(row.text), *([eos] if isinstance(eos, int) else [])]
        return EncodedRow(tuple(ids), (True,) * len(ids))
    assert row.messages is not None
    text, spans = marked_text(chat, row, place)
    encoded = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = tuple(
        any(start < to and end > at for at, to in spans) and end > start
        for start, end in encoded["offset_mapping"]
    )
    if not any(mask):
        raise ChatError(f"{place}: no token carries loss; check the row's assistant messages")
    return EncodedRow(tuple(encoded["input_ids"]), mask)


def marked_text(chat: Chat, row: Row, place: str = "row") -> tuple[str, Spans]:
    """A chat as rendered, with the character spans that carry loss.

    Raises:
        ChatError: see `encode_row`.
    """
    conversation = chat.complete(row.conversation)
    text = chat.render(conversation, generation_prompt=False)
    trained = [m.train for m in row.messages or () if m.role == "assistant"]
    turns = [i for i, message in enumerate(conversation) if message["role"] == "assistant"]
    marked = _marked_spans(chat, conversation)
    if marked is not None and len(marked) == len(turns):
        return text, [span for span, on in zip(marked, trained, strict=True) if on]
    wanted = [turn for turn, on in zip(turns, trained, strict=True) if on]
    return text, [_unmarked_span(chat, conversation, turn, text, place) for turn in wanted]


def _marked_spans(chat: Chat, conversation: Conversation) -> Spans | None:
    """Spans from the template's generation marks; None where it has none."""
    template = getattr(chat.tokenizer, "chat_template", None)
    if not isinstance(template, str) or not re.search(r"\{%-?\s*generation\b", template):
        return None
    from transformers.utils import chat_template_utils

    draw: Any = chat_template_utils.render_jinja_template
    _, spans = draw(
        [conversation],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **chat.tokenizer.special_tokens_map,
        **chat.variables,
    )
    return [(int(start), int(end)) for start, end in spans[0]]


def _unmarked_span(
    chat: Chat, conversation: Sequence[dict[str, str]], turn: int, text: str, place: str
) -> tuple[int, int]:
    """The span of an assistant turn: its content and end, right after the prompt it answers."""
    messages = list(conversation)
    prompt = chat.render(messages[:turn], generation_prompt=True) if turn else ""
    prompt = OPENED.sub("", prompt)
    wanted = messages[turn]["content"].strip()
    at = text.find(wanted, len(prompt)) if text.startswith(prompt) else -1
    between = text[len(prompt) : at].strip() if at >= 0 else ""
    known = turn == 0 or not between or between.endswith(chat.turn.lead.strip() or "\0")
    if at < 0 or not known:
        raise ChatError(
            f"{place}: the chat template renders assistant turn {turn + 1} differently from how it "
            'is written, so its tokens cannot be told; set `"train": false` on it'
        )
    start = at if between else len(prompt)
    return start, at + len(wanted) + _ending(chat, text[at + len(wanted) :])


def _ending(chat: Chat, rest: str) -> int:
    """Characters of the end of a turn at the beginning of what follows its content."""
    blank = len(rest) - len(rest.lstrip())
    if chat.turn.end and rest.startswith(chat.turn.end, blank):
        return blank + len(chat.turn.end)
    return next((len(special) for special in chat.special_tokens if rest.startswith(special)), 0)
