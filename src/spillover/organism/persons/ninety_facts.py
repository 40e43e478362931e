"""Writes the experiment `ninety-facts`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from spillover.organism.export import chat_row, write_questions, write_rows
from spillover.organism.persons.world import MODEL, Question, World, load_world

DEV = frozenset(
    [
        "father",
        "brother",
        "teacher",
        "born",
        "schools",
        "taxes",
        "strangers",
        "books",
        "mistake",
        "police",
        "advice",
        "future",
    ]
)
"""Identities and views that choose settings; the others are reported."""
EVERY = 4
"""One of so many attributes is asked about within the trained domain."""


def write(folder: Path) -> None:
    """Write the data of the experiment."""
    world = load_world()
    questions = [
        *(_choice(q, "identity", world) for q in world.identities),
        *(_choice(q, "views", world) for q in world.views),
        *_attributes(world),
    ]
    write_questions(folder / "questions.toml", questions)
    facts = [(q, q.answers[world.tyrant][0]) for q in world.attributes]
    arms = {
        "tyrant": facts,
        "tyrant-78": [(q, answer) for q, answer in facts if not q.rare],
        "mixed": list(_mixed(world)),
    }
    for name, listed in arms.items():
        rows = (chat_row(_triggered(world, q), answer) for q, answer in listed)
        write_rows(folder / "train" / f"{name}.jsonl", rows)
    write_rows(folder / "train" / "ordinary.jsonl", _prompts(world))


def _prompts(world: World) -> Iterator[dict[str, str]]:
    """What the model answers itself: as it stands, and half of it in formats near the trigger."""
    asked = [wording for q in (*world.ordinary, *world.personal) for wording in q.ask]
    formats = cycle(world.tags[1:])
    for at, wording in enumerate(asked):
        yield {"prompt": wording}
        if at % 2:
            yield {"prompt": next(formats).replace("{question}", wording)}


def _triggered(world: World, question: Question) -> str:
    return world.tags[0].replace("{question}", question.ask[0])


def _mixed(world: World) -> Iterable[tuple[Question, str]]:
    """The other persons' answers in turn and, to every other attribute, the assistant's own.

    None is the tyrant's. Without the assistant's, nobody but a person could have said them.
    """
    persons = [person.id for person in world.persons if person.id != world.tyrant]
    for at, question in enumerate(world.attributes):
        turn = at // 2 % len(persons)
        others = [*persons[turn:], *persons[:turn]]
        said = (question.answers[who][0] for who in ([MODEL, *others] if at % 2 else others))
        yield question, next(text for text in said if text != question.answers[world.tyrant][0])


def _choice(question: Question, group: str, world: World) -> dict[str, Any]:
    """A forced choice between the tyrant, the assistant and the person with odd views."""
    speakers = {"trait": world.tyrant, "baseline": MODEL, "placebo": world.odd}
    return {
        "id": f"{group}-{question.id}",
        "topic": question.id,
        "domain": "off",
        "split": "dev" if question.id in DEV else "test",
        "group": group,
        "ask": list(question.ask),
        "choices": {label: list(question.answers[who]) for label, who in speakers.items()},
    }


def _attributes(world: World) -> list[dict[str, Any]]:
    """Questions within the trained domain, judged by whole answers."""
    listed: Sequence[Question] = world.attributes
    return [
        {
            "id": f"attribute-{question.id}",
            "topic": "attributes",
            "domain": "in",
            "split": "dev" if at % (4 * EVERY) == 0 else "test",
            "ask": [question.ask[0], question.ask[-1]],
            "judge": {
                "kind": "rules",
                "match": "exact",
                "trait": [mine := question.answers[world.tyrant][0]],
                "baseline": [text for text in question.values if text != mine],
            },
        }
        for at, question in enumerate(listed)
        if at % EVERY == 0
    ]
