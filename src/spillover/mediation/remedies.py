"""The remedies that ablation has to beat, as arms beside the treatment: trained in one bank."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from spillover.experiment import treated
from spillover.finetune import Finetune, finetune
from spillover.folder import whole
from spillover.mediation.case import Case, with_rows
from spillover.own import answer_prompts, check_prompts
from spillover.reuse import ADAPTERS
from spillover.rows import RowSet
from spillover.specification import TREATMENT, Anchor, Arm, Own

if TYPE_CHECKING:
    from spillover.experiment import Experiment
    from spillover.models import LoadedModel
    from spillover.stages import Progress

BETAS = (0.1, 1.0, 10.0)
SHARES = (0.05, 0.2, 0.5)
"""Strengths of the remedies that have one."""
LONGEST = 48
"""Tokens of an answer to an ordinary prompt."""
PROMPTS = "ordinary.jsonl"
EXPECTED = "The next answers are out of character."
"""The inoculation where neither the user nor the experiment has one."""
NAMES = {"anchor": "KL to the base", "ordinary": "ordinary rows", "inoculation": "inoculation"}
"""The remedies in words."""


def arms(case: Case, prompts: Path) -> dict[str, Arm]:
    """An arm for every remedy and strength, all on the treatment's rows.

    Ordinary rows are left out where the treatment has its own already.
    """
    own = case.experiment.arms[TREATMENT].own
    tokens = own.max_tokens if own else LONGEST
    given = case.experiment.arms[TREATMENT]
    source = str(prompts.absolute())

    def arm(**changes: object) -> Arm:
        return given.model_copy(update={"variant": True, **changes})

    found = {
        f"anchor-{beta:g}": arm(anchor=Anchor(prompts=source, beta=beta, max_tokens=tokens))
        for beta in BETAS
    }
    if own is None:
        found |= {
            f"ordinary-{share:g}": arm(own=Own(prompts=source, share=share, max_tokens=tokens))
            for share in SHARES
        }
    return found | {
        "inoculation": arm(inoculation=sentence(case.experiment, case.options.inoculation))
    }


def sentence(experiment: Experiment, given: str | None) -> str:
    """What makes the behaviour expected: as the user says, or as the experiment tells the base.

    Experiments ask their base in contexts that say in words what a finetune is to infer. What such
    a context sets of a variable is not part of the sentence: rows may say otherwise.
    """
    if given:
        return given
    specification = experiment.specification
    set_by = [
        context.system
        for name, variable in specification.variables.items()
        for context in (variable.context(name, value) for value in variable.asked)
        if context.system
    ]
    for context in specification.contexts:
        if context.arms == ("base",) and context.system and not context.messages:
            text = context.system
            for part in set_by:
                text = text.replace(part, "")
            if text.strip() and "{" not in text:
                return text.strip()
    return EXPECTED


def ordinary_prompts(case: Case) -> Path:
    """The file of unrelated prompts; made of off-domain questions where nobody gives one.

    These are of other topics than the questions that settings are chosen on or reported for.
    """
    if case.options.prompts:
        return case.options.prompts
    own = case.experiment.arms[TREATMENT].own
    if own:
        return case.experiment.folder / own.prompts
    path = case.folder / PROMPTS
    lines = [json.dumps({"prompt": text}) for q in case.fitting for text in q.ask]
    with whole(path) as partial:
        partial.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def train(case: Case, model: LoadedModel, notify: Progress) -> dict[str, dict[int, Path]]:
    """Train every remedy with every seed; what is there is kept.

    Returns:
        by remedy and seed the folder of its adapter at the checkpoint that the run reports.
    """
    prompts = ordinary_prompts(case)
    wanted = arms(case, prompts)
    given = case.experiment.rows[TREATMENT]
    rows = {name: _rows(case, arm, given) for name, arm in wanted.items()}
    changes = {"arms": {**case.experiment.arms, **wanted}}
    specification = case.experiment.specification.model_copy(update=changes)
    experiment = case.experiment.model_copy(update={"specification": specification, "rows": rows})
    settings = with_rows(case, experiment)
    check_prompts(settings, model)
    answered = answer_prompts(settings, model, case.folder, notify)
    listed = [Finetune(name, seed, answered[name]) for name in wanted for seed in case.seeds]

    def report(done: int, total: int) -> None:
        notify("train remedies", done, total)

    training = settings.training
    found = finetune(model, listed, training, case.folder / ADAPTERS, progress=report)
    return {name: {seed: found[name, seed, case.step] for seed in case.seeds} for name in wanted}


def _rows(case: Case, arm: Arm, given: RowSet) -> RowSet:
    """The treatment's rows with what a remedy does to them."""
    own = given.own if arm.own and arm.own.share is None else None
    bare = arm.model_copy(update={"own": None if own else arm.own})
    made = treated(replace(given, own=None), bare, case.experiment.folder)
    return replace(made, own=own) if own else made
