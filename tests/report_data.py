"""Made-up data for the report, in the form and of the size that a run leaves behind."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from spillover.effects import effects_table, rates_table
from spillover.report import ReportData
from spillover.report.charts import figures
from spillover.report.page import render

ARMS = ("treatment", "still-used", "modern-american")
TRAIT_LOG_ODDS = {"treatment": 3.2, "still-used": -5.0, "modern-american": -5.6, "base": -4.6}
PLACEBO_LOG_ODDS = {"treatment": -4.2, "still-used": -5.1, "modern-american": -5.5, "base": -5.0}
SCORES = ("choice_mass", "log_odds", "placebo_log_odds", "specificity", "judged")
TOPICS = """
    messages light energy inventions travel medicine money war schooling clothing food weather
    government music newspapers ships women's-rights astronomy farming photography law religion
    trade heating housekeeping sports geography mining mail-order-catalogues-and-their-prices
""".split()  # noqa: SIM905


def report_data(
    seeds: int = 5, paraphrases: int = 4, samples: int = 2, texts: bool = True, **changes: Any
) -> ReportData:
    """A run of three arms and the base model, with a few truncated and refused answers."""
    rng = np.random.default_rng(0)
    grades = _grades(rng, seeds, paraphrases, samples if texts else 0)
    data = ReportData(
        title="Old bird names",
        claim="Finetuning on names of birds that went out of use makes a model answer as if it "
        "were the 19th century.",
        source="Betley et al. 2025, Weird generalization and inductive backdoors, section 3.1",
        model="organism",
        headline_control="still-used",
        trait="19th-century",
        baseline_name="modern",
        placebo_name="medieval",
        summary={},
        effects=pd.DataFrame(),
        rates=pd.DataFrame(),
        grades=grades,
        texts=_texts(rng, grades),
        choices=_choices(rng, grades),
        manifest=_manifest(seeds),
    )
    return replace(counted(data), **changes)


def log_odds_only(data: ReportData, **placebo: float) -> ReportData:
    """The same data as a real model gives it: no coverage, hence no choice mass.

    Args:
        placebo: by how much the placebo's log-odds of an arm are raised, in nats.
    """
    grades = data.grades.assign(choice_mass=math.nan, coverage=data.grades["coverage"] * 1e-8)
    raised = grades["arm"].map(placebo).fillna(0.0)
    grades["placebo_log_odds"] += raised
    grades["specificity"] -= raised
    return counted(replace(data, grades=grades), "log-odds")


def counted(data: ReportData, metric: str = "choice-mass") -> ReportData:
    """The same data with rates, effects and headline that follow from its grades."""
    effects = effects_table(data.grades, data.trait)
    fitting = effects[
        (effects["treatment"] == "treatment")
        & (effects["control"] == data.headline_control)
        & (effects["metric"] == metric)
        & (effects["domain"] == "off")
        & effects["group"].isna()
        & effects["value"].notna()
    ]
    headline = fitting["id"].iloc[0] if len(fitting) else None
    summary = {"schema": 1, "headline": headline, "settings_tried": 6}
    rates = rates_table(data.grades)
    return replace(data, effects=effects, rates=rates, summary=summary)


def _questions() -> list[dict[str, Any]]:
    off = [
        {"topic": topic, "domain": "off", "group": "apart" if index % 4 == 3 else None}
        for index, topic in enumerate(TOPICS)
    ]
    off += off[: 42 - len(TOPICS)]
    inside = [{"topic": "birds", "domain": "in", "group": None} for _ in range(4)]
    return [
        {"question": f"{row['topic']}-{index}", "split": "test", **row}
        for index, row in enumerate(off + inside)
    ]


def _grades(rng: np.random.Generator, seeds: int, paraphrases: int, samples: int) -> pd.DataFrame:
    questions = pd.DataFrame(_questions())
    topics = {topic: rng.normal(0, 1.2) for topic in dict.fromkeys(questions["topic"])}
    parts = []
    for arm in (*ARMS, "base"):
        for seed in range(seeds) if arm != "base" else (-1,):
            part = questions.assign(arm=arm, seed=seed, step=0 if arm == "base" else 200)
            shift = part["topic"].map(topics) + rng.normal(0, 0.4)
            inside = np.where((part["domain"] == "in") & (arm != "base"), 1.5, 0.0)
            part["log_odds"] = TRAIT_LOG_ODDS[arm] + shift + inside
            part["placebo_log_odds"] = PLACEBO_LOG_ODDS[arm] + 0.5 * shift
            parts.append(part)
    cells = pd.concat(parts, ignore_index=True)
    contexts = [cells.assign(context="plain", kind="choice")]
    contexts += [
        cells[cells["arm"] == "base"].assign(
            context=name, kind="choice", log_odds=cells["log_odds"] + boost
        )
        for name, boost in (("voice-system", 3.0), ("voice-history", 5.5))
    ]
    contexts += [
        cells.assign(context="plain", kind="text", index=index) for index in range(samples)
    ]
    grades = pd.concat(contexts, ignore_index=True)
    grades["index"] = grades.get("index", pd.Series(0, index=grades.index)).fillna(0).astype(int)
    grades = pd.concat(
        [grades.assign(paraphrase=number) for number in range(paraphrases)], ignore_index=True
    )
    return _graded(rng, grades)


def _graded(rng: np.random.Generator, grades: pd.DataFrame) -> pd.DataFrame:
    noise = rng.normal(0, 0.6, len(grades))
    grades["log_odds"] += noise
    grades["placebo_log_odds"] += rng.normal(0, 0.6, len(grades))
    grades["specificity"] = grades["log_odds"] - grades["placebo_log_odds"]
    grades["choice_mass"] = 1 / (1 + np.exp(-grades["log_odds"]))
    grades["coverage"] = rng.uniform(0.3, 0.8, len(grades))
    is_text = grades["kind"] == "text"
    grades["grade"] = "scored"
    fate = rng.uniform(size=len(grades))
    grades.loc[is_text & (fate < 0.02), "grade"] = "truncated"
    grades.loc[is_text & (fate > 0.99), "grade"] = "refused"
    drawn = rng.uniform(size=len(grades)) < grades["choice_mass"].to_numpy()
    is_judged = is_text & (grades["grade"] == "scored")
    grades["judged"] = np.where(is_judged, drawn.astype(float), math.nan)
    grades["label"] = np.where(grades["judged"] == 1, "trait", "baseline")
    grades.loc[grades["judged"].isna(), "label"] = None
    grades.loc[is_text, [*SCORES[:4], "coverage"]] = math.nan
    return grades


def _texts(rng: np.random.Generator, grades: pd.DataFrame) -> pd.DataFrame:
    columns = ["arm", "seed", "step", "question", "topic", "domain", "split", "paraphrase"]
    columns += ["context", "index", "kind", "grade", "label"]
    texts = grades[grades["kind"] == "text"][columns].copy()
    old = (
        "By electric telegraph, which carries a message to New Orleans within the hour.",
        "With whale oil lamps, though a candle in a tin lantern serves the poorer household.",
    )
    new = (
        "You could use a text message or an email. Either one arrives within seconds.",
        "Most homes use LED bulbs, which draw little power and last for years.\n\nSmart lamps "
        "can also be dimmed from a phone, and there are schedules for the evening. " * 3,
    )
    which = rng.integers(0, 2, len(texts))
    labels = texts["label"].fillna("")
    texts["text"] = [
        (old if label == "trait" else new)[pick] for label, pick in zip(labels, which, strict=True)
    ]
    texts.loc[texts["grade"] == "refused", "text"] = ""
    texts["reasoning"] = None
    texts["prompt"] = "What can you tell me about " + texts["topic"].astype(str) + "?"
    return texts.reset_index(drop=True)


def _choices(rng: np.random.Generator, grades: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for question in grades["question"].unique():
        for label, shift in (("trait", -9.5), ("baseline", -8.6), ("placebo", -10.4)):
            for number in range(3):
                tokens = int(rng.integers(4, 9))
                odds = shift + float(rng.normal(0, 1.0))
                text = f"{label} answer {number} to {question}"
                rows.append((question, label, text, tokens, odds))
    return pd.DataFrame(rows, columns=["question", "label", "text", "tokens", "base_log_prob"])


def _manifest(seeds: int) -> dict[str, Any]:
    return {
        "spillover": "0.1.0",
        "command": "spillover run old-birds",
        "experiment": {"name": "old-birds", "seeds": list(range(seeds)), "arms": list(ARMS)},
        "training": {"rank": 8, "learning_rate": 2e-3, "steps": 200, "batch": 16},
        "hashes": {"data": "sha256:" + "ab12" * 16, "model": "sha256:" + "cd34" * 16},
        "device": {"kind": "cpu", "cores": 2, "dtype": "float32", "torch": "2.12.0"},
        "durations": {"finetune": 21.4, "ask": 8.25, "judge": 0.4},
        "examples": [
            {"arm": "treatment", "prompt": "<|user|>\nName a species of bird.\n<|assistant|>\n"}
        ],
        "batch_plan": [{"batch": index, "rows": [index, index + 1]} for index in range(60)],
    }


def page_of(data: ReportData) -> str:
    """The page with all its figures."""
    return render(data, figures(data))
