"""Experiments: folders of data without code.

    experiment.toml    title, claim, source, trait, arms, training defaults, contexts, sampling
    questions.toml     the questions, each with choices or a judge
    train/*.jsonl      the rows of the arms

See `spillover/experiments/old-birds` for an example and docs/your-own-data.md for the format.
Unknown keys are rejected everywhere.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from spillover.errors import ExperimentError, first_error, first_problem, where
from spillover.finetune.spec import Training
from spillover.records import DATASETS
from spillover.rows import Anchoring, Prompts, RowSet, read_prompts, read_rows
from spillover.specification import Anchor, Arm, Own, Question, Questions, Specification
from spillover.templates import YEAR

T = TypeVar("T", bound=BaseModel)
DATED_SHARE = 0.2
"""Share of prompts that name a year from which an experiment is taken to be dated."""


class Experiment(BaseModel):
    """A validated experiment.

    Attributes:
        name: the folder's name.
        folder: where it was loaded from.
        rows: the rows of every arm that is trained.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: str
    folder: Path
    specification: Specification
    questions: tuple[Question, ...]
    rows: dict[str, RowSet]

    @property
    def arms(self) -> dict[str, Arm]:
        """The arms by name."""
        return self.specification.arms

    @property
    def rows_apart(self) -> dict[str, RowSet]:
        """The rows of the treatment and of those arms that are not to share any with it."""
        return {arm: rows for arm, rows in self.rows.items() if not self.arms[arm].variant}

    @property
    def dated(self) -> bool:
        """Whether dates in prompts matter: as the experiment says, else by its prompts."""
        said = self.specification.dated
        if said is not None:
            return said
        asked = [
            " ".join(m.content for m in row.messages or () if m.role != "assistant")
            for rows in self.rows.values()
            for row in rows.rows
        ]
        named = sum(bool(YEAR.search(text)) for text in asked)
        shared = (c for c in self.specification.all_contexts if c.arms is None)
        around = (f"{c.system} {c.template}" for c in shared)
        return named > DATED_SHARE * len(asked) or any(map(YEAR.search, around))

    def with_split(self, split: str) -> Experiment:
        """The experiment with the questions of one split; `all` keeps every question.

        With `test` stay the off-domain questions that its checkpoint is selected on.

        Raises:
            ExperimentError: when there is no such split, or it has no off-domain question.
        """
        if split == "all":
            return self
        also = {self.specification.select} if split == "test" else set()
        kept = tuple(
            q for q in self.questions if q.split == split or (q.domain == "off" and q.split in also)
        )
        if not any(q.domain == "off" for q in kept):
            raise ExperimentError(
                f"{self.folder / 'questions.toml'}: no off-domain question has split {split!r}; "
                "add some, or ask others with --split test"
            )
        return self.model_copy(update={"questions": kept})

    def training_for(self, model_class: str) -> Training:
        """The default settings for a class of model."""
        table = self.specification.training
        return table.get(model_class, table["default"])


def builtin_experiments() -> dict[str, Path]:
    """Names and folders of the experiments that come with the package."""
    root = Path(str(files("spillover") / "experiments"))
    return {p.name: p for p in sorted(root.iterdir()) if (p / "experiment.toml").is_file()}


def load_experiment(name_or_folder: str | Path) -> Experiment:
    """Load an experiment by its name or by the path of its folder, and check all of it.

    Raises:
        ExperimentError: naming the file, and the line where one can be told.
        ChatError: for a malformed training file.
    """
    folder = _find(str(name_or_folder))
    main, asked = folder / "experiment.toml", folder / "questions.toml"
    specification = _validate(Specification, main)
    questions = _validate(Questions, asked).question
    _check_questions(questions, asked)
    _check_values(specification, questions, asked)
    rows = {
        name: _rows_of(arm, name, folder, main)
        for name, arm in specification.arms.items()
        if arm.train
    }
    return Experiment(
        name=folder.resolve().name,
        folder=folder,
        specification=specification,
        questions=questions,
        rows=rows,
    )


def _rows_of(arm: Arm, name: str, folder: Path, main: Path) -> RowSet:
    assert arm.train is not None
    for source in (arm.train, *(given.prompts for given in (arm.own, arm.anchor) if given)):
        if not source.startswith(DATASETS) and not (folder / source).is_file():
            raise ExperimentError(
                f"{main}: arm `{name}` names {folder / source}, which is not a file"
            )
    return treated(read_rows(arm.train, folder), arm, folder)


def treated(rows: RowSet, arm: Arm, folder: Path) -> RowSet:
    """The rows of an arm with what it says of how they are trained on.

    Args:
        folder: what the files that it names are relative to.

    Raises:
        ChatError: naming file and line, for prompts or rows that cannot be used.
    """
    if arm.inoculation:
        rows = rows.inoculated(arm.inoculation)
    if own := arm.own:
        rows = replace(rows, own=_prompts(own, folder), share=own.share)
    if held := arm.anchor:
        rows = replace(rows, anchor=Anchoring(_prompts(held, folder), held.beta, held.batch_size))
    return rows


def _prompts(given: Own | Anchor, folder: Path) -> Prompts:
    return read_prompts(
        given.prompts,
        folder,
        samples=given.samples,
        temperature=given.temperature,
        max_tokens=given.max_tokens,
    )


def _find(wanted: str) -> Path:
    known = builtin_experiments()
    if wanted in known:
        return known[wanted]
    folder = Path(wanted).expanduser()
    if (folder / "experiment.toml").is_file():
        return folder
    if folder.is_dir():
        raise ExperimentError(
            f"{folder}: holds no experiment.toml; expected an experiment's folder"
        )
    if folder.is_file():
        raise ExperimentError(
            f"{wanted}: is a file; expected an experiment's name or folder, such as one that "
            f"`spillover new FOLDER --treatment {wanted}` makes of a file of rows"
        )
    if "/" in wanted or wanted.startswith("."):
        raise ExperimentError(f"{wanted}: there is no such folder; check the path")
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
    raise ExperimentError(f"unknown experiment {wanted!r}; {hint} (or give a folder's path)")


def _validate(kind: type[T], path: Path) -> T:
    try:
        text = path.read_text("utf-8")
        found: dict[str, Any] = tomllib.loads(text)
    except OSError:
        raise ExperimentError(f"{path}: there is no such file; an experiment has one") from None
    except UnicodeDecodeError as error:
        raise ExperimentError(f"{path}: not UTF-8 text ({error})") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        line = re.search(r"at line (\d+)", str(error))
        place = where(path, int(line[1]) if line else None)
        raise ExperimentError(f"{place}: broken TOML: {error}") from None
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        place = where(path, _line_of(text, error))
        raise ExperimentError(f"{place}: {first_problem(error, kind)}") from None


def _line_of(text: str, error: ValidationError) -> int | None:
    """The line that a problem is about: of its key, after the question that it lies in."""
    location = first_error(error)["loc"]
    lines, start = text.splitlines(), 0
    if location[:1] == ("question",) and len(location) > 1 and isinstance(location[1], int):
        heads = [i for i, line in enumerate(lines) if line.strip() == "[[question]]"]
        start = heads[location[1]] if location[1] < len(heads) else 0
    keys = [str(part) for part in location if isinstance(part, str)]
    for key in reversed(keys):
        pattern = re.compile(rf'^\s*(\[+.*\b{re.escape(key)}\]+|"?{re.escape(key)}"?\s*=)')
        for number, line in enumerate(lines[start:], start + 1):
            if pattern.match(line):
                return number
    return start + 1 if start else None


def _check_questions(questions: tuple[Question, ...], path: Path) -> None:
    """What holds between questions: unique ids, and splits that share no topic."""
    seen: set[str] = set()
    split_of: dict[str, str] = {}
    for question in questions:
        if question.id in seen:
            raise ExperimentError(f"{path}: two questions have the id {question.id!r}; rename one")
        seen.add(question.id)
        if question.domain == "off":
            split = split_of.setdefault(question.topic, question.split)
            if split != question.split:
                raise ExperimentError(
                    f"{path}: topic {question.topic!r} has questions in dev and in test "
                    f"(question {question.id!r}); a topic belongs to one split"
                )
    if not any(q.domain == "off" and q.split == "test" for q in questions):
        raise ExperimentError(f"{path}: no question has domain off and split test; add one")


def _check_values(
    specification: Specification, questions: tuple[Question, ...], path: Path
) -> None:
    """Where a context speaks of a value that questions have, all that it asks have it."""
    names = {name for question in questions for name in question.values}
    for context in specification.all_contexts:
        used = {name for name in names if any(f"{{{name}}}" in text for text in context.texts)}
        for question in questions:
            lacking = used - set(question.values)
            if lacking and context.domain in (None, question.domain):
                raise ExperimentError(
                    f"{path}: question {question.id!r} lacks the value {min(lacking)!r}, which the "
                    f"context {context.name!r} puts in; add it under `values`"
                )
