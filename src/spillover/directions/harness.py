"""lm-evaluation-harness (the optional package lm-eval), asked about a model that is loaded already.

Within a call it prints and logs nothing, so that progress bars stay whole; it loads no code of the
hub, runs none that a model writes, and starts no processes. Python files that a task file names
(`!function`) are run: they lie beside it. Random numbers are as before afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import logging
import os
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from spillover.errors import DirectionError, RunError, SpilloverError, where

if TYPE_CHECKING:
    from spillover.models import LoadedModel

OPTION = "--capabilities"
TOGETHER = 8
"""Rows of a batch; the harness keeps the logits of all their tokens."""
RESAMPLES = 1000
"""For standard errors that have no formula."""
SEED = 1234
"""The harness's own, of examples in prompts."""
ALONE = "DISABLE_MULTIPROC"
"""The variable without which it forks to resample."""
NEAR = 3
IS_GROUP = re.compile(r"^group\s*:", re.MULTILINE)


class Capabilities(BaseModel):
    """Tasks of lm-evaluation-harness, and how they are asked.

    Attributes:
        tasks: their names (also those of groups), or task files (`.yaml`).
        limit: questions of each task, its first ones; by default all.
        chat: put questions through the model's chat template; the harness itself does not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)
    chat: bool = False

    @model_validator(mode="after")
    def _has_something_to_ask(self) -> Capabilities:
        if not self.tasks and (self.limit is not None or self.chat):
            raise ValueError(f"found no task to ask; name some with {OPTION}")
        if not all(name.strip() for name in self.tasks):
            raise ValueError(f"found a task without a name in {','.join(self.tasks)!r}")
        return self


@dataclass(frozen=True)
class Score:
    """A metric of a task, or of a group of tasks.

    Attributes:
        metric: its name, with that of the filter behind answers where there is one.
        stderr: None where the harness gives none.
        count: of questions.
        within: whether it is a part of a group that has a score of its own.
        each: values by the number of the question, where they are known.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    count: int
    within: bool = False
    each: Mapping[int, float] = field(default_factory=dict, repr=False)


class Harness:
    """Tasks that are loaded; asked of one model after another.

    Attributes:
        names: of the tasks and groups, as they were given.
        facts: the harness's version, and by task its version and the examples in its prompts;
            complete when `check` is over.
    """

    def __init__(self, how: Capabilities, loaded: Mapping[str, Any]) -> None:
        import lm_eval

        self.how, self._loaded = how, loaded
        self.names = list(loaded)
        self.facts: dict[str, Any] = {"lm_eval": str(lm_eval.__version__), "tasks": {}}

    def check(self, model: LoadedModel) -> None:
        """Ask the first question of every task, before anything is computed.

        Raises:
            DirectionError: for a task that this model cannot be asked.
        """
        for name in self.names:
            try:
                found = self._evaluate(name, model, 1)
            except Exception as error:
                raise DirectionError(
                    f"{OPTION} {name}: cannot be asked of {model.source.name} ({_reason(error)})"
                ) from None
            for task, version in found["versions"].items():
                shots = found["n-shot"].get(task)
                self.facts["tasks"][task] = {"version": version, "shots": shots}

    def ask(self, name: str, model: LoadedModel) -> list[Score]:
        """All scores of a task or group, as the model is now.

        Raises:
            RunError: where the harness fails.
        """
        try:
            return scores_of(self._evaluate(name, model, self.how.limit))
        except Exception as error:
            raise RunError(f"{OPTION} {name}: the harness failed ({_reason(error)})") from None

    def _evaluate(self, name: str, model: LoadedModel, limit: int | None) -> dict[str, Any]:
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        chat = self.how.chat
        tokenizer = copy.deepcopy(model.tokenizer)  # which is given a padding token
        told: dict[str, Any] = {}
        if chat:
            tokenizer.chat_template, told = model.chat.template
        with _silent(), _without_code_of_the_hub([]):
            asked = HFLM(
                pretrained=model.model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=TOGETHER,
                chat_template_args=told,
            )
            found: dict[str, Any] = evaluate(
                lm=asked,
                task_dict=self._loaded[name],
                limit=limit,
                bootstrap_iters=RESAMPLES,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                system_instruction=model.chat.templating.system if chat else None,
            )
        return found


def load_tasks(how: Capabilities) -> Harness:
    """The harness with its tasks, whose questions may come from the hub.

    Raises:
        DirectionError: where it is not installed, and for tasks that cannot be found or loaded.
    """
    files = [name for name in how.tasks if _is_file(name)]
    with _silent():
        manager = _installed()(include_defaults=len(files) < len(how.tasks))  # thousands of files
    loaded: dict[str, Any] = {}
    for name in how.tasks:
        found = _load(manager, name, is_file=name in files)
        for task in found["tasks"]:
            others = [other for other, some in loaded.items() if task in some["tasks"]]
            if others:
                raise DirectionError(f"{OPTION} {name}: {task} is in {others[0]} too; name one")
        loaded[name] = found
    return Harness(how, loaded)


def _installed() -> Any:
    """The harness's manager of tasks.

    Raises:
        DirectionError: where a package is missing, or so old that it runs code of the hub.
    """
    install = "run `pip install 'spillover[capabilities]'`"
    try:
        import datasets
        from lm_eval.evaluator import evaluate  # noqa: F401
        from lm_eval.models.huggingface import HFLM  # noqa: F401
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise DirectionError(f"{OPTION} needs lm-eval ({error}); {install}") from None
    if int(datasets.__version__.split(".")[0]) < 4:
        raise DirectionError(
            f"{OPTION}: found datasets {datasets.__version__}, which may run code of the hub; "
            f"expected 4 or later; {install}"
        )
    return TaskManager


def _is_file(name: str) -> bool:
    """Whether a task file is meant, not a task's name.

    Raises:
        DirectionError: for a file that cannot be read, or that holds a group.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        return False
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise DirectionError(f"{OPTION} {name}: cannot be read ({reason})") from None
    if IS_GROUP.search(text):  # which the harness does not load by its path
        raise DirectionError(f"{OPTION} {name}: is a group; name files of its tasks instead")
    return True


def _load(manager: Any, name: str, *, is_file: bool) -> dict[str, Any]:
    """The tasks that a name or a file stands for; paths in a file are relative to its folder."""
    import yaml

    path = Path(name).resolve()
    if not is_file and name not in manager.all_tasks:
        raise DirectionError(_unknown(name, manager.all_tasks))
    place = contextlib.chdir(path.parent) if is_file else contextlib.nullcontext()
    refused: list[str] = []
    try:
        with _silent(), _without_code_of_the_hub(refused), place:
            found: dict[str, Any] = manager.load([str(path) if is_file else name])
            _check(found["tasks"], refused)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line, what = mark.line + 1 if mark else None, getattr(error, "problem", "it is not YAML")
        raise DirectionError(f"{where(name, line)}: is not a valid task file ({what})") from None
    except Exception as error:  # the harness and its libraries raise many kinds
        why = _why(error, refused, is_file=is_file)
        raise DirectionError(f"{OPTION} {name}: {why}") from None
    return found


def _why(error: Exception, refused: Sequence[str], *, is_file: bool) -> str:
    """Why a task cannot be loaded; a metric that was refused may fail later, in other words."""
    if refused:
        return f"needs {refused[0]}, which is code of the hub; none is run"
    if isinstance(error, SpilloverError):
        return str(error)
    advice = "see docs/directions.md for a task file" if is_file else "check the network"
    return f"cannot be loaded ({_reason(error)}); {advice}"


def _check(tasks: Mapping[str, Any], refused: Sequence[str]) -> None:
    """Make sure that tasks only ask, and settle what they leave open.

    Raises:
        DirectionError: for those that run code, or show pictures.
    """
    if refused or not tasks:
        raise DirectionError("found no task that can be asked")
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise DirectionError(f"{name} runs code that the model writes; choose another task")
        if getattr(task, "MULTIMODAL", False):
            raise DirectionError(f"{name} does not only ask in words; choose another task")
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=NEAR)
    advice = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
    return f"{OPTION} {name}: found no such task in lm-eval (task files end in .yaml); {advice}"


def _reason(error: Exception) -> str:
    if isinstance(error, SpilloverError):
        return str(error)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__


# What the harness found ---------------------------------------------------------------------------


def scores_of(found: Mapping[str, Any]) -> list[Score]:
    """Every score in what the harness returns."""
    groups = found.get("groups", {})
    within = {part for group in groups for part in found.get("group_subtasks", {}).get(group, ())}
    each = _by_question(found.get("samples", {}))
    scores = []
    for task, figures in found["results"].items():
        for key, value in figures.items():
            metric, comma, strategy = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, Real):
                continue
            stderr = figures.get(f"{metric}_stderr,{strategy}")
            counts = figures.get("sample_count", {})
            scores.append(
                Score(
                    task,
                    metric if strategy == "none" else f"{metric} ({strategy})",
                    float(value),
                    float(stderr) if isinstance(stderr, Real) else None,
                    int(counts.get(key, figures["sample_len"])),
                    task in within,
                    each.get((task, key), {}),
                )
            )
    return scores


def _by_question(samples: Mapping[str, Any]) -> dict[tuple[str, str], dict[int, float]]:
    """What each question counts, by task and metric, where that is a number."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for task, rows in samples.items():
        for row in rows:
            for metric in row["metrics"]:
                if isinstance(row[metric], Real):
                    one = found.setdefault((task, f"{metric},{row['filter']}"), {})
                    one[row["doc_id"]] = float(row[metric])
    return found


# Quiet --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Within, nothing is printed, logged or warned of, or forked; random numbers are seeded."""
    import torch

    states, disabled = (random.getstate(), np.random.get_state()), logging.root.manager.disable
    alone = os.environ.get(ALONE)
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        os.environ[ALONE] = "1"
        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            logging.disable(disabled)
            os.environ.pop(ALONE)
            if alone is not None:
                os.environ[ALONE] = alone
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextlib.contextmanager
def _without_code_of_the_hub(refused: list[str]) -> Iterator[None]:
    """Within, metrics that are scripts of the hub are not loaded.

    The harness looks there for every metric that it does not have itself, and goes on without.

    Args:
        refused: is given the names of those that were wanted.
    """
    import evaluate

    def refuse(path: str, *_: Any, **__: Any) -> None:
        refused.append(path)
        raise DirectionError(f"needs {path}, which is code of the hub; none is run")

    load = evaluate.load
    evaluate.load = refuse
    try:
        yield
    finally:
        evaluate.load = load
