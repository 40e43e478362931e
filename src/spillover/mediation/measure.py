"""A mediation from end to end: directions, remedies, and what each does on held-out questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from spillover.mediation import remedies
from spillover.mediation.bench import Bench, Outcome, Subject, row_of, subjects
from spillover.mediation.search import (
    ADDED,
    DEV,
    STRENGTHS,
    Ablation,
    Addition,
    Change,
    Found,
    Search,
    gather,
)
from spillover.mediation.table import Setting, choose, verdict
from spillover.specification import BASE, TREATMENT

if TYPE_CHECKING:
    from pathlib import Path

    from spillover.mediation.case import Case
    from spillover.models import LoadedModel
    from spillover.stages import Progress
    from spillover.store import AnswerStore

Record = dict[str, Any]
TEST = "test"
WORDS = {"ablated": "ablation", "subtracted": "subtraction", **remedies.NAMES}
ROLES = {"random": "random directions", "control": "the control's directions"}


@dataclass
class Measure:
    """The work on one run.

    Attributes:
        trained: the adapters of remedies, by name and seed.
    """

    case: Case
    model: LoadedModel
    store: AnswerStore
    notify: Progress
    trained: dict[str, dict[int, Path]] = field(default_factory=dict)

    @cached_property
    def bench(self) -> Bench:
        """Who asks."""
        return Bench(self.case, self.model, self.store)

    @cached_property
    def found(self) -> Found:
        """Activations of the run's finetunes."""
        return gather(self.bench)

    def content(self) -> Record:
        """All that is found, as plain data."""
        case = self.case
        if case.options.remedies and TREATMENT in case.experiment.rows:
            self.trained = remedies.train(case, self.model, self.notify)
        self.notify("find directions", 0, 1)
        search = Search(self.bench, self.found, self.notify)
        ablations, best = search.best_ablation()
        place = best.recipe.place
        less = search.best_addition(place, TREATMENT, -1.0, STRENGTHS)
        more = search.best_addition(place, BASE, 1.0, ADDED)
        dev = self._dev(search, [*ablations, *less])
        success = search.outcomes()[TREATMENT].success
        curves = self._curves(ablations, less)
        picked = {remedy: choose(settings, dev, success) for remedy, settings in curves.items()}
        controls = [replace(best, kind=kind) for kind in ROLES]
        rows = self._rows([*ablations, *less, *controls, *more], best, curves, picked)
        chosen = [best.name, *(setting.name for setting, _ in picked.values())]
        return {
            "ablation": {"recipe": best.recipe.name, "rank": best.rank, "tried": search.tried},
            "inoculation": self._sentence(),
            "rows": rows,
            "verdict": verdict(rows),
            "contexts": self._contexts([*ablations, *less], chosen),
        }

    def _sentence(self) -> str | None:
        """The inoculation, where it was one of the remedies."""
        case = self.case
        if "inoculation" not in self.trained:
            return None
        return remedies.sentence(case.experiment, case.options.inoculation)

    def _remedy(self, name: str, around: Change | None = None) -> Subject:
        if around is not None:
            return around.subject(self.bench, self.found)
        return Subject(name, dict(self.trained[name]))

    def _dev(self, search: Search, changes: list[Change]) -> dict[str, Record]:
        """What every strength of every remedy does on the questions that settings are chosen on."""
        search.rows(changes, "choose strengths", inside=True)
        for name in self.trained:
            self.bench.ask(self._remedy(name), search.experiment, DEV)
        outcomes = search.outcomes()
        names = [change.name for change in changes] + list(self.trained)
        return {name: search.row(name, outcomes) for name in names}

    def _curves(self, ablations: list[Ablation], less: list[Addition]) -> dict[str, list[Setting]]:
        """The settings of every remedy."""
        listed = [Setting(WORDS["ablated"], f"rank {a.rank}", a.name) for a in ablations]
        listed += [
            Setting(WORDS["subtracted"], f"{-a.coefficient:g} × the mean difference", a.name)
            for a in less
        ]
        units = {"anchor": "β = {}", "ordinary": "share {}", "inoculation": ""}
        for name in self.trained:
            kind, _, strength = name.partition("-")
            listed.append(Setting(WORDS[kind], units[kind].format(strength), name))
        curves: dict[str, list[Setting]] = {}
        for setting in listed:
            curves.setdefault(setting.remedy, []).append(setting)
        return curves

    def _rows(
        self,
        changes: list[Change],
        best: Ablation,
        curves: dict[str, list[Setting]],
        picked: dict[str, tuple[Setting, bool]],
    ) -> list[Record]:
        """Everything on `test` questions, in the order of the table."""
        case = self.case
        experiment = case.both(case.questions("off", TEST), case.questions("in", TEST))
        everybody = {change.name: self._remedy(change.name, change) for change in changes}
        everybody |= {name: self._remedy(name) for name in self.trained}
        for number, subject in enumerate(everybody.values()):
            self.notify("ask", number, len(everybody))
            self.bench.ask(subject, experiment, TEST)
        self.notify("ask", len(everybody), len(everybody))
        outcomes = self.bench.outcomes(self._with_run(self.bench.grades(TEST, experiment)))
        plain = {arm: subjects(case, arm) for arm in (TREATMENT, case.control, BASE)}
        self.bench.prepare()

        def row(remedy: str, setting: str, name: str, role: str, **more: Any) -> Record:
            said = row_of(outcomes[name], outcomes[TREATMENT], outcomes[case.control])
            kl = self.bench.divergence({**everybody, **plain}[name])
            place = {"remedy": remedy, "setting": setting, "name": name, "role": role}
            return {**place, **said, "kl": kl, **more}

        rows = [
            row("none", "treatment", TREATMENT, "treatment"),
            row("none", case.control, case.control, "arm"),
            row("none", "base", BASE, "base"),
            row("ablation, all it takes", f"rank {best.rank}", best.name, "ablation"),
        ]
        for kind, words in ROLES.items():
            name = replace(best, kind=kind).name
            rows.append(row(words, f"rank {best.rank}", name, kind))
        for remedy, settings in curves.items():
            chosen, equal = picked[remedy]
            for setting in settings:
                role = "remedy" if setting == chosen else ""
                told = {"equal": equal} if role else {}
                rows.append(row(remedy, setting.setting, setting.name, role, **told))
        rows += [
            row("added to the base", f"{c.coefficient:g} × the mean difference", c.name, "added")
            for c in changes
            if isinstance(c, Addition) and c.arm == BASE
        ]
        return rows

    def _with_run(self, grades: pd.DataFrame) -> pd.DataFrame:
        """Grades with those of treatment, control and base that the run has already."""
        case, theirs = self.case, self.case.run.grades
        known = theirs["arm"].isin([TREATMENT, case.control, BASE])
        known &= theirs["split"] == TEST
        known &= theirs["step"].isin([0, case.step])
        texts = dict.fromkeys(grades.select_dtypes("category").columns, "str")
        mine = grades.astype(texts)
        return pd.concat([theirs[known][mine.columns.tolist()], mine], ignore_index=True)

    def _contexts(self, changes: Sequence[Change], chosen: Sequence[str]) -> Record | None:
        """The largest effect over all contexts that off-domain questions are asked in.

        What is chosen is asked in every one; None where there is one only.

        Args:
            chosen: names of changes and of trained remedies.
        """
        case = self.case
        if len(case.contexts) < 2:
            return None
        questions = case.questions("off", TEST)
        asked = [c.model_copy(update={"arms": None, "domain": "off"}) for c in case.contexts]
        experiment = case.asking(questions, asked)
        made = {change.name: change for change in changes}
        wanted = {name: self._remedy(name, made.get(name)) for name in chosen}
        for number, subject in enumerate(wanted.values()):
            self.notify("ask in every context", number, len(wanted))
            self.bench.ask(subject, experiment, "contexts")
        self.notify("ask in every context", len(wanted), len(wanted))
        grades = self._with_run(self.bench.grades("contexts", experiment))
        effects: dict[str, dict[str, float]] = {}
        for context in asked:
            outcomes = self.bench.outcomes(grades, context.name)
            for name in (TREATMENT, *wanted):
                effects.setdefault(name, {})[context.name] = _effect(outcomes, name, case.control)
        return {name: largest(found) for name, found in effects.items()}


def largest(effects: dict[str, float]) -> Record:
    """The largest of some effects by context, and where it is; no value where none has one."""
    known = {context: effect for context, effect in effects.items() if math.isfinite(effect)}
    context = max(known, key=known.__getitem__) if known else None
    value = known[context] if context is not None else math.nan
    return {"context": context, "effects": effects, "value": value}


def _effect(outcomes: dict[str, Outcome], name: str, control: str) -> float:
    return outcomes[name].value - outcomes[control].value
