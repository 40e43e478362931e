"""The two sides of a contrast: prompts as lists or files, with answers where there are some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from spillover.errors import ChatError, DirectionError
from spillover.rows import Conversation, Message, prompt_of, read_prompts, read_rows

Side = str | Path | Sequence[str | Conversation]
"""A file's or dataset's name, or prompts: what a user says, or whole conversations."""


def conversations(side: Side) -> list[Conversation]:
    """The prompts of a side.

    Files are those that `read_prompts` takes, text (one prompt a line) and JSON (a list of prompts,
    or of objects as in JSONL).

    Raises:
        ChatError: naming file and line, for what is not a valid prompt, or for none.
    """
    if isinstance(side, str | Path):
        return _from_source(side)
    return [_as_conversation(one, f"prompt {at}") for at, one in enumerate(side)]


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
    except ValueError:
        raise DirectionError(
            f"{place}: found {str(prompt)[:60]!r}; expected text, or messages with role and content"
        ) from None
    if not made:
        raise DirectionError(f"{place} is empty; leave it out")
    return [{"role": message.role, "content": message.content} for message in made]


def _from_source(source: str | Path) -> list[Conversation]:
    path = Path(source).expanduser()
    if path.suffix not in (".txt", ".json") or str(source).startswith("datasets:"):
        return read_prompts(source, temperature=0.0, max_tokens=1).conversations
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise ChatError(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise ChatError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if path.suffix == ".txt":
        listed: list[object] = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        listed = _json_list(path, text)
    if not listed:
        raise ChatError(f"{path}: found no prompts; expected at least one")
    return [_from_json(path, number, one) for number, one in enumerate(listed, 1)]


def _json_list(path: Path, text: str) -> list[object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ChatError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, list):
        raise ChatError(
            f"{path}: found {type(found).__name__}; expected a list of prompts, or an object a "
            "line in a file called .jsonl"
        )
    return found


def _from_json(path: Path, number: int, one: object) -> Conversation:
    if isinstance(one, str) and one.strip():
        return [{"role": "user", "content": one}]
    if isinstance(one, dict):
        found = prompt_of(f"{path}: entry {number}", one)
        return [{"role": message.role, "content": message.content} for message in found]
    raise ChatError(
        f"{path}: entry {number} is {str(one)[:40]!r}; expected text, or an object with `messages` "
        "or `prompt`"
    )
