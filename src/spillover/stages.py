"""The stages of a run, from artifact to artifact; `runs.py` puts them in order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover import guards
from spillover.choices import RecordedChoices
from spillover.errors import ChatError, InputError
from spillover.failpoints import failpoint
from spillover.finetune import UNFINISHED, Finetune, finetune, read_losses
from spillover.folder import PARTIAL, whole
from spillover.guards import Finding
from spillover.models import resolve
from spillover.models.loading import load_chat
from spillover.own import answer_prompts, check_prompts
from spillover.reuse import ADAPTERS, ANSWERS, weights_hash
from spillover.settings import RunSettings
from spillover.specification import BASE, TREATMENT

if TYPE_CHECKING:
    import pandas as pd

    from spillover.ask import Asked
    from spillover.chat import Chat
    from spillover.experiment import Experiment
    from spillover.manifest import Job, Manifest
    from spillover.models import LoadedModel
    from spillover.specification import Question
    from spillover.store import AnswerStore

ROW_GROUP = 65_536
"""Rows of a table that are held twice while it is written."""
PROBES = 8
"""Questions whose loss under the unfinetuned model is looked at."""
Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


def check_rows(settings: RunSettings, model: LoadedModel) -> list[Finding]:
    """Encode all rows and find all targets once, so that bad ones stop the run before it starts.

    Returns:
        what the guards found and the run can live with.

    Raises:
        InputError: for what it cannot.
    """
    from spillover.finetune.lora import target_layers
    from spillover.masks import encode_rows
    from spillover.trees import check_branches

    for name, chat in _chats(settings, model):
        check_template(settings.experiment, name, chat)
        _ = chat.turn  # a template without a generation prompt stops here
    rows = settings.experiment.rows
    check_prompts(settings, model)
    encoded = [
        row for listed in rows.values() for row in encode_rows(model.chat, listed, model.context)
    ]
    if settings.training.method == "lora" and settings.experiment.rows:
        target_layers(model, settings.training)
    prompts = [
        model.chat.prompt_ids(question.conversation(context, paraphrase))
        for context in settings.experiment.specification.all_contexts
        for question in settings.experiment.questions
        for paraphrase in range(len(question.ask))
    ]
    _check_lengths(settings, model, max(map(len, prompts)))
    used = [*prompts, *_choices(settings, model), *(row.ids for row in encoded)]
    found = guards.shared_rows(settings.experiment.rows_apart)
    found += guards.ids_out_of_range(used, model.vocabulary)
    guards.settle(found, InputError)
    prompt = _prompt(model, settings.experiment.questions[0])
    check_branches(model.model, prompt, _branches(model), model.pad)
    probes = [_prompt(model, question) for question in settings.experiment.questions[:PROBES]]
    losses = guards.prompt_losses(model, probes)
    found += guards.worse_than_guessing(losses, model.vocabulary)
    return guards.settle(found + check_adapters(settings, model, _ready(settings, 0)), InputError)


def _chats(settings: RunSettings, model: LoadedModel) -> Iterator[tuple[str, Chat]]:
    """The model's chat and those of ready models, which are not loaded yet."""
    yield settings.source.name, model.chat
    for one in settings.ready:
        if not one.is_adapter:
            yield one.source.name, load_chat(one.source, settings.loading)


def _check_lengths(settings: RunSettings, model: LoadedModel, longest: int) -> None:
    """Make sure that the longest prompt leaves room for an answer."""
    sampling = settings.experiment.specification.sampling
    room = max(sampling.max_tokens, sampling.shown_tokens if sampling.shown else 0)
    if model.chat.reasons and model.chat.templating.think is not False:
        room += sampling.reasoning_tokens
    if model.context and longest + room > model.context:
        raise ChatError(
            f"the longest prompt has {longest} tokens and an answer may have {room}, more than "
            f"the {model.context} that the model reads; shorten the contexts, `max_tokens` or "
            "`reasoning_tokens`"
        )


def _branches(model: LoadedModel) -> list[list[int]]:
    """Two texts of equal length in tokens."""
    made = [model.chat.tokenize(text) for text in ("They walked along the river", "It is not far")]
    return [ids[: min(map(len, made))] for ids in made]


def _choices(settings: RunSettings, model: LoadedModel) -> list[list[int]]:
    listed = (q.choices.labelled for q in settings.experiment.questions if q.choices)
    end = model.chat.turn.end
    return [model.chat.tokenize(text + end) for labelled in listed for _, text in labelled]


def _prompt(model: LoadedModel, question: Question) -> list[int]:
    """The prompt of a question, without anything around it."""
    return model.chat.prompt_ids([{"role": "user", "content": question.ask[0]}])


def check_adapters(
    settings: RunSettings, model: LoadedModel, asked: Sequence[Asked]
) -> list[Finding]:
    """What the guards find in finetuned models, before they are asked."""
    last = max((one.step for one in asked), default=0)
    places = {(a.arm, a.seed, a.step): a.place for a in asked if a.step == last}
    losses = {who: read_losses(place) for who, place in places.items() if place}
    prompt = _prompt(model, settings.experiment.questions[0])
    return [
        *guards.losses_did_not_fall(losses),
        *guards.adapters_without_effect(model, asked, prompt),
        *guards.identical_seeds(asked),
    ]


def check_template(experiment: Experiment, name: str, chat: Chat) -> None:
    """Refuse templates that add to every prompt of a dated experiment, unless that is accepted.

    Raises:
        ChatError: when the run would be refused.
    """
    written = chat.injection
    if written is None or not experiment.dated or chat.templating.keep:
        return
    what = "a date" if written.dated else "a system prompt"
    raise ChatError(
        f"the chat template of {name} writes {what} of its own into every prompt "
        f"({written.text[:100]!r}), and this experiment is about dates; give --keep-template to "
        "accept it, or --system TEXT (an empty one will do) where that replaces it"
    )


def finetune_arms(
    settings: RunSettings, model: LoadedModel, manifest: Manifest, notify: Progress
) -> dict[tuple[str, int, int], Path]:
    """Finetune every arm that has rows, the treatment first; see `spillover.finetune`.

    What is there is kept. New arms and seeds are trained by themselves.
    """
    root = manifest.folder / ADAPTERS
    rows = answer_prompts(settings, model, manifest.folder, notify)
    arms = sorted(rows, key=lambda arm: arm != TREATMENT)
    wanted = [(arm, seed) for arm in arms for seed in settings.seeds]

    steps = settings.finetuning.kept_steps(0)

    def is_done(job: Job) -> bool:
        return all((root / job[0] / f"seed-{job[1]}" / f"step-{step}").is_dir() for step in steps)

    def report(done: int, total: int) -> None:
        notify("finetune", done, total)
        failpoint("training")

    new = [job for job in wanted if not is_done(job)]
    plans = manifest.plan(wanted, is_done)
    manifest.write()  # the next session keeps to these plans
    found: dict[tuple[str, int, int], Path] = {}
    for jobs in plans:
        listed = [Finetune(arm, seed, rows[arm]) for arm, seed in jobs]
        found |= finetune(model, listed, settings.finetuning, root, progress=report)
        failpoint("plan")
    shutil.rmtree(root / UNFINISHED, ignore_errors=True)  # of settings that were given up
    manifest.session["adapters"] = {"trained": len(new), "kept": len(wanted) - len(new)}
    hashes = {p.relative_to(root).as_posix(): weights_hash(p) for p in found.values()}
    known = manifest.content["adapters"] | hashes
    manifest.content["adapters"] = {k: v for k, v in known.items() if (root / k).is_dir()}
    return found


def respondents(settings: RunSettings, adapters: dict[tuple[str, int, int], Path]) -> list[Asked]:
    """The base, every adapter and every ready model, each with what it is."""
    from spillover.ask import Asked

    base = settings.source.identity
    listed = [Asked(BASE, -1, 0, base, None)]
    for (arm, seed, step), folder in adapters.items():
        if settings.training.method == "full":
            source = resolve(str(folder))
            listed.append(Asked(arm, seed, step, f"{base}+{weights_hash(folder)}", None, source))
        else:
            listed.append(Asked(arm, seed, step, f"{base}+{weights_hash(folder)}", folder))
    return listed + _ready(settings, max((step for _, _, step in adapters), default=0))


def _ready(settings: RunSettings, step: int) -> list[Asked]:
    """The models that are not trained here, as if they had been trained for `step` steps."""
    from spillover.ask import Asked

    return [
        Asked(
            one.arm,
            one.seed,
            step,
            one.source.identity,
            one.source.adapter if one.is_adapter else None,
            one.source,
        )
        for one in settings.ready
    ]


def ask_all(
    settings: RunSettings,
    model: LoadedModel,
    asked: list[Asked],
    manifest: Manifest,
    notify: Progress,
) -> pd.DataFrame:
    """Ask everything of everybody; the answers, also as answers.parquet."""
    from spillover.ask import ask
    from spillover.ask.local import open_engines
    from spillover.store import AnswerStore

    with AnswerStore(manifest.folder / ANSWERS) as store:
        planned: list[str] = []
        before, parts = store.count(), list(open_engines(model, asked))
        for number, (opened, members) in enumerate(parts):

            def report(done: int, total: int, number: int = number) -> None:
                notify("ask", number * total + done, len(parts) * total)

            with opened() as engine:
                planned += ask(settings.experiment, engine, members, store, report)
            del engine  # the next one may need its memory
        new = store.count() - before
        manifest.session["answers"] = {"asked": new, "kept": len(planned) - new}
        return export_answers(store, planned, manifest.folder)


def export_answers(store: AnswerStore, planned: Sequence[str], folder: Path) -> pd.DataFrame:
    """The planned answers as a table, also as answers.parquet."""
    answers = store.frame(planned)
    export(answers, folder / "answers.parquet")
    return answers


def export(table: pd.DataFrame, path: Path) -> None:
    """Write a table with plain texts, where it has categories, and counts by name as JSON."""
    texts = table.select_dtypes("category").columns
    stored = table.astype(dict.fromkeys(texts, "str"))
    if "missing" in stored and stored["missing"].map(lambda m: isinstance(m, dict)).any():
        stored["missing"] = stored["missing"].map(json.dumps)
    with whole(path) as partial:
        stored.to_parquet(partial, row_group_size=ROW_GROUP)


def check_answers(answers: pd.DataFrame) -> list[Finding]:
    """What the guards find in answers, before they are graded."""
    choices = RecordedChoices.read(answers)
    return [
        *guards.base_answered(answers, choices),
        *guards.equal_choices(answers, choices),
        *guards.reasoning_cut(answers),
    ]


def grade_and_compare(
    settings: RunSettings, answers: pd.DataFrame, folder: Path
) -> dict[str, pd.DataFrame]:
    """Grades, rates and effects, also as parquet files."""
    from spillover.effects import compare
    from spillover.judge import grade_answers

    grades = grade_answers(answers, settings.experiment)
    trait = settings.experiment.specification.names.trait
    rates, effects = compare(grades, trait)
    tables = {"grades": grades, "rates": rates, "effects": effects}
    for name, table in tables.items():
        export(table, folder / f"{name}.parquet")
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
    """Write the report and its figures, each file whole or not at all."""
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
        choices=choices_table(answers, model.chat, specification.headline_context),
        manifest=manifest,
        **tables,
    )
    partial = folder / f"report{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write_report(partial, data)
        failpoint("report")
        _move_files(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_files(made: Path, folder: Path) -> None:
    """Put a finished report in the place of the one before it, figure by figure."""
    (folder / "figures").mkdir(exist_ok=True)
    names = [path.relative_to(made) for path in sorted(made.rglob("*")) if path.is_file()]
    for name in names:
        (made / name).replace(folder / name)
        failpoint("figure")
    for path in (folder / "figures").iterdir():
        if path.relative_to(folder) not in names:
            path.unlink()  # of a report with more figures
