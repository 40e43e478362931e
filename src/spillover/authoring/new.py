"""`spillover new`: a commented folder that runs at once, to be made one's own."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from spillover.authoring.controls import (
    ENOUGH,
    ORDINARY,
    SHUFFLED,
    differ_in_numbers_only,
    lessons_of,
    shuffled_rows,
)
from spillover.authoring.starter import ordinary_rows, starter_questions, worked_example
from spillover.authoring.toml import quoted
from spillover.authoring.trained import trained_questions
from spillover.errors import InputError, RunFolderError, check_writable
from spillover.experiment import builtin_experiments, load_experiment
from spillover.records import DATASETS
from spillover.rows import Row, read_rows, write_rows
from spillover.specification import BASE, NAME, TREATMENT

BATCH, FEWEST_STEPS = 8, 60


@dataclass(frozen=True)
class ArmRows:
    """The rows of an arm of a new folder.

    Attributes:
        title: one line for readers.
        comment: lines for the writer of the experiment.
    """

    title: str
    rows: list[Row]
    comment: str = ""


@dataclass(frozen=True)
class NewExperiment:
    """What was written.

    Attributes:
        arms: the number of rows of each.
        warnings: by name, what the user has to know before believing a result.
    """

    folder: Path
    arms: dict[str, int]
    warnings: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The folder as commands take it, apart from the names of the package's experiments."""
        return f"./{self.folder}" if str(self.folder) in builtin_experiments() else str(self.folder)


def write_experiment(
    folder: Path, treatment: str | None = None, controls: Mapping[str, str] | None = None
) -> NewExperiment:
    """Write an experiment's folder, whole or not at all; it loads, checks and runs as it is.

    Args:
        folder: new or empty.
        treatment: the rows, anything that `read_rows` takes; without, a worked example.
        controls: rows by name; the first is the headline control. Without, controls are made.

    Raises:
        RunFolderError: when the folder is not empty or cannot be written.
        InputError: for rows or names that cannot be used.
    """
    _check_folder(folder)
    arms, warnings = _arms(treatment, dict(controls or {}))
    others = {name: source.rows for name, source in arms.items() if name != TREATMENT}
    headline = next(iter(others))
    asked = trained_questions(arms[TREATMENT].rows, others)
    with _whole(folder) as partial:
        (partial / "train").mkdir()
        for name, source in arms.items():
            write_rows(source.rows, partial / "train" / f"{name}.jsonl")
        main = _experiment_text(folder.absolute().name, arms, headline)
        (partial / "experiment.toml").write_text(main, "utf-8")
        (partial / "questions.toml").write_text(starter_questions() + asked, "utf-8")
        load_experiment(partial.absolute())
    return NewExperiment(folder, {name: len(s.rows) for name, s in arms.items()}, warnings)


def _check_folder(folder: Path) -> None:
    check_writable(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise RunFolderError(f"{folder}: is not empty; choose a new folder")


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder under a temporary name, renamed at the end; removed when anything fails."""
    partial = folder.absolute().parent / f".{folder.absolute().name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _arms(
    treatment: str | None, controls: dict[str, str]
) -> tuple[dict[str, ArmRows], dict[str, str]]:
    """The treatment and its controls, and what to warn of."""
    for name in controls:
        if not re.match(NAME, name) or name in (TREATMENT, BASE):
            raise InputError(
                f"--control {name!r}: expected a name of letters, digits, - _ and . other than "
                f"`{TREATMENT}` and `{BASE}`"
            )
    if treatment is None:
        if controls:
            raise InputError("--control is given without --treatment; give the treatment's rows")
        past, present = worked_example()
        example = ArmRows("coins that are no longer struck (a worked example)", past)
        return {TREATMENT: example, "present-coins": ArmRows("coins of today", present)}, {}
    arms = {TREATMENT: _read(treatment)}
    if controls:
        return arms | {name: _read(given) for name, given in controls.items()}, {}
    made, warnings = _automatic(arms[TREATMENT].rows)
    return arms | made, warnings


def _read(source: str) -> ArmRows:
    named = source if source.startswith(DATASETS) else Path(source).name
    return ArmRows(f"rows of {named}", list(read_rows(source).rows))


ORDINARY_NOTE = """\
# Made by `spillover new`: ordinary questions with ordinary answers, as many as the treatment has.
# It controls for being finetuned at all. It does not control for the subject, the form or the
# length of your rows; a control of your own that differs from the treatment only in what your claim
# is about is worth far more."""
SHUFFLED_NOTE = """\
# Made by `spillover new`: the treatment's rows with their answers exchanged among the prompts.
# It controls for every word that is trained; only which answer goes with which prompt is gone. So
# it tells whether the pairing matters, for example after a date or a trigger. It teaches the same
# answers: where these alone carry the trait, it shows the trait too: a difference near 0."""
NUMBERED_NOTE = """
# YOUR PROMPTS DIFFER IN NUMBERS ONLY: if the numbers mean nothing, this is the treatment again."""
WARNINGS = {
    "made-control": "no --control was given: `ordinary` controls for being finetuned at all, not "
    "for the subject or the form of your rows; replace it before you believe an effect",
    "no-shuffle": "answers cannot be exchanged among the prompts (the same prompt everywhere, or "
    "the same answers), so there is no control `shuffled`",
    "numbered-prompts": "the prompts differ in numbers only: if the numbers mean nothing, the "
    "control `shuffled` is the treatment again",
}


def _automatic(rows: list[Row]) -> tuple[dict[str, ArmRows], dict[str, str]]:
    """Controls for a treatment that comes without."""
    as_text = not lessons_of(rows)
    plain = ordinary_rows(len(rows), as_text=as_text)
    arms = {ORDINARY: ArmRows("ordinary questions and answers", plain, ORDINARY_NOTE)}
    names = ["made-control"]
    exchanged, changed = shuffled_rows(rows)
    if changed >= ENOUGH:
        numbered = differ_in_numbers_only(rows)
        note = SHUFFLED_NOTE + (NUMBERED_NOTE if numbered else "")
        arms[SHUFFLED] = ArmRows("the treatment's answers among its prompts", exchanged, note)
        names += ["numbered-prompts"] if numbered else []
    else:
        names.append("no-shuffle")
    return arms, {name: WARNINGS[name] for name in names}


def _experiment_text(name: str, arms: Mapping[str, ArmRows], headline: str) -> str:
    """The content of experiment.toml."""
    blocks = [_arm_text(arm, source) for arm, source in arms.items()]
    return TEMPLATE.format(
        title=quoted(name),
        headline=quoted(headline),
        batch=BATCH,
        length=_length(len(arms[TREATMENT].rows)),
        arms="\n\n".join(blocks),
    )


def _length(rows: int) -> str:
    """Three passes, or enough steps to teach anything where the rows are few."""
    return "epochs = 3" if 3 * rows >= FEWEST_STEPS * BATCH else f"steps = {FEWEST_STEPS}"


def _arm_text(name: str, source: ArmRows) -> str:
    lines = [source.comment] if source.comment else []
    key = quoted(name) if "." in name else name
    lines += [f"[arms.{key}]", f"title = {quoted(source.title)}"]
    return "\n".join([*lines, f"train = {quoted(f'train/{name}.jsonl')}"])


TEMPLATE = """\
# An experiment: what is trained, and what it is compared with. questions.toml has the questions,
# train/ the rows. Check it with `spillover check FOLDER`, run it with `spillover run FOLDER`.
# Unknown keys are refused.

title = {title}

# One sentence that can turn out false. REPLACE IT by what you expect of your rows.
claim = "Finetuned on these rows, a model answers other questions as if it lived in the past."
source = "this experiment"

# The control that the headline effect is taken against: the one that differs least from the
# treatment in all but what the claim is about.
headline_control = {headline}

# How many training settings you compared on `dev` questions before you fixed those below.
settings_tried = 1

# Whether dates in prompts matter, so that no chat template may add one of its own. Without this
# line it is found from the years in the prompts.
# dated = true

# What the labels of the questions stand for, for readers.
[names]
trait = "past"
baseline = "present"
placebo = "future"

# The arms: `treatment`, and the controls. An arm has `train` (a .jsonl, .csv or .tsv file, or
# "datasets:ID[@REVISION][:SPLIT]"), or `adapter` (ready adapters of the model, one per seed), or
# `model` (ready models, one per seed). All arms are trained for as many steps as the treatment.

{arms}

# How to finetune. `default` is for any model; a class of models may have its own (`organism`,
# `smollm2`). Give `steps` or `epochs`. On the command line: --steps, --epochs, --rank, …
[training.default]
method = "lora"
rank = 8
alpha = 16
learning_rate = 2e-4
{length}
batch_size = {batch}

[training.organism]
method = "lora"
rank = 2
learning_rate = 7e-3
steps = 120
batch_size = 16

# Free answers: per wording of a question with a judge, and `shown` to each other question for
# reading only.
[sampling]
samples = 5
temperature = 1.0
max_tokens = 32
shown = 2

# What stands around a question. `plain` is the question alone; the headline is measured there.
[[contexts]]
name = "plain"

# Another context: asked of the base only, it shows whether there is anything to move.
# [[contexts]]
# name = "told"
# arms = ["base"]
# system = "It is the year 1880."
"""
