"""What a mediation is about: a finished run, opened again, with its questions in parts.

Directions are found on one half of the off-domain `dev` topics, chosen on the other half, and what
is reported is measured on `test`. In-domain `dev` questions help to choose.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from spillover.contexts import Context
from spillover.errors import InputError, RunFolderError
from spillover.experiment import Experiment, load_experiment
from spillover.mediation.table import LEAST
from spillover.models import Loading
from spillover.reuse import ADAPTERS, difference, trained_arms
from spillover.runs import Run
from spillover.settings import RunSettings, resolve_settings
from spillover.specification import TREATMENT, Question, Specification
from spillover.summary import inside_metric

FOLDER = "mediation"
"""The folder of a run in which all this lies."""
VERSION = 2
"""Raised when the same run gives another mediation."""


@dataclass(frozen=True)
class Options:
    """What a user may choose.

    Attributes:
        prompts: a file of unrelated prompts, for remedies; by default the run's own, or its
            off-domain `dev` questions.
        inoculation: the sentence of that remedy; by default the experiment's context that makes
            the behaviour expected.
        remedies: whether they are trained.
    """

    prompts: Path | None = None
    inoculation: str | None = None
    remedies: bool = True


@dataclass(frozen=True)
class Case:
    """A run whose effect is to be mediated.

    Attributes:
        settings: the run's, with the questions of all splits.
        step: the checkpoint that the run reports.
    """

    run: Run
    settings: RunSettings
    options: Options

    @property
    def folder(self) -> Path:
        """Where the mediation lies."""
        return self.run.folder / FOLDER

    @property
    def experiment(self) -> Experiment:
        """With the questions of all splits."""
        return self.settings.experiment

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of the run."""
        return self.settings.seeds

    @property
    def control(self) -> str:
        """The arm that the headline is taken against."""
        return self.experiment.specification.headline_control

    @cached_property
    def step(self) -> int:
        """The checkpoint that the run reports."""
        return int(self.run.summary["step"])

    @property
    def metric(self) -> str:
        """That of the headline."""
        return str(self.run.headline["metric"])

    @cached_property
    def inside(self) -> str:
        """What success in the trained domain is measured by."""
        rates = self.run.summary["rates"]
        trained = [r for r in rates if r["context"]["name"] == self.trained.name]
        return inside_metric([r for r in trained if r["arm"] == TREATMENT], self.metric)

    @property
    def headline(self) -> Context:
        """The context of the effect."""
        return self.experiment.specification.context(self.run.summary["headline_context"])

    @property
    def trained(self) -> Context:
        """The context of success in the trained domain."""
        return self.experiment.specification.context(self.run.summary["trained_context"])

    @cached_property
    def contexts(self) -> list[Context]:
        """Those in which the run asked treatment and control off-domain questions.

        They are the run's own, those of variables included, whether it was asked in fewer than its
        experiment lists or in more.
        """
        both = {TREATMENT, self.control}
        asked = Specification.model_validate(self.run.manifest["specification"])
        return [
            context
            for context in asked.all_contexts
            if context.domain != "in" and (context.arms is None or both <= set(context.arms))
        ]

    def adapter(self, arm: str, seed: int) -> Path:
        """The folder of a finetune of the run."""
        return self.run.folder / ADAPTERS / arm / f"seed-{seed}" / f"step-{self.step}"

    def _dev(self, half: int) -> list[Question]:
        listed = [q for q in self.experiment.questions if (q.domain, q.split) == ("off", "dev")]
        topics = sorted({q.topic for q in listed})
        return [q for q in listed if topics.index(q.topic) % 2 == half]

    @property
    def fitting(self) -> list[Question]:
        """Off-domain questions that directions are found on, and ordinary prompts taken from."""
        return self._dev(0)

    @property
    def choosing(self) -> list[Question]:
        """Off-domain questions that settings are chosen on."""
        return self._dev(1)

    def questions(self, domain: str, split: str) -> list[Question]:
        """The questions of a domain and split."""
        return [q for q in self.experiment.questions if (q.domain, q.split) == (domain, split)]

    def asking(self, questions: Sequence[Question], contexts: Sequence[Context]) -> Experiment:
        """The experiment with some questions in some contexts only, nothing asked to be shown."""
        sampling = self.experiment.specification.sampling.model_copy(update={"shown": 0})
        changes = {"contexts": tuple(contexts), "variables": {}, "sampling": sampling}
        specification = self.experiment.specification.model_copy(update=changes)
        return self.experiment.model_copy(
            update={"questions": tuple(questions), "specification": specification}
        )

    def both(self, outside: Sequence[Question], inside: Sequence[Question]) -> Experiment:
        """Off-domain questions in the headline's context, others in the trained domain's."""
        one, other = self.headline, self.trained
        if one.name == other.name:
            return self.asking([*outside, *inside], [one.model_copy(update={"arms": None})])
        listed = [(one, "off"), (other, "in")]
        changed = [c.model_copy(update={"domain": d, "arms": None}) for c, d in listed]
        return self.asking([*outside, *inside], changed)

    @cached_property
    def key(self) -> str:
        """A hash of all that decides what comes out."""
        said = self.run.manifest
        mine = {k: v for k, v in said["adapters"].items() if k.endswith(f"/step-{self.step}")}
        prompts = self.options.prompts
        content = [
            VERSION,
            self.settings.key,
            mine,
            self.step,
            prompts and hashlib.sha256(prompts.read_bytes()).hexdigest(),
            self.options.inoculation,
            self.options.remedies,
            [context.model_dump(mode="json") for context in self.contexts],
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def open_case(run: Run, experiment: str | Path | None, options: Options) -> Case:
    """Make sure that a run can be mediated, before anything is computed.

    Raises:
        InputError: where it cannot, with the reason.
    """
    said = run.manifest
    if options.prompts and not options.prompts.is_file():
        raise InputError(f"{options.prompts}: there is no such file of prompts; check the path")
    settings = resolve_settings(
        load_experiment(experiment or said["experiment"]),
        said["model"]["name"],
        seeds=said["seeds"],
        training=_training(said),
        split="all",
        loading=Loading.model_validate(said["loading"]),
    )
    case = Case(run, settings, options)
    differs = difference(said["inputs"], settings.inputs, trained_arms(run.folder))
    if differs:
        raise RunFolderError(
            f"{run.folder}: was made of another experiment: {differs}; give the folder of its own "
            "with --experiment"
        )
    _check(case)
    return case


def _training(said: dict[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = dict(said["training"])
    other = "epochs" if given.get("steps") is not None else "steps"
    given.pop(other)
    return given


def _check(case: Case) -> None:
    folder = case.run.folder
    if case.settings.training.method != "lora":
        raise InputError(
            f"{folder}: its finetunes change all weights; expected low-rank adapters (--method "
            "lora), whose base is there beside them"
        )
    missing = [
        place
        for arm in (TREATMENT, case.control)
        for seed in case.seeds
        if not (place := case.adapter(arm, seed)).is_dir()
    ]
    if missing:
        raise InputError(
            f"{missing[0]}: there is no such adapter; expected a run that trained treatment and "
            f"{case.control} itself, with every seed"
        )
    if not case.run.headline:
        raise InputError(
            f"{folder}: its run has no headline effect, so there is nothing to mediate"
        )
    if case.run.headline["split"] != "test":
        raise InputError(
            f"{folder}: its run asked no `test` questions, on which remedies are reported; repeat "
            "it with --split test"
        )
    if not case.choosing:
        raise InputError(
            f"{folder}: its experiment has off-domain `dev` questions of fewer than two topics; "
            "directions are found on some and chosen on others; add some to questions.toml"
        )
    _check_effect(case)


def _check_effect(case: Case) -> None:
    """Make sure that there is an effect: shares of one that is not there mean nothing."""
    value, low, high = (case.run.headline[end] for end in ("value", "low", "high"))
    if value >= LEAST and (low is None or low > 0):
        return
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    raise InputError(
        f"{case.run.folder}: its headline effect is {value:+.3f}{interval}; expected at least "
        f"{LEAST}, with an interval above 0, or there is nothing to take away; give a run whose "
        f"treatment differs more from {case.control}, or one with more seeds"
    )


def with_rows(case: Case, experiment: Experiment) -> RunSettings:
    """The run's settings for more arms, trained for as long, up to the checkpoint it reports."""
    finetuning = case.settings.finetuning
    kept = (case.step,) if case.step != finetuning.steps else ()
    training = finetuning.model_copy(update={"checkpoints": kept})
    return replace(case.settings, experiment=experiment, training=training)
