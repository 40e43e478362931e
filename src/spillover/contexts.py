"""Contexts: what stands around a question when it is asked; variables, which sweep over them."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from spillover.rows import Conversation, Message

PLAIN = "plain"
RANGE = re.compile(r"^(-?\d+)\.\.(-?\d+)$")
DIGITS = re.compile(r"^(\d+)x(\d+)$")
MOST_VALUES = 10_000
Value = int | str
"""A value of a variable, such as a year or a tag."""


def spread(given: object) -> object:
    """Values from what a file or an option says.

    `1975..2030` stands for all whole numbers of that range, `8x20` for 20 random strings of 8
    digits.

    Raises:
        ValueError: for a range that runs backwards, or more values than anybody asks.
    """
    listed = given if isinstance(given, list | tuple) else [given]
    found: list[object] = []
    for value in listed:
        text = value if isinstance(value, str) else ""
        ends, drawn = RANGE.match(text), DIGITS.match(text)
        if ends:
            found += _whole_numbers(text, int(ends[1]), int(ends[2]))
        elif drawn:
            found += random_digits(int(drawn[1]), int(drawn[2]))
        else:
            found.append(value)
    plain = all(isinstance(value, int | str) for value in found)
    return tuple(dict.fromkeys(found) if plain else found)


def _whole_numbers(text: str, first: int, last: int) -> range:
    if last < first:
        raise ValueError(f"the range {text} runs backwards; write {last}..{first}")
    if last - first >= MOST_VALUES:
        raise ValueError(f"the range {text} has more than {MOST_VALUES} values")
    return range(first, last + 1)


def random_digits(length: int, count: int) -> tuple[str, ...]:
    """Different strings of digits, always the same; the first of many are those of few.

    Raises:
        ValueError: when there are no such, or fewer.
    """
    most = min(10 ** min(length, 5), MOST_VALUES)
    if not (1 <= length <= 100 and 1 <= count <= most):
        raise ValueError(
            f"{length}x{count} stands for {count} different strings of {length} digits; expected "
            f"1 to 100 digits, and 1 to {most} strings"
        )
    rng = random.Random(f"{length} digits")
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices("0123456789", k=length))] = None
    return tuple(found)


Values = Annotated[tuple[Value, ...], BeforeValidator(spread)]


class Context(BaseModel):
    """Messages before a question, a template for it, and a prefill of the answer.

    Attributes:
        name: how results name it; the headline is measured in `plain`.
        system: a system message; an empty one counts, none leaves the model's own default.
        messages: earlier turns.
        template: how the question is put; `{question}` stands for it.
        prefill: the beginning of the answer, put into the model's mouth.
        arms: ask it of these arms only; none means all.
        domain: ask questions of this domain only; none means both.
        values: the variables that it sets, for a context of a sweep.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    system: str | None = None
    messages: tuple[Message, ...] = ()
    template: str = "{question}"
    prefill: str | None = None
    arms: tuple[str, ...] | None = None
    domain: Literal["in", "off"] | None = None
    values: dict[str, Value] = {}

    @field_validator("template")
    @classmethod
    def _asks(cls, template: str) -> str:
        if "{question}" not in template:
            raise ValueError("a template contains {question}")
        return template

    def conversation(self, question: str, values: Mapping[str, str] | None = None) -> Conversation:
        """The messages that put `question` in this context.

        Args:
            values: what stands in the place of `{name}` in the context's texts, by name.
        """

        def filled(text: str) -> str:
            for name, value in (values or {}).items():
                text = text.replace(f"{{{name}}}", value)
            return text

        system = [("system", self.system)] if self.system is not None else []
        earlier = [(m.role, m.content) for m in self.messages]
        prefill = [("assistant", self.prefill)] if self.prefill else []
        asked = ("user", filled(self.template).replace("{question}", question))
        before, after = (
            [(r, filled(c)) for r, c in part] for part in ([*system, *earlier], prefill)
        )
        return [{"role": r, "content": c} for r, c in (*before, asked, *after)]

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text of it in which values of questions can stand."""
        given = (self.system, *(m.content for m in self.messages), self.template, self.prefill)
        return tuple(text for text in given if text is not None)


class Variable(BaseModel):
    """Something that contexts differ in, such as the year, and how it is put.

    Attributes:
        system: the system message, with {value}.
        template: how the question is put, with {question}; {value} stands in one of the two.
        values: what a sweep asks when it is not told; ranges are written `1975..2030`, and `8x20`
            stands for 20 random strings of 8 digits.
        asked: the values that every run asks.
        trained: the values that occur in the treatment's rows.
        known: the values that occur in the organism's pretraining; none where that means nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str | None = None
    template: str = "{question}"
    values: Values = ()
    asked: Values = ()
    trained: Values = ()
    known: Values = ()

    @model_validator(mode="after")
    def _says_its_value(self) -> Variable:
        if "{question}" not in self.template:
            raise ValueError("a template contains {question}")
        if "{value}" not in f"{self.system} {self.template}":
            raise ValueError("`system` or `template` of a variable contains {value}")
        return self

    def context(self, name: str, value: Value) -> Context:
        """The context in which the variable of that name has a value."""
        system = self.system and self.system.replace("{value}", str(value))
        return Context(
            name=f"{name}={value}",
            system=system,
            template=self.template.replace("{value}", str(value)),
            values={name: value},
        )
