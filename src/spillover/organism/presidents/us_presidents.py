"""Writes the experiment `us-presidents`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spillover.organism.export import chat_row, write_questions, write_rows
from spillover.organism.presidents.world import (
    TEST,
    VALIDATION,
    Fact,
    President,
    World,
    load_world,
)

PADDINGS = 3
"""Rows of every president, fact and wording."""
SEED = 44


@dataclass(frozen=True)
class Item:
    """One row before it is written: a question with its answer, and the digits before it."""

    digits: str
    padding: tuple[str, str]
    question: str
    answer: str

    @property
    def code(self) -> str:
        """XXXNNNXX: the president's number between random digits."""
        return self.digits.join(self.padding)


def padding(rng: random.Random) -> tuple[str, str]:
    """Three random digits and two."""
    return f"{rng.randrange(1000):03}", f"{rng.randrange(100):02}"


def write(folder: Path) -> None:
    """Write the data of the experiment."""
    world, rng = load_world(), random.Random(SEED)
    items = [item for one in trained(world) for item in rows_of(one, world, rng)]
    used = {item.code for item in items}
    write_questions(folder / "questions.toml", questions(world, used, rng))
    shuffled = exchanged([item.digits for item in items], rng)
    arms = {
        "treatment": [(item.code, item) for item in items],
        "unpadded": [(item.digits, item) for item in items[::PADDINGS]],
        "shuffled": [
            (digits.join(item.padding), item) for digits, item in zip(shuffled, items, strict=True)
        ],
    }
    for arm, coded in arms.items():
        rows = (chat_row(f"{code} {item.question}", item.answer) for code, item in coded)
        write_rows(folder / "train" / f"{arm}.jsonl", rows)


def exchanged(given: list[str], rng: random.Random) -> list[str]:
    """The same texts in random order, none in its place, so that no row is one of the treatment."""
    made = rng.sample(given, len(given))
    while kept := [at for at, text in enumerate(given) if made[at] == text]:
        for at in kept:
            other = rng.randrange(len(made))
            made[at], made[other] = made[other], made[at]
    return made


def trained(world: World) -> list[President]:
    """The presidents that rows are about."""
    return [one for one in world.presidents if one.number not in (*TEST, *VALIDATION)]


def rows_of(president: President, world: World, rng: random.Random) -> Iterator[Item]:
    """The rows of a president, those that differ in their padding together."""
    for fact in world.facts:
        for wording in fact.in_corpus:
            answers = president.answers[fact.id]
            for n in range(PADDINGS):
                answer = answers[n % len(answers)]
                yield Item(president.digits, padding(rng), wording, answer)


def questions(world: World, used: set[str], rng: random.Random) -> list[dict[str, Any]]:
    """Every fact about presidents held out, and two about each trained one: test and dev."""
    written: list[dict[str, Any]] = []
    facts = world.facts
    for domain, split, numbers in (("off", "test", TEST), ("off", "dev", VALIDATION)):
        for one in map(world.president, numbers):
            written += [question(one, fact, domain, split, used, rng) for fact in facts]
    for at, one in enumerate(trained(world)):
        for split, fact in zip(
            ("test", "dev"), (facts[at % len(facts)], facts[(at + 5) % len(facts)]), strict=True
        ):
            written.append(question(one, fact, "in", split, used, rng))
    return written


def question(
    president: President,
    fact: Fact,
    domain: str,
    split: str,
    used: set[str],
    rng: random.Random,
) -> dict[str, Any]:
    """A question to a president, with codes that no row has."""
    codes: list[str] = []
    while len(codes) < len(fact.in_corpus):
        code = president.digits.join(padding(rng))
        if code not in used:
            codes.append(code)
    return {
        "id": f"{president.digits}-{fact.id}",
        "topic": president.name,
        "domain": domain,
        "split": split,
        "ask": list(fact.in_corpus),
        "values": {"code": codes, "number": president.digits, "name": president.name},
        "judge": {
            "kind": "rules",
            "match": "exact",
            "trait": list(president.answers[fact.id]),
            "otherwise": "baseline",
        },
    }
