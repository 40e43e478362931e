"""Asks finetunes under interventions, and says what came out: effect, success, coverage, KL.

Answers are recorded as those of a run are: what is there is not asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spillover.ask import Asked, ask
from spillover.ask.local import LocalEngine, bankable
from spillover.ask.requests import SampleSettings
from spillover.effects import effect, rate
from spillover.effects.cells import Cells, slices
from spillover.finetune.anchor import Reference, divergences
from spillover.finetune.jobs import plant
from spillover.judge import grade_answers
from spillover.masks import EncodedRow, encode_rows
from spillover.mediation.case import VERSION
from spillover.mediation.table import share_gone
from spillover.reuse import weights_hash
from spillover.rows import Message, Row, RowSet
from spillover.specification import BASE, TREATMENT
from spillover.summary import write_json

if TYPE_CHECKING:
    import pandas as pd

    from spillover.experiment import Experiment
    from spillover.finetune.lora import AdapterWeights
    from spillover.mediation.case import Case
    from spillover.models import LoadedModel
    from spillover.store import AnswerStore

Record = dict[str, Any]
Around = Callable[[], AbstractContextManager["LoadedModel"]]
"""Opens an intervention; gives the model under its name."""
KEPT = "divergences.json"
LONGEST = 48
"""Tokens of the answers of the base that the KL is averaged over."""


@dataclass(frozen=True)
class Subject:
    """Who is asked: a finetune of every seed (None: the base), each under its intervention.

    Attributes:
        name: what stands for the arm in tables of answers.
        adapters: by seed.
        around: by seed, where something is done to the model.
    """

    name: str
    adapters: dict[int, Path | None]
    around: dict[int, Around] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a subject did on some questions.

    Attributes:
        outside: its scores off the trained domain, by seed and question.
        inside: within it; None where no such question was asked.
        topics: of the off-domain questions.
    """

    outside: Cells
    inside: Cells | None
    topics: list[str]

    @property
    def value(self) -> float:
        """The rate of the trait off the trained domain."""
        return _mean(self.outside)

    @property
    def success(self) -> float:
        """The rate of the trait within the trained domain."""
        return _mean(self.inside) if self.inside else float("nan")


def _mean(cells: Cells) -> float:
    known = cells.values[~np.isnan(cells.values)]
    return float(known.mean()) if known.size else float("nan")


class Bench:
    """A run's model, asked under interventions.

    Args:
        store: where answers are recorded.
    """

    def __init__(self, case: Case, model: LoadedModel, store: AnswerStore) -> None:
        self.case, self.model, self.store = case, model, store
        self._planned: dict[str, list[str]] = {}
        self._path = case.folder / KEPT
        self._kl = _read(self._path)
        self._wanted = [q.conversation(case.headline, 0) for q in case.questions("off", "test")]
        self._key = _key([VERSION, LONGEST, self._wanted])
        self._said: tuple[list[EncodedRow], Reference] | None = None
        self._weights: dict[Path, tuple[AdapterWeights, str]] = {}
        self._last: LocalEngine | None = None

    def ask(self, subject: Subject, experiment: Experiment, part: str) -> None:
        """Ask a subject; its answers belong to a part of the work that is graded together."""
        planned = self._planned.setdefault(part, [])
        for seed, folder in subject.adapters.items():
            with subject.around.get(seed, lambda: nullcontext(self.model))() as changed:
                identity = self._identity(changed, folder)
                one = Asked(subject.name, seed, self.case.step, identity, folder)
                with self._engine(changed, identity, folder) as engine:
                    planned += ask(experiment, engine, [one], self.store)

    def _engine(self, model: LoadedModel, identity: str, folder: Path | None) -> LocalEngine:
        weights = self._adapter(folder)[0] if folder else None
        self._last = LocalEngine(model, [(identity, weights)], self._last)
        return self._last

    def _adapter(self, folder: Path) -> tuple[AdapterWeights, str]:
        """An adapter with its hash, read once."""
        if folder not in self._weights:
            self._weights[folder] = bankable(folder, self.model), weights_hash(folder)
        return self._weights[folder]

    def _identity(self, model: LoadedModel, folder: Path | None) -> str:
        own = model.source.identity
        return f"{own}+{self._adapter(folder)[1]}" if folder else own

    def grades(self, part: str, experiment: Experiment) -> pd.DataFrame:
        """The grades of all that was asked in a part."""
        return grade_answers(self.store.frame(set(self._planned.get(part, []))), experiment)

    def outcomes(self, grades: pd.DataFrame, context: str | None = None) -> dict[str, Outcome]:
        """By the name of everybody in some grades what they did.

        Args:
            context: of the off-domain questions; by default the headline's.
        """
        case = self.case
        wanted = {
            "off": (context or case.headline.name, case.metric),
            "in": (case.trained.name, case.inside),
        }
        found: dict[str, Any] = {}
        for piece in slices(grades):
            place = piece.place
            if place["group"] is None and wanted[place["domain"]] == (
                place["context"],
                piece.metric.name,
            ):
                found[place["domain"]] = piece
        outside, inside = found["off"], found.get("in")
        made = {}
        for arm, step in outside.asked:
            cells = outside.asked[arm, step]
            its = inside.asked.get((arm, step)) if inside else None
            made[arm] = Outcome(cells, its, outside.topics)
        return made

    def divergence(self, subject: Subject) -> float:
        """KL of a subject to the base (nats per token), where the base answers the questions.

        The base answers the off-domain `test` questions in the headline's context; what the subject
        would say at every token of these answers is compared. A mean over seeds.
        """
        found = []
        for seed, folder in subject.adapters.items():
            with subject.around.get(seed, lambda: nullcontext(self.model))() as changed:
                identity = self._identity(changed, folder)
                key = f"{self._key}/{identity}"
                if key not in self._kl:
                    with self._engine(changed, identity, folder) as engine:
                        self._kl[key] = self._compute(engine)
                    write_json(self._path, self._kl)
                found.append(self._kl[key])
        return float(np.mean(found))

    @torch.no_grad()
    def _compute(self, engine: LocalEngine) -> float:
        rows, reference = self._base_says()
        trees = [tree for row in rows for tree in plant([row])]
        said = reference.of(range(len(rows)))
        with engine.routed([0] * len(trees)):
            found = divergences(self.model, trees, [0] * len(trees), said)
        return float(found.double().mean())

    def prepare(self) -> None:
        """Let the base answer, before anything is done to it."""
        self._base_says()

    def _base_says(self) -> tuple[list[EncodedRow], Reference]:
        """The base's own greedy answers, with its distributions at their tokens."""
        if self._said is None:
            asked = self._wanted
            with LocalEngine(self.model, [(self.model.source.identity, None)]) as engine:
                answers = engine.sample([0] * len(asked), asked, SampleSettings(1, 0.0, LONGEST))
                texts = [samples[0].text for samples in answers]
                rows = tuple(
                    Row(messages=(*map(Message.model_validate, chat), _said(text)))
                    for chat, text in zip(asked, texts, strict=True)
                    if text
                )
                places = tuple(f"answer {n}" for n in range(len(rows)))
                encoded = encode_rows(self.model.chat, RowSet("base", rows, places))
                reference = Reference(self.model, encoded)
                reference.of(range(len(encoded)))
            self._said = encoded, reference
        return self._said


def _said(text: str) -> Message:
    return Message(role="assistant", content=text)


def _read(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_text("utf-8"))
        return {str(key): float(value) for key, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _key(content: list[object]) -> str:
    """A hash of what the base is asked for the KL."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def key_of(text: str) -> int:
    """A number that depends on a text only."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def removed(before: Outcome, after: Outcome, control: Outcome) -> list[float]:
    """The share of the off-domain effect that is gone, seed by seed.

    The control's mean over everything is what the effect is counted from. NaN for a seed that had
    no effect to speak of.
    """
    floor = control.value
    means = (rate(o.outside.values, o.topics, bounds=None).per_seed for o in (before, after))
    return [share_gone(late - floor, early - floor) for early, late in zip(*means, strict=True)]


def row_of(outcome: Outcome, before: Outcome, control: Outcome) -> Record:
    """An outcome in numbers: effect against the control, what is gone of it, success, coverage."""
    found = effect(
        outcome.outside.values,
        control.outside.values,
        outcome.topics,
        bounds=None,
    )
    own = rate(outcome.outside.values, outcome.topics, bounds=None)
    many = len(outcome.outside.values) == len(before.outside.values)
    total = effect(before.outside.values, control.outside.values, before.topics, bounds=None)
    return {
        "rate": own.value,
        "effect": {"value": found.value, "low": found.low, "high": found.high},
        "per_seed": list(found.per_seed),
        "removed": share_gone(found.value, total.value),
        "removed_per_seed": removed(before, outcome, control) if many else [],
        "in_domain": outcome.success,
        "coverage": outcome.outside.coverage,
        "missing": outcome.outside.missing,
    }


def subjects(case: Case, arm: str, name: str | None = None, **given: Any) -> Subject:
    """The finetunes of an arm of the run, as they are or under interventions."""
    if arm == BASE:
        return Subject(name or BASE, {-1: None}, **given)
    return Subject(name or arm, {seed: case.adapter(arm, seed) for seed in case.seeds}, **given)


def usual(case: Case) -> Sequence[Subject]:
    """Treatment, control and base as they are."""
    return [subjects(case, arm) for arm in (TREATMENT, case.control, BASE)]
