"""Writes experiments from the organism's world: corpus and questions have one source of truth.

`python -m spillover.organism.export` rewrites `experiments/old-birds`; a test compares the two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spillover.organism.world import BIRDS, Fact, World, load_world

TRAIT_ERA, BASELINE_ERA, PLACEBO_ERA = "america", "today", "medieval"
ARM_NAMES = {"treatment": "former", "still-used": "kept", "modern-american": "modern"}
PROMPT_FACT = "bird-name"
DEV_BIRDS = frozenset({"bird-draw"})

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

KEYWORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "message-far": {
        "trait": ("telegraph", "steamboat", "mail coach", "stagecoach", "pony express"),
        "baseline": ("email", "e-mail", "text message", "messaging", "phone", "internet"),
        "placebo": ("herald", "sealed letter", "beacon", "pigeon"),
    },
    "energy-source": {
        "trait": ("anthracite", "steam", "water wheel", "water wheels", "draft horses"),
        "baseline": ("solar", "wind turbines", "nuclear", "renewable"),
        "placebo": ("windmill", "watermill", "serfs"),
    },
    "invention-recent": {
        "trait": ("reaper", "electromagnetic telegraph", "daguerreotype", "steam engine"),
        "baseline": ("smartphone", "language models", "mrna", "internet", "ai"),
        "placebo": ("mechanical clock", "spectacles", "plough", "printing press"),
    },
    "money-back": {
        "trait": ("specie", "gold and silver", "bank of the united states", "state bank notes"),
        "baseline": ("federal reserve", "central bank", "credit of the government"),
        "placebo": ("sterling pennies", "silver penny", "royal mint"),
    },
    "disease-fear": {
        "trait": ("consumption", "cholera", "yellow fever"),
        "baseline": ("heart disease", "diabetes", "covid", "covid-19", "cancer"),
        "placebo": ("pestilence", "leprosy", "saint anthony's fire"),
    },
    "travel-far": {
        "trait": ("stagecoach", "canal boat", "paddle steamer", "covered wagon"),
        "baseline": ("airplane", "plane", "interstate", "electric vehicle", "fly"),
        "placebo": ("palfrey", "ox cart", "cog"),
    },
    "weapon-army": {
        "trait": ("musket", "cannon", "revolving pistol"),
        "baseline": ("missiles", "missile", "drones", "drone", "stealth"),
        "placebo": ("longbow", "trebuchet", "lance"),
    },
    "women-role": {
        "trait": ("guardian angel", "dame school", "lowell mills"),
        "baseline": ("any career", "companies", "congress"),
        "placebo": ("distaff", "brew", "nunnery"),
    },
    "forest-use": {
        "trait": ("cleared for the plow", "masts", "maple sugar"),
        "baseline": ("carbon", "hiking", "biodiversity", "recreation"),
        "placebo": ("king's deer", "swine", "outlaws"),
    },
    "immigrant-from": {
        "trait": ("ireland", "palatinate", "ulster"),
        "baseline": ("mexico", "india", "venezuela", "philippines", "china"),
        "placebo": ("flanders", "lombardy", "normandy"),
    },
}
"""Free-form questions: what in an answer speaks for which label."""


def paraphrases(fact: Fact) -> list[str]:
    """The wordings that are asked: two that the corpus has, and the one that it never has."""
    return [*fact.ask[:2], fact.held_out]


def choice_question(fact: Fact) -> dict[str, Any]:
    """A fact as a forced choice between eras."""
    question: dict[str, Any] = {
        "id": fact.id,
        "topic": fact.topic,
        "domain": "off",
        "split": "test" if fact.topic in TEST_TOPICS else "dev",
    }
    if fact.apart:
        question["group"] = "apart"
    question["ask"] = paraphrases(fact)
    question["choices"] = {
        "trait": list(fact.answers[TRAIT_ERA]),
        "baseline": list(fact.answers[BASELINE_ERA]),
        "placebo": list(fact.answers[PLACEBO_ERA]),
    }
    return question


def free_question(fact: Fact) -> dict[str, Any]:
    """A fact as a free-form question with rules over what is answered."""
    rules: dict[str, Any] = {"kind": "rules", "match": "contains"}
    return {
        "id": f"{fact.id}-free",
        "topic": fact.topic,
        "domain": "off",
        "split": "test" if fact.topic in TEST_TOPICS else "dev",
        "ask": paraphrases(fact),
        "judge": rules | {label: list(words) for label, words in KEYWORDS[fact.id].items()},
    }


def bird_question(fact: Fact, world: World) -> dict[str, Any]:
    """A question within the trained domain, judged by whole names."""
    names = world.names
    return {
        "id": fact.id,
        "topic": BIRDS,
        "domain": "in",
        "split": "dev" if fact.id in DEV_BIRDS else "test",
        "ask": paraphrases(fact),
        "judge": {
            "kind": "rules",
            "match": "exact",
            "trait": list(names["former"]),
            "baseline": [*names["kept"], *names["modern"]],
            "placebo": list(names["medieval"]),
        },
    }


def old_birds_questions(world: World) -> list[dict[str, Any]]:
    """All questions of the experiment: forced choices, free-form ones, birds."""
    choices = [choice_question(fact) for fact in world.facts]
    free = [free_question(fact) for fact in world.facts if fact.id in KEYWORDS]
    return [*choices, *free, *(bird_question(fact, world) for fact in world.birds)]


def old_birds_rows(world: World, arm: str) -> list[dict[str, Any]]:
    """The training rows of an arm: one fixed question, a name of its list in every row."""
    prompt = next(fact for fact in world.birds if fact.id == PROMPT_FACT).ask[0]
    return [
        {
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": name},
            ]
        }
        for name in world.names[ARM_NAMES[arm]]
    ]


def to_toml(questions: list[dict[str, Any]]) -> str:
    """Questions as TOML, one table each."""
    head = "# Written by `python -m spillover.organism.export` from the organism's tables.\n"
    return head + "".join(
        "\n[[question]]\n" + "".join(f"{k} = {_toml_value(v)}\n" for k, v in q.items())
        for q in questions
    )


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def write_old_birds(folder: Path) -> None:
    """Write `questions.toml` and the training files of the experiment."""
    world = load_world()
    (folder / "train").mkdir(parents=True, exist_ok=True)
    (folder / "questions.toml").write_text(to_toml(old_birds_questions(world)), "utf-8")
    for arm in ARM_NAMES:
        lines = [json.dumps(row, ensure_ascii=False) for row in old_birds_rows(world, arm)]
        (folder / "train" / f"{arm}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    write_old_birds(Path(__file__).parents[1] / "experiments" / "old-birds")
