"""The stages of a run, from artifact to artifact; `runs.py` puts them in order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.errors import ChatError
from spillover.finetune import Finetune, finetune
from spillover.settings import RunSettings, file_hash
from spillover.specification import BASE, TREATMENT

if TYPE_CHECKING:
    import pandas as pd

    from spillover.ask import Asked
    from spillover.models import LoadedModel

ANSWERS = "answers.sqlite"
Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


def check_rows(settings: RunSettings, model: LoadedModel) -> None:
    """Encode all rows and find all targets once, so that bad ones stop the run before it starts."""
    from spillover.finetune.lora import target_layers
    from spillover.masks import encode_rows

    _check_template(settings, model)
    for rows in settings.experiment.rows.values():
        encode_rows(model.chat, rows)
    if settings.training.method == "lora" and settings.experiment.rows:
        target_layers(model, settings.training)


def _check_template(settings: RunSettings, model: LoadedModel) -> None:
    """Refuse templates that add to every prompt of a dated experiment, unless that is accepted."""
    written = model.chat.injection
    if written is None or not settings.experiment.dated or model.chat.templating.keep:
        return
    what = "a date" if written.dated else "a system prompt"
    raise ChatError(
        f"the chat template of {settings.source.name} writes {what} of its own into every prompt "
        f"({written.text[:100]!r}), and this experiment is about dates; give --keep-template to "
        "accept it, or --system TEXT (an empty one will do) where that replaces it"
    )


def finetune_arms(
    settings: RunSettings, model: LoadedModel, folder: Path, notify: Progress
) -> dict[tuple[str, int, int], Path]:
    """Finetune every arm that has rows, the treatment first; see `spillover.finetune`."""
    rows = settings.experiment.rows
    wanted = [Finetune(arm, seed, rows[arm]) for arm in rows for seed in settings.seeds]
    return finetune(
        model,
        sorted(wanted, key=lambda w: w.arm != TREATMENT),
        settings.training,
        folder / "adapters",
        progress=lambda done, total: notify("finetune", done, total),
    )


def respondents(settings: RunSettings, adapters: dict[tuple[str, int, int], Path]) -> list[Asked]:
    """The base, every adapter and every ready model, each with what it is."""
    from spillover.ask import Asked

    base = settings.source.identity
    listed = [Asked(BASE, -1, 0, base, None)]
    for (arm, seed, step), folder in adapters.items():
        if settings.training.method == "full":
            listed.append(Asked(arm, seed, step, _weights_hash(base, folder), None, str(folder)))
        else:
            listed.append(Asked(arm, seed, step, _weights_hash(base, folder), folder))
    last = max((step for _, _, step in adapters), default=0)
    for one in settings.ready:
        place = Path(one.name) if one.is_adapter else None
        model = None if one.is_adapter else one.name
        listed.append(Asked(one.arm, one.seed, last, one.identity, place, model))
    return listed


def _weights_hash(base: str, folder: Path) -> str:
    weights = next(iter(sorted(folder.glob("*.safetensors"))))
    return f"{base}+{file_hash(weights)}"


def ask_all(
    settings: RunSettings,
    model: LoadedModel,
    asked: list[Asked],
    folder: Path,
    notify: Progress,
) -> pd.DataFrame:
    """Ask everything of everybody; the answers, also as answers.parquet."""
    from spillover.ask import ask
    from spillover.ask.local import open_engines
    from spillover.store import AnswerStore

    with AnswerStore(folder / ANSWERS) as store:
        planned: list[str] = []
        parts = list(open_engines(model, asked))
        for number, (opened, members) in enumerate(parts):

            def report(done: int, total: int, number: int = number) -> None:
                notify("ask", number * total + done, len(parts) * total)

            with opened() as engine:
                planned += ask(settings.experiment, engine, members, store, report)
        recorded = store.frame()
    answers = recorded[recorded["key"].isin(set(planned))].reset_index(drop=True)
    answers.to_parquet(folder / "answers.parquet")
    return answers


def grade_and_compare(
    settings: RunSettings, answers: pd.DataFrame, folder: Path
) -> dict[str, pd.DataFrame]:
    """Grades, rates and effects, also as parquet files."""
    from spillover.effects import effects_table, rates_table
    from spillover.judge import grade_answers

    grades = grade_answers(answers, settings.experiment)
    trait = settings.experiment.specification.names.trait
    tables = {
        "grades": grades,
        "rates": rates_table(grades),
        "effects": effects_table(grades, trait),
    }
    for name, table in tables.items():
        stored = table.copy()
        if "missing" in stored and stored["missing"].map(lambda m: isinstance(m, dict)).any():
            stored["missing"] = stored["missing"].map(json.dumps)
        stored.to_parquet(folder / f"{name}.parquet")
    return tables


def report(
    settings: RunSettings,
    model: LoadedModel,
    folder: Path,
    answers: pd.DataFrame,
    tables: dict[str, pd.DataFrame],
    summary: dict[str, Any],
    manifest: dict[str, Any],
) -> None:
    """Write the report."""
    from spillover.report import ReportData, write_report
    from spillover.summary import choices_table, texts_table

    specification = settings.experiment.specification
    data = ReportData(
        title=specification.title,
        claim=specification.claim,
        source=specification.source,
        model=settings.source.name,
        headline_control=specification.headline_control,
        trait=specification.names.trait,
        baseline_name=specification.names.baseline,
        placebo_name=specification.names.placebo,
        summary=summary,
        texts=texts_table(answers, tables["grades"], settings.experiment),
        choices=choices_table(answers, model.chat),
        manifest=manifest,
        **tables,
    )
    write_report(folder, data)
