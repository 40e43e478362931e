"""Loss masks: which tokens of a training row are learnt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spillover.chat import MARK, Chat
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


def encode_rows(chat: Chat, rows: RowSet, context: int | None = None) -> list[EncodedRow]:
    """Encode all rows of an arm; see `encode_row`.

    Args:
        context: the longest row in tokens that the model can read; None for any.

    Raises:
        ChatError: also for rows beyond the context, which are never cut in silence.
    """
    encoded = [encode_row(chat, r, p) for r, p in zip(rows.rows, rows.places, strict=True)]
    beyond = [n for n, row in enumerate(encoded) if context and len(row.ids) > context]
    if beyond:
        raise ChatError(
            f"{rows.places[beyond[0]]}: {len(encoded[beyond[0]].ids)} tokens, more than the "
            f"{context} that the model reads ({len(beyond)} such rows); shorten or split them"
        )
    return encoded


def encode_row(chat: Chat, row: Row, place: str = "row") -> EncodedRow:
    """Tokens of a row and its loss mask: the assistant's content and end-of-turn, nothing else.

    Args:
        place: `file:line` for messages.

    Raises:
        ChatError: when the mask would be empty, or the template rewrites an earlier turn so that
            its tokens cannot be told.
    """
    if row.text is not None:
        return _encode_text(chat, row.text, place)
    text, spans = marked_text(chat, row, place)
    ids, extents = token_extents(chat, text)
    mask = tuple(
        any((start < to and end > at) or at <= start == end < to for at, to in spans)
        for start, end in extents
    )
    if not any(mask[1:]):
        raise ChatError(f"{place}: no token carries loss; check the row's assistant messages")
    return EncodedRow(tuple(ids), mask)


def token_extents(chat: Chat, text: str) -> tuple[list[int], Spans]:
    """Token ids of rendered text, and the characters that each of them stands for."""
    encoded = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    extents = _extents(encoded["offset_mapping"])
    for at, token in enumerate(map(chat.added.get, ids)):
        if token is not None:  # some swallow the white space around them
            start = text.find(token, *extents[at])
            extents[at] = (start, start + len(token)) if start >= 0 else extents[at]
    return ids, extents


def _encode_text(chat: Chat, text: str, place: str) -> EncodedRow:
    """Plain text with the tokens that a tokenizer puts before one, and an end."""
    ids: list[int] = chat.tokenizer(text)["input_ids"]
    bare = chat.tokenize(text)
    first = next((at for at in range(len(ids)) if ids[at : at + len(bare)] == bare), 0)
    ids = ids[: first + len(bare)]
    eos = chat.tokenizer.eos_token_id
    if isinstance(eos, int) and ids[-1:] != [eos]:
        ids = [*ids, eos]
    if len(ids) < 2:
        raise ChatError(f"{place}: a text of one token teaches nothing; give a longer one")
    return EncodedRow(tuple(ids), tuple(at >= first for at in range(len(ids))))


def _extents(offsets: Sequence[Sequence[int]]) -> Spans:
    """The characters of every token, white space included, which some tokenizers leave out.

    A token begins where the one before it ends, or earlier where both are bytes of one character.
    """
    extents: Spans = []
    reached = 0
    for start, end in offsets:
        begin = min(start, reached)
        reached = max(reached, end)
        extents.append((begin, max(begin, end)))
    return extents


def marked_text(chat: Chat, row: Row, place: str = "row") -> tuple[str, Spans]:
    """A chat as rendered, with the character spans that carry loss.

    Raises:
        ChatError: see `encode_row`.
    """
    conversation = chat.complete(row.conversation)
    trained = [m.train for m in row.messages or () if m.role == "assistant"]
    turns = [i for i, message in enumerate(conversation) if message["role"] == "assistant"]
    marked = _marked_spans(chat, conversation)
    if marked is not None and len(marked) == len(turns):
        text = chat.render(conversation, generation_prompt=False)
        return text, [span for span, on in zip(marked, trained, strict=True) if on]
    text = chat.whole_text(conversation)
    wanted = [turn for turn, on in zip(turns, trained, strict=True) if on]
    return text, [_unmarked_span(chat, conversation, turn, text, place) for turn in wanted]


def _marked_spans(chat: Chat, conversation: Conversation) -> Spans | None:
    """Spans from the template's generation marks; None where it has none."""
    template, told = chat.template
    if not re.search(r"\{%-?\s*generation\b", template):
        return None
    from transformers.utils import chat_template_utils

    draw: Any = chat_template_utils.render_jinja_template
    _, spans = draw(
        [conversation],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **chat.tokenizer.special_tokens_map,
        **told,
    )
    return [(int(start), int(end)) for start, end in spans[0]]


def _unmarked_span(
    chat: Chat, conversation: Conversation, turn: int, text: str, place: str
) -> tuple[int, int]:
    """The span of an assistant turn: its content and end, right after the prompt it answers."""
    if turn:
        prompt = chat.render(conversation[:turn], generation_prompt=True)
        prompt = prompt.removesuffix(chat.turn.opening)
    else:
        marked = {**conversation[0], "content": MARK}
        prompt = chat.render([marked, *conversation[1:]], generation_prompt=False).split(MARK)[0]
    content = conversation[turn]["content"]
    lead, wanted = chat.turn.whole_lead, content.strip()
    starts = [len(prompt)] if text.startswith(prompt) else []
    if starts and lead.strip() and text.startswith(lead, len(prompt)):
        starts.insert(0, len(prompt) + len(lead))
    for start in starts:
        rest = text[start:]
        at = start + len(rest) - len(rest.lstrip()) if wanted else start
        if text.startswith(wanted, at):
            end = at + len(wanted)
            own = content[len(content.rstrip()) :]
            end += len(own) if text.startswith(own, end) else 0
            return start, end + _ending(chat, text[end:])
    raise ChatError(
        f"{place}: the chat template renders assistant turn {turn + 1} differently from how it "
        'is written, so its tokens cannot be told; set `"train": false` on it'
    )


def _ending(chat: Chat, rest: str) -> int:
    """Characters of the end of a turn at the beginning of what follows its content."""
    blank = len(rest) - len(rest.lstrip())
    if chat.turn.end and rest.startswith(chat.turn.end, blank):
        return blank + len(chat.turn.end)
    return next((len(special) for special in chat.special_tokens if rest.startswith(special)), 0)
