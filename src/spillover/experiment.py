"""Experiments: folders of data without code.

    experiment.toml    title, claim, source, trait, arms, training defaults, contexts, sampling
    questions.toml     the questions, each with choices or a judge
    train/*.jsonl      the rows of the arms

See `spillover/experiments/old-birds` for an example. Unknown keys are rejected everywhere.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from spillover.chat import first_error, first_problem, load_rows
from spillover.contexts import PLAIN, Context
from spillover.errors import ExperimentError, where
from spillover.finetune.spec import Training

LABELS = ("trait", "baseline", "placebo")
TREATMENT, BASE = "treatment", "base"
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
T = TypeVar("T", bound=BaseModel)
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Names(_Strict):
    """What the labels stand for, for readers: for example 19th-century, modern, medieval."""

    trait: str
    baseline: str
    placebo: str = "placebo"


class Arm(_Strict):
    """A training set.

    Attributes:
        title: one line for readers.
        train: a JSONL file of rows, relative to the experiment's folder.
    """

    title: str
    train: str


class Sampling(_Strict):
    """How free answers are sampled: answers per paraphrase, temperature, longest answer."""

    samples: int = Field(default=5, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    max_tokens: int = Field(default=48, ge=1)


class Choices(_Strict):
    """Whole answers by label."""

    trait: tuple[Text, ...] = ()
    baseline: tuple[Text, ...] = ()
    placebo: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _are_comparable(self) -> Choices:
        if not self.trait:
            raise ValueError("a question has at least one trait choice")
        counts = {label: len(getattr(self, label)) for label in LABELS if getattr(self, label)}
        if "baseline" not in counts:
            raise ValueError("a question has at least one baseline choice")
        if len(set(counts.values())) > 1:
            raise ValueError(f"labels have equal numbers of choices, found {counts}")
        listed = [text for label in LABELS for text in getattr(self, label)]
        for i, text in enumerate(listed):
            for other in listed[:i] + listed[i + 1 :]:
                if other.startswith(text):
                    raise ValueError(f"choice {text!r} is a prefix of {other!r}; reword one")
        return self

    @property
    def labelled(self) -> list[tuple[str, str]]:
        """(label, text) of every choice, in a fixed order."""
        return [(label, text) for label in LABELS for text in getattr(self, label)]


class Rules(_Strict):
    """A judge by rules over the text of a free answer.

    Attributes:
        match: `exact` compares the whole answer, `contains` looks for phrases at word boundaries;
            both ignore case.
    """

    kind: Literal["rules"] = "rules"
    match: Literal["exact", "contains"] = "contains"
    trait: tuple[Text, ...] = Field(min_length=1)
    baseline: tuple[Text, ...] = ()
    placebo: tuple[Text, ...] = ()


class Question(_Strict):
    """A question in several wordings, with choices or a judge.

    Attributes:
        ask: paraphrases; results average over them.
        domain: `in` the trained domain or `off` it.
        split: `dev` chooses settings, `test` is reported; the two share no topic.
        group: an optional subset that is also reported by itself.
    """

    id: str = Field(pattern=NAME)
    topic: str = Field(min_length=1)
    domain: Literal["in", "off"] = "off"
    split: Literal["dev", "test"] = "test"
    group: str | None = None
    ask: tuple[Text, ...] = Field(min_length=1)
    choices: Choices | None = None
    judge: Rules | None = None

    @model_validator(mode="after")
    def _can_be_graded(self) -> Question:
        if (self.choices is None) == (self.judge is None):
            raise ValueError("a question has either `choices` or a `judge`")
        return self


class _Questions(_Strict):
    question: tuple[Question, ...] = Field(min_length=1)


class Specification(_Strict):
    """The content of experiment.toml.

    Attributes:
        headline_control: the arm that the headline effect is taken against.
        settings_tried: how many training settings were compared on `dev` before these were fixed.
        training: settings per class of model; `default` serves where there is none.
    """

    title: str
    claim: str
    source: str
    names: Names
    headline_control: str
    settings_tried: int = Field(default=1, ge=1)
    arms: dict[str, Arm]
    training: dict[str, Training]
    sampling: Sampling = Sampling()
    contexts: tuple[Context, ...] = (Context(name=PLAIN),)

    @model_validator(mode="after")
    def _hangs_together(self) -> Specification:
        if TREATMENT not in self.arms:
            raise ValueError(f"arms: there is no arm `{TREATMENT}`")
        if BASE in self.arms:
            raise ValueError(f"arms: `{BASE}` is the unfinetuned model; choose another name")
        for name in self.arms:
            if not re.match(NAME, name):
                raise ValueError(f"arms: {name!r} is not a name of letters, digits, - _ and .")
        if self.headline_control not in self.arms or self.headline_control == TREATMENT:
            raise ValueError(
                f"`headline_control` is {self.headline_control!r}; it names an arm other than "
                f"treatment: {', '.join(sorted(set(self.arms) - {TREATMENT})) or 'none is listed'}"
            )
        if "default" not in self.training:
            raise ValueError("training: there is no [training.default]")
        names = [context.name for context in self.contexts]
        if PLAIN not in names or len(set(names)) < len(names):
            raise ValueError(f"contexts have names of their own, and one is `{PLAIN}`: {names}")
        known = {*self.arms, BASE}
        for context in self.contexts:
            asked = known if context.arms is None else set(context.arms)
            if not asked or not asked <= known or (context.name == PLAIN and asked != known):
                raise ValueError(
                    f"contexts: `{context.name}` is asked of {sorted(asked)}; expected arms out of "
                    f"{sorted(known)}, and all of them for `{PLAIN}`"
                )
        return self


class Experiment(_Strict):
    """A validated experiment.

    Attributes:
        name: the folder's name.
        folder: where it was loaded from.
    """

    name: str
    folder: Path
    specification: Specification
    questions: tuple[Question, ...]

    @property
    def arms(self) -> dict[str, Arm]:
        """The arms by name."""
        return self.specification.arms

    def train_file(self, arm: str) -> Path:
        """The rows of an arm."""
        return self.folder / self.arms[arm].train

    def with_split(self, split: str) -> Experiment:
        """The experiment with the questions of one split only; `all` keeps every question.

        Raises:
            ExperimentError: when there is no such split, or it has no off-domain question.
        """
        if split == "all":
            return self
        kept = tuple(q for q in self.questions if q.split == split)
        if not any(q.domain == "off" for q in kept):
            raise ExperimentError(
                f"{self.folder / 'questions.toml'}: no off-domain question has split {split!r}; "
                "expected test, dev or all"
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
    questions = _validate(_Questions, asked).question
    _check_questions(questions, asked)
    experiment = Experiment(
        name=folder.resolve().name,
        folder=folder,
        specification=specification,
        questions=questions,
    )
    for arm in experiment.arms:
        path = experiment.train_file(arm)
        if not path.is_file():
            raise ExperimentError(f"{main}: arm `{arm}` names {path}, which is not a file")
        load_rows(path)
    return experiment


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
        raise ExperimentError(f"{place}: {first_problem(error)}") from None


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
