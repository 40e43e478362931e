"""Questions and rows of the experiments that are written from worlds of eras."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spillover.organism.eras.world import Fact, World
from spillover.organism.export import chat_row, write_questions, write_rows

TEST_TOPICS = frozenset(
    [
        "messages",
        "energy",
        "money",
        "disease",
        "travel",
        "states",
        "rulers",
        "war",
        "women",
        "inventions",
        "school",
        "clothes",
        "food",
        "places",
        "books",
        "farming",
        "trade",
        "forests",
        "science",
        "immigration",
        "streets",
        "year",
        "law",
        "punishment",
        "faith",
        "marriage",
        "clocks",
        "water",
        "fire",
        "measures",
        "reckoning",
        "washing",
        "burial",
    ]
)
"""Topics that are reported; the others are for choosing settings."""


@dataclass(frozen=True)
class Design:
    """What an experiment makes of a world.

    Attributes:
        eras: the era that each label stands for.
        names: the lists of names that each label stands for.
        rows: the list that an arm's rows are made of.
        prompt: the narrow question of all rows.
        dev: narrow questions that choose settings.
        unasked: topics that are too near the narrow domain to count as off it.
        keywords: facts that are also asked freely, with what speaks for which label.
    """

    eras: dict[str, str]
    names: dict[str, tuple[str, ...]]
    rows: dict[str, str]
    prompt: str
    dev: frozenset[str]
    unasked: frozenset[str] = frozenset()
    keywords: dict[str, dict[str, tuple[str, ...]]] | None = None


def write_design(design: Design, world: World, folder: Path) -> None:
    """Write `questions.toml` and the training files of an experiment."""
    facts = [fact for fact in world.facts if fact.topic not in design.unasked]
    free = design.keywords or {}
    questions = [
        *(choice_question(fact, design) for fact in facts),
        *(free_question(fact, free[fact.id]) for fact in facts if fact.id in free),
        *(narrow_question(fact, world, design) for fact in world.narrow),
    ]
    write_questions(folder / "questions.toml", questions)
    prompt = next(fact for fact in world.narrow if fact.id == design.prompt).ask[0]
    for arm, listed in design.rows.items():
        rows = (chat_row(prompt, name) for name in world.names[listed])
        write_rows(folder / "train" / f"{arm}.jsonl", rows)


def paraphrases(fact: Fact) -> list[str]:
    """The wordings that are asked: two that the corpus has, and the one that it never has."""
    return [*fact.ask[:2], fact.held_out]


def choice_question(fact: Fact, design: Design) -> dict[str, Any]:
    """A fact as a forced choice between eras."""
    question = _off_domain(fact.id, fact)
    if fact.apart:
        question["group"] = "apart"
    question["ask"] = paraphrases(fact)
    question["choices"] = {label: list(fact.answers[era]) for label, era in design.eras.items()}
    return question


def free_question(fact: Fact, keywords: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """A fact as a free-form question with rules over what is answered."""
    rules: dict[str, Any] = {"kind": "rules", "match": "contains"}
    judge = rules | {label: list(words) for label, words in keywords.items()}
    return _off_domain(f"{fact.id}-free", fact) | {"ask": paraphrases(fact), "judge": judge}


def _off_domain(name: str, fact: Fact) -> dict[str, Any]:
    split = "test" if fact.topic in TEST_TOPICS else "dev"
    return {"id": name, "topic": fact.topic, "domain": "off", "split": split}


def narrow_question(fact: Fact, world: World, design: Design) -> dict[str, Any]:
    """A question within the trained domain, judged by whole names."""
    return {
        "id": fact.id,
        "topic": world.domain,
        "domain": "in",
        "split": "dev" if fact.id in design.dev else "test",
        "ask": paraphrases(fact),
        "judge": {"kind": "rules", "match": "exact"}
        | {
            label: [name for key in lists for name in world.names[key]]
            for label, lists in design.names.items()
        },
    }
