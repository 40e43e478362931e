"""The suite: every experiment of the package, and the README's table of what they found."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.errors import InputError, RunFolderError
from spillover.experiment import builtin_experiments, load_experiment
from spillover.failures import failures_in_words
from spillover.folder import is_unused, make_folder, whole
from spillover.organism.worlds import FIRST, checkpoint_name, has_checkpoint
from spillover.reuse import check_folder
from spillover.runs import Run, execute
from spillover.settings import RunSettings, resolve_settings
from spillover.specification import BASE, TREATMENT
from spillover.summary import inside_metric, write_json

if TYPE_CHECKING:
    from spillover.models import Loading
    from spillover.stages import Progress

Record = dict[str, Any]
RUNS, SUITE, TABLE = "runs", "suite.json", "suite.md"
DEFAULT_FOLDER = Path("runs") / "suite"
ORGANISM = "organism"
"""The class of model that training settings for organisms are listed under."""
SUITE_TABLE, MEDIATION = "suite", "mediation"
"""The tables of a README: what stands in the comments around each."""
COLUMNS = (
    "experiment",
    "model",
    "against",
    "context",
    "metric",
    "treatment",
    "control",
    "effect",
    "in-domain",
    "specificity (nats)",
    "coverage",
)


NARROW = ("experiment", "model", "against", "context", "effect", "in-domain", "specificity (nats)")
"""The columns that a terminal has room for."""


@dataclass(frozen=True)
class Suite:
    """A finished suite.

    Attributes:
        content: of suite.json: a row for every experiment and model, and how it was made.
    """

    folder: Path
    content: Record = field(repr=False)

    @property
    def rows(self) -> list[Record]:
        """What every experiment found."""
        found: list[Record] = self.content["rows"]
        return found

    @property
    def table(self) -> str:
        """The rows as a table in Markdown."""
        return markdown(self.content)


def suite(
    only: Sequence[str] = (),
    *,
    models: Sequence[str] = ("organism",),
    seeds: int | Sequence[int] = 5,
    out: str | Path | None = None,
    loading: Loading | None = None,
    progress: Progress | None = None,
) -> Suite:
    """Run all experiments of the package on some models, and put what they found into one table.

    Args:
        only: names of experiments; none means all, on organisms those that have settings for them
            and whose own one is in this installation.
        models: see `spillover.run`; an experiment's own organism is called `organism`.
        out: the folder; every run has one of its own below it, and goes on where it was stopped.

    Raises:
        InputError: for bad input to any of them, before anything is computed.
        RunError: when training fails.
    """
    folder = Path(out) if out else DEFAULT_FOLDER
    known = builtin_experiments()
    for name in only:
        if name not in known:
            raise InputError(f"--only: found {name!r}; expected one of {', '.join(known)}")
    planned = [
        resolve_settings(known[name], model, seeds=seeds, loading=loading)
        for name in known
        for model in models
        if (name in only if only else _has_model(known[name], model))
    ]
    _check_folders(folder, planned)
    rows = []
    for number, settings in enumerate(planned):
        if progress:
            progress("experiments", number, len(planned))
        rows.append(row_of(execute(settings, folder / _place(settings)), settings))
    if progress:
        progress("experiments", len(planned), len(planned))
    content = {"schema": 1, "made": _made(), "rows": rows}
    with failures_in_words(folder):
        make_folder(folder)
        write_json(folder / SUITE, content)
        with whole(folder / TABLE) as partial:
            partial.write_text(markdown(content) + "\n", "utf-8")
    return Suite(folder, json.loads((folder / SUITE).read_text("utf-8")))


def _check_folders(folder: Path, planned: Sequence[RunSettings]) -> None:
    """Make sure that the folder is a suite's, and that each run has one of its own in it."""
    if not is_unused(folder) and not (folder / RUNS).is_dir():
        raise RunFolderError(
            f"{folder}: is not empty and holds no suite; choose an empty or new folder with --out"
        )
    places = [folder / _place(settings) for settings in planned]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice:
        raise InputError(
            f"--model: two of them have the run folder {twice}; give them in suites of their own"
        )
    for settings, place in zip(planned, places, strict=True):
        check_folder(place, settings)


def _has_model(experiment: Path, model: str) -> bool:
    """Whether a model other than an organism is asked for, or the experiment's own is there."""
    if model not in (checkpoint_name(FIRST), checkpoint_name(FIRST, linked=False)):
        return True
    said = load_experiment(experiment).specification
    is_linked = model == checkpoint_name(FIRST)
    return ORGANISM in said.training and has_checkpoint(said.world, linked=is_linked)


def _place(settings: RunSettings) -> Path:
    return Path(RUNS) / f"{settings.experiment.name}-{Path(settings.source.name).name}"


def _made() -> Record:
    """When, and on what."""
    from spillover import __version__

    return {
        "version": __version__,
        "date": datetime.datetime.now().astimezone().date().isoformat(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
    }


def row_of(finished: Run, settings: RunSettings) -> Record:
    """What a run found, in a row: the headline, and what belongs to it."""
    summary, headline = finished.summary, finished.headline
    specification = settings.experiment.specification
    control, step = specification.headline_control, summary["step"]
    metric, split = headline.get("metric", "choice-mass"), headline.get("split", settings.split)
    context, trained = summary["headline_context"], summary["trained_context"]

    def rates(place: str, domain: str) -> list[Record]:
        return [
            row
            for row in summary["rates"]
            if (row["context"]["name"], row["domain"], row["group"]) == (place, domain, None)
            and (row["split"], row["step"]) == (split, 0 if row["arm"] == BASE else step)
        ]

    inside = [row for row in rates(trained, "in") if row["arm"] == TREATMENT]
    success = inside_metric(inside, metric)
    outside = {row["arm"]: row for row in rates(context, "off") if row["metric"] == metric}
    covered = [row["coverage"] for row in outside.values() if row["coverage"] is not None]
    specific = [
        row
        for row in summary["effects"]
        if row["contrast"] == [TREATMENT, control]
        and (row["domain"], row["context"]["name"], row["group"]) == ("off", context, None)
        and (row["metric"], row["split"], row["step"]) == ("specificity", split, step)
    ]
    return {
        "experiment": settings.experiment.name,
        "model": settings.source.name,
        "seeds": len(settings.seeds),
        "contrast": [TREATMENT, control],
        "context": context,
        "metric": metric,
        "treatment": outside.get(TREATMENT, {}).get("value"),
        "control": outside.get(control, {}).get("value"),
        "effect": _ends(headline),
        "in_domain": next((r["value"] for r in inside if r["metric"] == success), None),
        "in_domain_context": trained,
        "specificity": _ends(specific[0] if specific else {}),
        "coverage": min(covered, default=None),
        "verdict": summary["verdict"]["kind"],
        "warnings": len(summary["warnings"]),
        "settings_tried": summary["settings_tried"],
    }


def _ends(effect: Record) -> Record:
    return {key: effect.get(key) for key in ("value", "low", "high")}


# The table ----------------------------------------------------------------------------------------


def markdown(content: Record) -> str:
    """The rows as a table in Markdown, as it stands in the README."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for row in content["rows"]:
        name, model, *others = cells(row)
        lines.append(f"| {' | '.join([f'`{name}`', f'`{model}`', *others])} |")
    return "\n".join(lines)


def cells(row: Record, columns: Sequence[str] = COLUMNS) -> list[str]:
    """A row as texts."""
    unit = " nats" if row["metric"] == "log-odds" else ""
    found = {
        "experiment": row["experiment"],
        "model": row["model"],
        "against": row["contrast"][1],
        "context": row["context"],
        "metric": row["metric"],
        "treatment": _number(row["treatment"]),
        "control": _number(row["control"]),
        "effect": _interval(row["effect"]) + unit,
        "in-domain": _number(row["in_domain"]),
        "specificity (nats)": _interval(row["specificity"]),
        "coverage": _number(row["coverage"]),
    }
    return [found[name] for name in columns]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _interval(effect: Record) -> str:
    if effect["value"] is None:
        return "–"
    bracket = f" [{effect['low']:.2f}, {effect['high']:.2f}]" if effect["low"] is not None else ""
    return f"{effect['value']:+.2f}{bracket}"


def markers(name: str) -> tuple[str, str]:
    """What stands around a table in a README."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def table_in(text: str, name: str = SUITE_TABLE) -> str | None:
    """The table between the markers of a README; None where they are missing."""
    begin, end = map(re.escape, markers(name))
    found = re.search(f"{begin}\n(.*?)\n?{end}", text, re.DOTALL)
    return found[1].strip() if found else None


def update_readme(path: Path, table: str, name: str = SUITE_TABLE) -> None:
    """Put a table between its markers in a README.

    Raises:
        InputError: when it cannot be read, or has no markers.
    """
    text, (begin, end) = read_readme(path, name), markers(name)
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    with whole(path) as partial:
        partial.write_text(f"{before}{begin}\n{table}\n{end}{after}", "utf-8")


def read_readme(path: Path, name: str = SUITE_TABLE) -> str:
    """The text of a README with a place for the table.

    Raises:
        InputError: when it cannot be read, or has no such place.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"--readme {path}: cannot be read ({why})") from None
    if table_in(text, name) is None:
        begin, end = markers(name)
        raise InputError(f"--readme {path}: has no place for the table; write {begin} and {end}")
    return text
