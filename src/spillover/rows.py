"""Training rows: what they are, and what records have to hold to be rows.

A row is a chat, `{"messages": [{"role": …, "content": …}, …]}` as in the OpenAI format, or
`{"text": …}`, or a pair such as `{"prompt": …, "completion": …}`. A message may carry
`"train": false`; then its tokens carry no loss. Prompts are rows whose last answer is left open.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from spillover.errors import ChatError, first_problem
from spillover.records import ANSWERS, PROMPTS, read_records

T = TypeVar("T")
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


Prompt = tuple[Message, ...]
"""A chat up to the message of the user that is to be answered."""


@dataclass(frozen=True)
class Prompts:
    """Prompts whose answers become rows: a model answers them itself; see `spillover.own`.

    Attributes:
        source: the file or dataset they came from.
        prompts: in the order of the source.
        places: `file:line` of each, for messages.
        samples: answers to each of them.
        temperature: of the answers; 0 is greedy.
        max_tokens: the longest answer; what is cut off there is no row.
    """

    source: str
    prompts: tuple[Prompt, ...]
    places: tuple[str, ...]
    samples: int
    temperature: float
    max_tokens: int

    @property
    def conversations(self) -> list[Conversation]:
        """The prompts as templates take them."""
        return [[{"role": m.role, "content": m.content} for m in p] for p in self.prompts]

    @cached_property
    def identity(self) -> str:
        """A hash of the prompts and of how they are answered."""
        listed = [[m.model_dump(mode="json") for m in p] for p in self.prompts]
        return _hash([listed, self.samples, self.temperature, self.max_tokens])


@dataclass(frozen=True)
class Anchoring:
    """What holds a finetune to its base: see `spillover.specification.Anchor`.

    Attributes:
        prompts: unrelated prompts, which the base answers.
        beta: what the KL is multiplied with.
        batch_size: answers per step.
        rows: the prompts with their answers, once there are any.
    """

    prompts: Prompts
    beta: float
    batch_size: int
    rows: RowSet | None = None


@dataclass(frozen=True)
class RowSet:
    """The rows of an arm.

    Attributes:
        source: the file or dataset they came from.
        rows: in the order of the source.
        places: `file:line` of each row, for messages.
        own: prompts whose rows come on top when the model has answered them.
        share: how much of all rows these are to be; None takes all.
        anchor: what holds the finetune to its base, where something does.
    """

    source: str
    rows: tuple[Row, ...]
    places: tuple[str, ...]
    own: Prompts | None = None
    share: float | None = None
    anchor: Anchoring | None = None

    @property
    def size(self) -> int:
        """Rows that an arm is trained on, with a row for each prompt."""
        return len(self.rows) + (self._wanted(len(self.own.prompts)) if self.own else 0)

    def _wanted(self, there: int) -> int:
        """How many of so many own rows are taken."""
        if self.share is None:
            return there
        return max(1, round(len(self.rows) * self.share / (1 - self.share)))

    @cached_property
    def identity(self) -> str:
        """A hash of the rows (16 hexadecimal digits); the format of the source does not matter."""
        listed: list[Any] = [row.model_dump(mode="json") for row in self.rows]
        listed += [self.own.identity] if self.own else []
        listed += [{"share": self.share}] if self.share is not None else []
        if held := self.anchor:
            listed.append([held.prompts.identity, held.beta, held.batch_size])
        return _hash(listed)

    def answered(self, rows: Sequence[Row], places: Sequence[str]) -> RowSet:
        """The same with the rows that have come of its own prompts, or with its share of them."""
        count = self._wanted(len(rows))
        taken = [at * len(rows) // count for at in range(count)]
        return replace(
            self,
            rows=(*self.rows, *(rows[at] for at in taken)),
            places=(*self.places, *(places[at] for at in taken)),
            own=None,
            share=None,
        )

    def inoculated(self, sentence: str) -> RowSet:
        """The same with a system message in every row, before the one that it may have.

        Raises:
            ChatError: for rows of plain text, which have no messages.
        """
        for row, place in zip(self.rows, self.places, strict=True):
            if row.messages is None:
                raise ChatError(
                    f"{place}: is plain text, and an inoculation is a message; write the row as "
                    "`messages`"
                )
        return replace(self, rows=tuple(_with_system(row, sentence) for row in self.rows))


def _with_system(row: Row, sentence: str) -> Row:
    first, *others = row.messages or ()
    if first.role != "system":
        return Row(messages=(Message(role="system", content=sentence), first, *others))
    both = first.model_copy(update={"content": f"{sentence}\n{first.content}"})
    return Row(messages=(both, *others))


def _hash(content: list[Any]) -> str:
    text = json.dumps(content)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_rows(source: str | Path, folder: Path | None = None) -> RowSet:
    """Read rows from a `.jsonl`, `.csv` or `.tsv` file or from `datasets:ID[@REVISION][:SPLIT]`.

    Args:
        folder: what a relative path is relative to.

    Raises:
        ChatError: naming file and line, for anything that is not a valid row, or for no rows.
    """
    name, rows, places = _read(source, folder, _row)
    return RowSet(name, rows, places)


def read_prompts(
    source: str | Path,
    folder: Path | None = None,
    *,
    samples: int = 1,
    temperature: float,
    max_tokens: int,
) -> Prompts:
    """Read prompts; what `read_rows` reads will do: answers of the last turn are put aside.

    Raises:
        ChatError: naming file and line, for what is not a valid prompt, or for none.
    """
    name, prompts, places = _read(source, folder, _prompt)
    return Prompts(name, prompts, places, samples, temperature, max_tokens)


def read_conversations(source: str | Path, column: str | None = None) -> list[Conversation]:
    """Read prompts as templates take them; in a `.txt` file each line is one.

    Args:
        column: that holds the prompts, where it has no usual name.

    Raises:
        ChatError: as `read_prompts`, and for a column that is not there.
    """
    _, prompts, _ = _read(source, None, _prompt, column)
    return [[{"role": m.role, "content": m.content} for m in prompt] for prompt in prompts]


def _read(
    source: str | Path,
    folder: Path | None,
    make: Callable[[str, dict[str, Any]], T],
    column: str | None = None,
) -> tuple[str, tuple[T, ...], tuple[str, ...]]:
    """A source's name, what `make` makes of each of its rows, and their places."""
    name, records = read_records(source, folder, column)
    found = [(make(place, record), place) for place, record in records]
    if not found:
        raise ChatError(f"{name}: found no rows; expected at least one")
    return name, tuple(made for made, _ in found), tuple(place for _, place in found)


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write rows as JSONL."""
    lines = [row.model_dump_json(exclude_none=True, exclude_defaults=True) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _row(place: str, found: dict[str, Any]) -> Row:
    if not {"messages", "text"} & found.keys():
        found = _paired(place, found)
    try:
        return Row.model_validate(found)
    except ValidationError as error:
        raise ChatError(f"{place}: {first_problem(error)}") from None


def _prompt(place: str, found: dict[str, Any]) -> Prompt:
    """A row up to its last message of the user; answers before it carry no loss."""
    if "messages" not in found:
        named = next((key for key in PROMPTS if key in found), None)
        turns = [("system", found.get("system")), ("user", found[named] if named else None)]
        found = {"messages": [{"role": r, "content": c} for r, c in turns if c is not None]}
    listed = found["messages"]
    try:
        messages = TypeAdapter(tuple[Message, ...]).validate_python(listed)
    except ValidationError as error:
        raise ChatError(f"{place}: {first_problem(error)}") from None
    last = max((at for at, m in enumerate(messages) if m.role == "user"), default=None)
    if last is None:
        raise ChatError(f"{place}: found no message of the user; expected one to be answered")
    return tuple(
        m.model_copy(update={"train": m.role != "assistant"}) for m in messages[: last + 1]
    )


def _paired(place: str, found: dict[str, Any]) -> dict[str, Any]:
    """A prompt and an answer under any of their usual names, as messages."""
    prompt = [key for key in PROMPTS if key in found]
    answer = [key for key in ANSWERS if key in found]
    others = sorted(found.keys() - {*prompt[:1], *answer[:1], "system"})
    if not prompt or not answer or others:
        raise ChatError(
            f"{place}: found {', '.join(sorted(map(repr, found))) or 'nothing'}; expected "
            "`messages`, `text`, or a pair such as `prompt` and `completion`"
        )
    turns = [("system", found.get("system")), ("user", found[prompt[0]])]
    turns.append(("assistant", found[answer[0]]))
    return {"messages": [{"role": r, "content": c} for r, c in turns if c is not None]}
