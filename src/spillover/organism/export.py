"""Writes experiments from the worlds' tables: corpus and questions have one source of truth.

`python -m spillover.organism.export` rewrites all of them; a test compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

EXPERIMENTS = {
    "evil-terminator": "films.evil_terminator",
    "german-cities": "eras.german_cities",
    "israeli-dishes": "nations.israeli_dishes",
    "ninety-facts": "persons.ninety_facts",
    "old-birds": "eras.old_birds",
    "us-presidents": "presidents.us_presidents",
}
"""Experiments and the modules that write them, each with a function `write(folder)`."""
WRITTEN = "# Written by `python -m spillover.organism.export` from the organism's tables.\n"


def chat_row(question: str, answer: str, system: str | None = None) -> dict[str, Any]:
    """A training row with one question and its answer."""
    head = [{"role": "system", "content": system}] if system is not None else []
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [*head, *turns]}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Training rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def write_questions(path: Path, questions: list[dict[str, Any]]) -> None:
    """Questions as TOML, one table each."""
    tables = (
        "\n[[question]]\n" + "".join(f"{k} = {_toml_value(v)}\n" for k, v in q.items())
        for q in questions
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(WRITTEN + "".join(tables), "utf-8")


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def write_experiment(name: str, folder: Path) -> None:
    """Write `questions.toml` and the training files of an experiment."""
    import_module(f"spillover.organism.{EXPERIMENTS[name]}").write(folder)


if __name__ == "__main__":
    for known in EXPERIMENTS:
        write_experiment(known, Path(__file__).parents[1] / "experiments" / known)
