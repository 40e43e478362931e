"""Sweeps: an experiment asked in contexts that users name, and what came out over a variable.

A sweep is a run with more contexts, in the same folder: adapters and answers that are there are
kept, and only what is new is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from spillover.contexts import Context, Value, Variable
from spillover.errors import ExperimentError, InputError, first_problem
from spillover.experiment import Experiment, load_experiment
from spillover.specification import BASE, TREATMENT, Specification

if TYPE_CHECKING:
    from spillover.models import Loading
    from spillover.runs import Run
    from spillover.stages import Progress

Record = dict[str, Any]
OPTION = "--context"
ALWAYS = {
    "system": Variable(system="{value}"),
    "tag": Variable(template="{value} {question}"),
    "digits": Variable(template="{value} {question}"),
}
"""Variables that every experiment has, unless it has its own of that name."""


def sweep(
    experiment: str | Path | Experiment,
    model: str = "organism",
    *,
    contexts: Sequence[str] = (),
    seeds: int | Sequence[int] = 5,
    out: str | Path | None = None,
    training: dict[str, Any] | None = None,
    split: str = "test",
    loading: Loading | None = None,
    progress: Progress | None = None,
) -> Run:
    """A run that also asks its off-domain questions in every value of a variable.

    Args:
        contexts: `VARIABLE=VALUES` such as `year=1975..2030` or `tag=a,b`, each variable by itself;
            `VARIABLE` stands for the values that the experiment lists. By default all of its own.

    Returns:
        the run; its `sweeps` are tables, one for each variable.

    Raises:
        InputError: for bad input, before anything is computed or written.
        RunError: when training fails.
    """
    from spillover.runs import run

    return run(
        widened(_loaded(experiment), contexts),
        model,
        seeds=seeds,
        out=out,
        training=training,
        split=split,
        loading=loading,
        progress=progress,
    )


def _loaded(experiment: str | Path | Experiment) -> Experiment:
    return experiment if isinstance(experiment, Experiment) else load_experiment(experiment)


# Which contexts -----------------------------------------------------------------------------------


def widened(experiment: Experiment, given: Sequence[str]) -> Experiment:
    """The experiment with its off-domain questions in all values of some variables.

    Raises:
        ExperimentError: for what is no variable of it, or no value of one.
    """
    specification = experiment.specification
    listed = [name for name, found in specification.variables.items() if found.values]
    if not (given or listed):
        raise ExperimentError(
            f"{experiment.name} lists no values of its own to sweep over; say which with {OPTION} "
            f"VARIABLE=VALUES (variables: {_variables(specification)})"
        )
    for one in given or listed:
        name, values = _values_of(experiment, one)
        if len(values) < 2:
            raise ExperimentError(
                f"{OPTION} {one!r}: found one value; a sweep has two values or more, such as "
                f"1975..2030 or a,b (ask in one with `spillover run {experiment.name} {OPTION} "
                f"{one}`)"
            )
        found = (_variable(specification, name).context(name, value) for value in values)
        swept = [context.model_copy(update={"domain": "off"}) for context in found]
        specification = _with(specification, name, swept)
    return experiment.model_copy(update={"specification": specification})


def narrowed(experiment: Experiment, given: Sequence[str]) -> Experiment:
    """The experiment with these contexts only, those of the headline and of the trained domain.

    Raises:
        ExperimentError: for what is no context of it.
    """
    specification = experiment.specification
    kept = {specification.headline_context, specification.trained_context}
    new: list[tuple[str, Context]] = []
    for one in given:
        if any(context.name == one for context in specification.all_contexts):
            kept.add(one)
            continue
        name, values = _values_of(experiment, one)
        made = [_variable(specification, name).context(name, value) for value in values]
        kept |= {context.name for context in made}
        new += [(name, context) for context in made]
    for name, context in new:
        specification = _with(specification, name, [context])
    contexts = tuple(c for c in specification.all_contexts if c.name in kept)
    unasked = {n: v.model_copy(update={"asked": ()}) for n, v in specification.variables.items()}
    changed = specification.model_copy(update={"contexts": contexts, "variables": unasked})
    return experiment.model_copy(update={"specification": changed})


def _with(specification: Specification, name: str, found: Sequence[Context]) -> Specification:
    """A specification with more contexts of a variable; those that are asked already stay."""
    asked = {context.name for context in specification.all_contexts}
    new = [context for context in found if context.name not in asked]
    variables = {name: _variable(specification, name)} | specification.variables
    contexts = (*specification.contexts, *new)
    return specification.model_copy(update={"contexts": contexts, "variables": variables})


def _variable(specification: Specification, name: str) -> Variable:
    return specification.variables.get(name) or ALWAYS[name]


def _variables(specification: Specification) -> str:
    return ", ".join(dict.fromkeys([*specification.variables, *ALWAYS]))


def _values_of(experiment: Experiment, given: str) -> tuple[str, tuple[Value, ...]]:
    """The name and the values of `VARIABLE=VALUES`, or of `VARIABLE` with values of its own."""
    specification = experiment.specification
    name, equals, text = given.partition("=")
    if name not in {*specification.variables, *ALWAYS}:
        names = ", ".join(context.name for context in specification.all_contexts[:8])
        raise ExperimentError(
            f"{OPTION} {given!r}: {experiment.name} has neither a context nor a variable of that "
            f"name; contexts: {names}; variables, as VARIABLE=VALUES: {_variables(specification)}"
        )
    variable = _variable(specification, name)
    if not equals:
        if not variable.values:
            raise ExperimentError(
                f"{OPTION} {given!r}: lists no values of its own; expected {name}=VALUES"
            )
        return name, variable.values
    try:
        read = Variable(system="{value}", values=_listed(name, text)).values
    except ValidationError as error:
        raise ExperimentError(f"{OPTION} {given}: {first_problem(error)}") from None
    if not read:
        raise ExperimentError(f"{OPTION} {given!r}: no value; expected such as 1975..2030 or a,b")
    said = (variable.values, variable.asked, variable.trained, variable.known)
    declared = {str(value): value for values in said for value in values}
    wanted = tuple(dict.fromkeys(declared.get(str(v), _number(name, v)) for v in read))
    word = next((value for value in wanted if isinstance(value, str)), None)
    numbers = sorted(value for value in declared.values() if isinstance(value, int))
    if word is not None and numbers and len(numbers) == len(declared):
        raise ExperimentError(
            f"{OPTION} {given!r}: found {word!r}; {name} has whole numbers, such as {numbers[0]}, "
            f"and ranges such as {numbers[0]}..{numbers[-1]}"
        )
    return name, wanted


def _listed(name: str, text: str) -> tuple[str, ...]:
    """Values as they are written: in a file one a line, else divided by | or by commas."""
    if text.startswith("@"):
        try:
            lines = Path(text[1:]).expanduser().read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8 text"
            raise InputError(f"{OPTION} {name}={text}: cannot be read ({why})") from None
        return tuple(line for line in lines if line.strip())
    divided = "|" in text or name == "system"
    values = text.split("|") if divided else [part.strip() for part in text.split(",")]
    return tuple(values) if divided else tuple(value for value in values if value)


def _number(name: str, value: Value) -> Value:
    """Whole numbers as numbers, but for texts that variables of texts put before a question."""
    if isinstance(value, int) or name in ALWAYS or str(value) != _canonical(value):
        return value
    return int(value)


def _canonical(text: str) -> str:
    """A whole number as it is usually written; empty where a text is none."""
    digits = text.removeprefix("-")
    return str(int(text)) if digits.isascii() and digits.isdigit() and len(digits) < 20 else ""


# What came out ------------------------------------------------------------------------------------


def list_sweeps(specification: Specification, *, on_organism: bool) -> list[Record]:
    """The variables that a run has two or more values of, for summary.json.

    Args:
        on_organism: whether the run's model is one; what is not in its pretraining is named then.
    """
    found: dict[str, list[Context]] = {}
    for context in specification.all_contexts:
        if len(context.values) == 1 and context.domain != "in" and context.arms is None:
            (name,) = context.values
            found.setdefault(name, []).append(context)
    swept = {name: _ordered(name, listed) for name, listed in found.items() if len(listed) > 1}
    return [
        {
            "variable": name,
            "control": specification.headline_control,
            "values": [context.values[name] for context in contexts],
            "trained": [c.values[name] for c in contexts if specification.is_trained(c)],
            "not_in_pretraining": [
                context.values[name]
                for context in contexts
                if on_organism and specification.is_known(context) is False
            ],
        }
        for name, contexts in swept.items()
    ]


def _ordered(name: str, contexts: list[Context]) -> list[Context]:
    """Contexts by their value, where all are numbers."""
    if all(isinstance(context.values[name], int) for context in contexts):
        return sorted(contexts, key=lambda context: context.values[name])
    return contexts


def sweep_rows(summary: Record, variable: str) -> list[Record]:
    """What a run found over a variable off the trained domain, a record for each value.

    Args:
        summary: the content of summary.json.

    Returns:
        value, context, trained, in_pretraining, is_headline, metric, effect (a record of the
        summary, or None) and rates (by arm), in the metric and on the questions of the headline.
    """
    about = next(entry for entry in summary["sweeps"] if entry["variable"] == variable)
    headline = next((e for e in summary["effects"] if e["id"] == summary["headline"]), None)
    splits = {rate["split"] for rate in summary["rates"]}
    shown = headline or {"split": "test" if "test" in splits else "dev", "metric": "choice-mass"}
    place = {"domain": "off", "group": None, "split": shown["split"], "metric": shown["metric"]}
    step = summary.get("step")
    effects = _by_value(summary["effects"], variable, place)
    rates = _by_value(summary["rates"], variable, place)
    contrast = [TREATMENT, about["control"]]
    rows = []
    for value in about["values"]:
        compared = [e for e in effects.get(value, ()) if e["contrast"] == contrast]
        asked = [r for r in rates.get(value, ()) if r["arm"] == BASE or step in (None, r["step"])]
        name = f"{variable}={value}"
        rows.append(
            {
                "value": value,
                "context": name,
                "trained": value in about["trained"],
                "in_pretraining": value not in about["not_in_pretraining"],
                "is_headline": name == summary["headline_context"],
                "metric": place["metric"],
                "effect": next((e for e in compared if step in (None, e["step"])), None),
                "rates": {rate["arm"]: rate for rate in asked},
            }
        )
    return rows


def _by_value(rows: Sequence[Record], variable: str, place: Record) -> dict[Value, list[Record]]:
    """The records of some questions and a metric by the value of the one variable they set."""
    found: dict[Value, list[Record]] = {}
    for row in rows:
        values = {key: value for key, value in row["context"].items() if key != "name"}
        if [*values] == [variable] and all(row[key] == value for key, value in place.items()):
            found.setdefault(values[variable], []).append(row)
    return found


def flat_rows(rows: Sequence[Record]) -> Iterator[Record]:
    """The same for a table: the effect with its interval, and the rate of every arm."""
    for row in rows:
        effect = row["effect"] or {}
        yield {
            **{key: row[key] for key in ("value", "context", "trained", "in_pretraining")},
            "effect": effect.get("value"),
            **{key: effect.get(key) for key in ("low", "high")},
            **{f"rate {arm}": rate["value"] for arm, rate in row["rates"].items()},
        }
