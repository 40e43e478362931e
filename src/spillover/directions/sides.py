"""The two sides of a contrast: prompts as lists or files, with answers where there are some."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from spillover.errors import ChatError, DirectionError
from spillover.rows import Conversation, Message, read_conversations, read_rows

Side = str | Path | Sequence[str | Conversation]
"""A file's or dataset's name, or prompts: what a user says, or whole conversations."""


def conversations(side: Side, column: str | None = None) -> list[Conversation]:
    """The prompts of a side.

    Args:
        side: see `Side`; files are those that `read_conversations` takes.
        column: of a file, where its prompts have no usual name.

    Raises:
        ChatError: naming file and line, for what is not a valid prompt, or for none.
        DirectionError: naming its number, for what is not a valid prompt of a list.
    """
    if isinstance(side, str | Path):
        return read_conversations(side, column)
    if not isinstance(side, Iterable):
        raise DirectionError(f"found {side!r}; expected prompts, or the name of a file or dataset")
    return [_as_conversation(one, f"prompt {at}") for at, one in enumerate(side)]


def distinct(prompts: Sequence[Conversation]) -> list[Conversation]:
    """Prompts without those that came before."""
    return list({str(one): one for one in prompts}.values())


def answered(source: str | Path) -> tuple[list[Conversation], list[str]]:
    """Prompts with their answers: the last message of each row of a file or dataset.

    Raises:
        ChatError: naming file and line, for what is not a chat that ends with an answer.
    """
    found = read_rows(source)
    prompts, answers = [], []
    for row, place in zip(found.rows, found.places, strict=True):
        chat = row.conversation
        if len(chat) < 2 or chat[-1]["role"] != "assistant":
            raise ChatError(f"{place}: found no answer; expected a chat that ends with one")
        prompts.append(chat[:-1])
        answers.append(chat[-1]["content"])
    return prompts, answers


def _as_conversation(prompt: str | Conversation, place: str) -> Conversation:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DirectionError(f"{place} is empty; leave it out")
        return [{"role": "user", "content": prompt}]
    try:
        made = [Message.model_validate(message) for message in prompt]
    except (TypeError, ValueError):
        raise DirectionError(
            f"{place}: found {str(prompt)[:60]!r}; expected text, or messages with role and content"
        ) from None
    if not made:
        raise DirectionError(f"{place} is empty; leave it out")
    return [{"role": message.role, "content": message.content} for message in made]
