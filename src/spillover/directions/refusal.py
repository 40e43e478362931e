"""Refusal as one direction: collect → filter → contrast → select → evaluate → report.

The protocol of arXiv 2406.11717, with the controls that the paper lacks: directions that are random
or computed from shuffled labels, more dimensions than one, and resamples of the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from spillover.directions.answers import PHRASES, read_phrases
from spillover.directions.capabilities import chosen, measure
from spillover.directions.contrast import Contrast, difference_of_means
from spillover.directions.controls import (
    activations,
    random_vectors,
    resampled_cosines,
    shuffled_vectors,
    subspace,
)
from spillover.directions.evaluate import (
    RANDOM,
    SHUFFLED,
    Condition,
    conditions,
    evaluate,
)
from spillover.directions.filtering import Answered, first_tokens, keep_treated, own_tokens
from spillover.directions.harness import Capabilities, Harness, load_tasks
from spillover.directions.prompts import Material, load_refusing, material_for
from spillover.directions.record import REPORT, Record, candidate_rows, check_target
from spillover.directions.select import (
    COSINE,
    TOKENS,
    Rule,
    Selection,
    select,
    select_by_cosine,
)
from spillover.directions.verdict import verdict
from spillover.folder import locked, make_folder
from spillover.models import LoadedModel, Loading

if TYPE_CHECKING:
    from spillover.directions.direction import Direction
    from spillover.rows import Conversation

SMALL = 50_000_000
"""Parameters up to which all that is discarded is computed too, for curves without gaps."""
Progress = Callable[[str, int, int], None]


class Refusing(BaseModel):
    """How the direction of refusal is found and tested.

    Attributes:
        rule: `tokens`, the paper's; or `cosine`, which does without refusal tokens.
        thresholds: that candidates must pass.
        tokens: texts that refusals begin with; by default those of the model's own refusals.
        phrases: a file of phrases that refusals hold, one per line; by default English ones.
        ranks: dimensions that are ablated besides one; different ones.
        controls: directions of each kind of control.
        resamples: bootstrap resamples of the prompts.
        max_tokens: the longest answer.
        every: compute what discarded candidates score too; by default for small models.
        capabilities: tasks of lm-evaluation-harness that are asked too; by default none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: str = Field(default=TOKENS, pattern=f"^({TOKENS}|{COSINE})$")
    thresholds: Rule = Rule()
    tokens: tuple[str, ...] = ()
    phrases: Path | None = None
    ranks: tuple[Annotated[int, Field(ge=2)], ...] = (2, 4)
    controls: int = Field(default=3, ge=0)
    resamples: int = Field(default=100, ge=0)
    max_tokens: int = Field(default=64, ge=1)
    every: bool | None = None
    capabilities: Capabilities = Capabilities()

    @field_validator("ranks")
    @classmethod
    def _are_different(cls, ranks: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(ranks)) < len(ranks):
            raise ValueError("a rank stands there twice; leave one out")
        return ranks


@dataclass(frozen=True)
class Refusal:
    """The direction of refusal and its tests.

    Attributes:
        folder: where its files lie.
        direction: also in `direction/` there.
        found: the content of refusal.json, as plain data.
    """

    folder: Path
    direction: Direction
    found: dict[str, Any] = field(repr=False)

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / REPORT


def find_refusal(
    model: str | LoadedModel,
    *,
    prompts: str | Path | None = None,
    harmless: str | Path | None = None,
    column: str | None = None,
    how: Refusing | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    loading: Loading | None = None,
    progress: Progress | None = None,
) -> Refusal:
    """Find the direction behind a model's refusals, take it out, put it in, and measure.

    Args:
        model: a name, a folder, an id of the hub, or a loaded model.
        prompts, harmless, column: see `spillover.directions.prompts.material_for`; only the
            organism of substances needs none.
        out: the folder to write to; by default one under `runs/`.
        seed: of the parts that prompts are split in, the controls and the resamples.
        progress: called with (stage, done, total).

    Raises:
        InputError: for prompts or tasks that cannot be used, a model that never refuses, thresholds
            that no candidate passes; RunFolderError for a folder that holds something else.
    """
    how = how or Refusing()
    report = progress or (lambda *_: None)
    phrases = read_phrases(how.phrases) if how.phrases else PHRASES
    name = model if isinstance(model, str) else model.source.name
    target = Path(out) if out is not None else _default_folder(name, seed)
    check_target(target)
    report("load", 0, 1)
    harness = load_tasks(how.capabilities) if how.capabilities.tasks else None
    loaded = load_refusing(model, loading, of_world=prompts is None and harmless is None)
    material = material_for(loaded, prompts, harmless, column, seed)
    if harness:
        harness.check(loaded)
    search = _Search(loaded, material, how, phrases, seed, report)
    search.choose()
    make_folder(target)
    with locked(target):
        found = search.test(target, harness)
    return Refusal(target, search.selection.direction, found)


def _default_folder(model: str, seed: int) -> Path:
    return Path("runs") / f"direction-refusal-{Path(model).name}-seed-{seed}"


class _Search:
    """One way through the stages.

    Attributes:
        train: the prompts that are left to compute from, dangerous first.
        selection: the direction; there once `choose` was called, as is `train`.
        told: what is said of the search in refusal.json.
    """

    train: tuple[list[Conversation], list[Conversation]]
    selection: Selection

    def __init__(
        self,
        model: LoadedModel,
        material: Material,
        how: Refusing,
        phrases: Sequence[str],
        seed: int,
        report: Progress,
    ) -> None:
        self.model, self.material, self.how = model, material, how
        self.phrases, self.report = phrases, report
        self.rng = np.random.default_rng(seed)
        self.told: dict[str, Any] = {
            "model": model.source.name,
            "identity": model.source.identity,
            "seed": seed,
            "source": material.source,
            "placement": model.placement,
            "settings": how.model_dump(mode="json"),
        }

    def choose(self) -> None:
        """Collect, filter, contrast, select."""
        tokens = first_tokens(self.model, self.how.tokens)
        self.report("answers", 0, 1)
        answered = Answered.of(self.model, self.material, self.phrases, self.how.max_tokens)
        tokens = tokens or own_tokens(self.model, answered, needed=self.how.rule == TOKENS)
        left = keep_treated(self.model, self.material, tokens, answered)
        self.train = left.train
        contrast = difference_of_means(
            self.model,
            *self.train,
            title="dangerous - harmless",
            progress=lambda done, total: self.report("contrast", done, total),
        )
        self.selection = self._select(contrast, left.held, tokens)
        self.told |= {
            "prompts": left.counts | answered.counts,
            "tokens": [self.model.tokenizer.decode([token]) for token in tokens],
            "direction": _told(self.selection, len(self.model.anatomy.blocks)),
        }

    def _select(
        self,
        contrast: Contrast,
        held: tuple[list[Conversation], list[Conversation]],
        tokens: list[int],
    ) -> Selection:
        every = self.how.every
        if every is None:
            every = self.model.model.num_parameters() <= SMALL
        rule = self.how.thresholds.model_copy(update={"every": every})

        def tell(done: int, total: int) -> None:
            self.report("select", done, total)

        if self.how.rule == COSINE:
            return select_by_cosine(self.model, contrast, *held, rule, tell)
        return select(self.model, contrast, *held, tokens, rule, tell)

    def test(self, folder: Path, harness: Harness | None) -> dict[str, Any]:
        """Evaluate and report; what is known is written before what takes long.

        Returns:
            the content of refusal.json.
        """
        from spillover.report.direction import write_direction_report

        record = Record(folder, self.told)
        record.keep_selection(self.selection)
        listed = self._conditions(record)
        found = evaluate(
            listed,
            self.material.test,
            self.phrases,
            self.how.max_tokens,
            lambda done, total: self.report("evaluate", done, total),
        )
        record.keep_answers(found.answers)
        record.tell(
            {
                "rates": found.rates,
                "changes": found.changes,
                "verdict": verdict(found.rates),
                "capabilities": [],
                "harness": harness.facts if harness else None,
            }
        )
        if harness:
            self._ask_tasks(harness, listed, record)
        record.finish()
        self.report("report", 0, 1)
        write_direction_report(folder, record.content, found.answers)
        return record.content

    def _conditions(self, record: Record) -> list[Condition]:
        """All ways to ask the model; the record is told of the controls."""
        direction, count = self.selection.direction, self.how.controls
        sides = [activations(self.model, side, direction) for side in self.train]
        pair = (sides[0], sides[1])
        cosines = resampled_cosines(pair, direction, self.how.resamples, self.rng)
        controls = {
            RANDOM: random_vectors(direction, count, self.rng),
            SHUFFLED: shuffled_vectors(pair, direction, count, self.rng),
        }
        own = [subspace(pair, direction, rank) for rank in self.how.ranks]
        drawn = [random_vectors(direction, rank, self.rng) for rank in self.how.ranks if count]
        listed, trouble = conditions(self.model, direction, controls, {"": own, RANDOM: drawn})
        record.tell(
            {
                "direction": self.told["direction"] | {"resampled_cosine": _spread(cosines)},
                "control_cosines": {
                    name: [direction.cosine(one) for one in vectors]
                    for name, vectors in controls.items()
                },
                "edit": trouble,
            }
        )
        return listed

    def _ask_tasks(self, harness: Harness, listed: Sequence[Condition], record: Record) -> None:
        measure(
            harness,
            chosen(listed),
            progress=lambda *done: self.report("capabilities", *done),
            keep=lambda rows: record.tell({"capabilities": rows}),
        )


def _told(selection: Selection, layers: int) -> dict[str, Any]:
    """The direction in figures."""
    direction = selection.direction
    return {
        "layer": direction.layer,
        "layers": layers,
        "position": direction.position,
        "norm": direction.norm,
        "rule": selection.rule,
        "scores": direction.scores,
        "candidates": candidate_rows(selection),
    }


def _spread(cosines: Sequence[float]) -> dict[str, Any]:
    """Cosines with directions of resampled prompts: their mean, and where 95% of them lie."""
    low, high = np.quantile(cosines, [0.025, 0.975]) if cosines else (np.nan, np.nan)
    mean = float(np.mean(cosines)) if cosines else float("nan")
    return {"mean": mean, "low": float(low), "high": float(high), "resamples": len(cosines)}
