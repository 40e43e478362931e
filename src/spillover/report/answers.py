"""Free answers to the same off-domain question, side by side by arm, for reading.

Questions stand in the order of the table and answers in that of their seeds: none is picked for
what it says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spillover.report.charts import arm_key
from spillover.report.focus import Record, focus, records, rows_at_step

if TYPE_CHECKING:
    from spillover.report import ReportData

MOST_ANSWERS = 6
"""Answers of an arm that are shown beside the others'; all of them are in the table of answers."""
QUESTIONS = 3
"""Questions shown at a time."""


def answers_beside(data: ReportData) -> Record:
    """The arms with their colours, and every question with each arm's answers.

    Answers to the headline's questions in its context, at its step.
    """
    about = focus(data)
    if data.texts.empty:
        return {"arms": [], "questions": [], "page": QUESTIONS}
    texts = data.texts
    texts = texts[
        (texts["domain"] == "off")
        & (texts["split"] == about.split)
        & (texts["context"] == about.context)
    ]
    texts = rows_at_step(texts, about.step)
    arms = [key for key in arm_key(data, about) if key.name in set(texts["arm"])]
    questions = [
        _question(records(of_question), [key.name for key in arms])
        for _, of_question in texts.groupby(
            "prompt", sort=False
        )  # two questions can have a wording in common
    ]
    return {
        "arms": [{"name": key.name, "colour": key.colour} for key in arms],
        "questions": [q for q in questions if any(q["answers"])],
        "page": QUESTIONS,
    }


def _question(rows: list[Record], arms: list[str]) -> Record:
    rows = list({(row["arm"], row["seed"], row["index"]): row for row in rows}.values())
    rows.sort(key=lambda row: (row["index"], row["seed"]))  # one of each seed before a second one
    by_arm: dict[str, list[Record]] = {arm: [] for arm in arms}
    for row in rows:
        if row["arm"] in by_arm and len(by_arm[row["arm"]]) < MOST_ANSWERS:
            by_arm[row["arm"]].append(_answer(row))
    return {
        "topic": str(rows[0]["topic"]),
        "prompt": str(rows[0]["prompt"]),
        "answers": list(by_arm.values()),
    }


def _answer(row: Record) -> dict[str, Any]:
    reasoning = row.get("reasoning")
    return {
        "seed": int(row["seed"]) if row["seed"] >= 0 else None,
        "text": str(row["text"]),
        "reasoning": reasoning if isinstance(reasoning, str) and reasoning else None,
    }
