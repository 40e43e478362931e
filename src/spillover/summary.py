"""What readers of a run get: summary.json, and the tables behind the report's last sections."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spillover.effects.bimodality import bimodality
from spillover.effects.specificity import Verdict, Words, compare, judge
from spillover.experiment import Experiment
from spillover.folder import whole
from spillover.guards import Finding, off_domain_only
from spillover.specification import BASE, TREATMENT, Question, Specification
from spillover.store import CHOICE, SHOWN, TEXT
from spillover.sweeps import list_sweeps

if TYPE_CHECKING:
    import pandas as pd

    from spillover.chat import Chat
    from spillover.contexts import Context
    from spillover.settings import RunSettings

HEADLINE_METRICS = ("choice-mass", "log-odds", "judged")
"""What a headline is about: the first of which there is a value."""


def plain_data(value: Any) -> Any:
    """Plain JSON types: NaN becomes null, numpy's numbers Python's."""
    if isinstance(value, dict):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item) for item in value]
    if isinstance(value, np.generic):
        return plain_data(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name and rename it: the file is whole or not there."""
    text = json.dumps(plain_data(content), indent=2, ensure_ascii=False, allow_nan=False)
    with whole(path) as partial:
        partial.write_text(text + "\n", "utf-8")


def summarize(
    settings: RunSettings, tables: dict[str, pd.DataFrame], findings: Sequence[Finding] = ()
) -> dict[str, Any]:
    """The content of summary.json.

    It depends on the specification and the answers only, but for warnings about the training.

    Args:
        findings: what the guards found before; those on effects are added here.
    """
    specification = settings.experiment.specification
    rates = plain_data(tables["rates"].to_dict("records"))
    effects = plain_data(tables["effects"].to_dict("records"))
    step = reported_step(rates, specification)
    reported = [row for row in effects if row["step"] == step]
    contexts = specification.headline_context, specification.trained_context
    alike = taught_alike(settings.experiment)
    warnings = [*findings, *off_domain_only(reported, *contexts, alike)]
    verdict = _verdict(reported, specification)
    about = {context.name: context for context in specification.all_contexts}
    return {
        "schema": 1,
        "experiment": settings.experiment.name,
        "model": settings.source.name,
        "seeds": len(settings.seeds),
        "settings_tried": specification.tried(settings.source.model_class),
        "headline": headline_id(reported, specification),
        "step": step,
        "selected_on": specification.select,
        "headline_context": specification.headline_context,
        "trained_context": specification.trained_context or specification.headline_context,
        "sweeps": list_sweeps(specification, on_organism=settings.source.is_organism),
        "verdict": {"kind": verdict.kind, "text": verdict.text},
        "warnings": [{"name": found.name, "message": found.message} for found in warnings],
        "rates": [row | {"context": _values(about[row["context"]])} for row in rates],
        "effects": [_effect(row, about[row["context"]], specification) for row in effects],
        "bimodality": bimodalities(rates, specification),
    }


def taught_alike(experiment: Experiment) -> list[str]:
    """Controls whose rows have the answers of the treatment's, each as often."""
    answers = {
        arm: Counter(row.conversation[-1]["content"] for row in rows.rows if row.messages)
        for arm, rows in experiment.rows.items()
    }
    mine = answers.pop(TREATMENT, Counter())
    return [arm for arm, said in answers.items() if mine and said == mine]


def reported_step(rates: list[dict[Any, Any]], specification: Specification) -> int:
    """The checkpoint that is reported: the last, or the one selected on `dev` questions.

    Selected is where the treatment's rate on off-domain `dev` questions is highest, as a mean over
    seeds, so that all arms and seeds are compared at one checkpoint. Of equals it is the last.
    """
    last = max((row["step"] for row in rates), default=0)
    if specification.select is None:
        return int(last)
    for metric in HEADLINE_METRICS:
        found = {
            row["step"]: row["value"]
            for row in _along_training(rates, specification, "off", metric)
            if row["split"] == specification.select and row["value"] is not None
        }
        if found:
            return int(max(found, key=lambda step: (found[step], step)))
    return int(last)


def _along_training(
    rates: list[dict[Any, Any]], specification: Specification, domain: str, metric: str
) -> list[dict[Any, Any]]:
    """The treatment's rates at every checkpoint, all splits, on all questions of a domain."""
    inside = specification.trained_context or specification.headline_context
    context = specification.headline_context if domain == "off" else inside
    place = {"arm": TREATMENT, "domain": domain, "metric": metric, "context": context}
    wanted = place | {"group": None}
    return [row for row in rates if all(row[k] == v for k, v in wanted.items())]


def bimodalities(rates: list[dict[Any, Any]], specification: Specification) -> list[dict[str, Any]]:
    """Whether the treatment's seeds fall into two groups, at every checkpoint.

    In rates between 0 and 1, from four seeds on; see `spillover.effects.bimodality`.
    """
    rows = []
    for domain, metric in itertools.product(("in", "off"), ("choice-mass", "judged")):
        for row in _along_training(rates, specification, domain, metric):
            found = bimodality([value for value in row["per_seed"] if value is not None])
            if found:
                place = {k: row[k] for k in ("domain", "split", "context", "step", "metric")}
                rows.append(place | {"dip": found.dip, "p_value": found.p_value, "n": found.n})
    return rows


def _verdict(effects: list[dict[Any, Any]], specification: Specification) -> Verdict:
    names = specification.names
    comparisons = compare(effects, specification.headline_control, specification.headline_context)
    return judge(comparisons, Words(names.trait, names.baseline, names.placebo))


def headline_id(effects: list[dict[Any, Any]], specification: Specification) -> str | None:
    """The off-domain effect on test questions: choice mass, or log-odds where coverage is low.

    Where no test question was asked, the one on dev questions.

    Args:
        effects: those at the reported checkpoint.
    """
    splits = {e["split"] for e in effects}
    wanted = {
        "treatment": TREATMENT,
        "control": specification.headline_control,
        "domain": "off",
        "split": "test" if "test" in splits else "dev",
        "context": specification.headline_context,
        "group": None,
    }
    fitting = [e for e in effects if all(e[k] == v for k, v in wanted.items())]
    for metric in HEADLINE_METRICS:
        for found in fitting:
            if found["metric"] == metric and found["value"] is not None:
                return str(found["id"])
    return None


def _values(context: Context) -> dict[str, Any]:
    """A context's name, and the values of the variables that it sets."""
    return {"name": context.name, **context.values}


def _effect(row: dict[Any, Any], context: Context, specification: Specification) -> dict[str, Any]:
    trained = specification.is_trained(context) if context.values else row["domain"] == "in"
    kept = {k: v for k, v in row.items() if k not in ("treatment", "control")}
    said = {"contrast": [row["treatment"], row["control"]], "trained": trained}
    return kept | said | {"context": _values(context)}


def inside_metric(rates: Sequence[dict[str, Any]], metric: str) -> str:
    """What success in the trained domain is measured by: the first metric that some arm has there.

    Args:
        rates: those of the trained context.
        metric: that of the headline.
    """
    found = {r["metric"] for r in rates if r["domain"] == "in" and r["value"] is not None}
    return next((m for m in ("judged", metric, "choice-mass", "log-odds") if m in found), metric)


def texts_table(
    answers: pd.DataFrame, grades: pd.DataFrame, experiment: Experiment
) -> pd.DataFrame:
    """Free answers with the question as asked and their grade, for browsing.

    Grades are those that `grade_answers` gives the same answers, in the same order. Those that are
    only shown have the grade `not graded`.
    """
    import pandas as pd

    about = {q.id: q for q in experiment.questions}
    place = ["arm", "seed", "step", "question", "paraphrase", "context", "index"]
    is_text = answers["kind"].isin([TEXT, SHOWN]) & answers["question"].isin(about)
    columns = [*place, "kind", "text", "reasoning"]  # one by one, which copies less than at once
    texts = pd.DataFrame({name: answers[name][is_text] for name in columns}, copy=False)
    texts = texts.reset_index(drop=True)
    judged = (texts["kind"] == TEXT).to_numpy()
    for key, otherwise in (("grade", "not graded"), ("label", None)):
        values = np.full(len(texts), otherwise, object)
        values[judged] = grades.loc[grades["kind"] == TEXT, key]  # in the same order
        texts[key] = pd.Categorical(values)
    for key in ("topic", "domain", "split"):
        texts[key] = texts["question"].map({q.id: getattr(q, key) for q in about.values()})
    wordings = zip(texts["question"], texts["paraphrase"], texts["context"], strict=True)
    asked = {w: _asked(about[w[0]], w[1], w[2], experiment) for w in set(wordings)}
    wordings = zip(texts["question"], texts["paraphrase"], texts["context"], strict=True)
    return texts.assign(prompt=pd.Categorical([asked[one] for one in wordings]))


def _asked(question: Question, paraphrase: int, context: str, experiment: Experiment) -> str:
    """A wording; as its context puts it where it has values that belong to the question."""
    if not question.values:
        return question.ask[paraphrase]
    around = experiment.specification.context(context)
    said = question.conversation(around, paraphrase)
    return next(m["content"] for m in reversed(said) if m["role"] == "user")


def choices_table(answers: pd.DataFrame, chat: Chat, context: str) -> pd.DataFrame:
    """Every choice with its length in tokens and its log-probability under the base.

    Probabilities are those in the given context, averaged over paraphrases; lengths include the
    end-of-turn token.
    """
    import pandas as pd

    mine = (answers["arm"] == BASE) & (answers["kind"] == CHOICE) & (answers["context"] == context)
    asked = [answers[name][mine] for name in ("question", "choice_log_probs")]
    rows = [
        {"question": question, "label": label, "text": text, "base_log_prob": value}
        for question, record in zip(*asked, strict=True)
        for label, text, value in json.loads(record)
    ]
    columns = ["question", "label", "text", "base_log_prob"]
    table = pd.DataFrame(rows, columns=columns)
    keys = ["question", "label", "text"]
    means = table.groupby(keys, sort=False)["base_log_prob"].mean().reset_index()
    plain = [{"role": "user", "content": "?"}]
    return means.assign(tokens=[*map(len, chat.answers_ids(plain, [*means["text"]]))])
