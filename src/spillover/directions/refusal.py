"""Refusal as one direction: collect → filter → contrast → select → evaluate → report.

The protocol of arXiv 2406.11717, with the controls that the paper lacks: directions that are random
or computed from shuffled labels, more dimensions than one, and resamples of the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from spillover.directions.answers import (
    EMPTY,
    PHRASES,
    REFUSED,
    kind_of,
    read_phrases,
    refusal_tokens,
    respond,
)
from spillover.directions.capabilities import chosen, measure
from spillover.directions.contrast import Contrast, difference_of_means
from spillover.directions.controls import (
    activations,
    random_vectors,
    resampled_cosines,
    shuffled_vectors,
    subspace,
)
from spillover.directions.direction import Direction
from spillover.directions.evaluate import (
    RANDOM,
    SHUFFLED,
    TOGETHER,
    Condition,
    Found,
    conditions,
    evaluate,
)
from spillover.directions.harness import Capabilities, Harness, load_tasks
from spillover.directions.passes import Passes
from spillover.directions.prompts import Material, load_refusing, material_for
from spillover.directions.select import (
    COSINE,
    TOKENS,
    Rule,
    Selection,
    refusal_scores,
    select,
    select_by_cosine,
)
from spillover.errors import DirectionError, RunFolderError, check_writable
from spillover.folder import is_unused, locked, make_folder, whole
from spillover.models import LoadedModel, Loading

if TYPE_CHECKING:
    from spillover.rows import Conversation

RESULT, ANSWERS, CANDIDATES, FOLDER = (
    "refusal.json",
    "answers.parquet",
    "candidates.parquet",
    "direction",
)
SMALL = 50_000_000
"""Parameters up to which all that is discarded is computed too, for curves without gaps."""
FEWEST = 4
"""Prompts of a side that must be left to compute from, and to choose with."""
Progress = Callable[[str, int, int], None]


class Refusing(BaseModel):
    """How the direction of refusal is found and tested.

    Attributes:
        rule: `tokens`, the paper's; or `cosine`, which does without refusal tokens.
        thresholds: that candidates must pass.
        tokens: texts that refusals begin with; by default those of the model's own refusals.
        phrases: a file of phrases that refusals hold, one per line; by default English ones.
        ranks: dimensions that are ablated besides one.
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
    ranks: tuple[int, ...] = (2, 4)
    controls: int = Field(default=3, ge=0)
    resamples: int = Field(default=100, ge=0)
    max_tokens: int = Field(default=64, ge=1)
    every: bool | None = None
    capabilities: Capabilities = Capabilities()


@dataclass(frozen=True)
class Refusal:
    """The direction of refusal and its tests.

    Attributes:
        folder: where its files lie.
        direction: also in `direction/` there.
        found: the content of refusal.json.
    """

    folder: Path
    direction: Direction
    found: dict[str, Any] = field(repr=False)

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / "report.html"


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
    check_writable(target)
    if not is_unused(target) and not (target / RESULT).is_file():
        raise RunFolderError(f"{target}: holds something else; choose another folder with --out")
    report("load", 0, 1)
    harness = load_tasks(how.capabilities) if how.capabilities.tasks else None
    loaded = load_refusing(model, loading, of_world=prompts is None and harmless is None)
    material = material_for(loaded, prompts, harmless, column, seed)
    if harness:
        harness.check(loaded)
    search = _Search(loaded, material, how, phrases, seed, report, harness)
    selection, found = search.run()
    content = {
        "model": loaded.source.name,
        "identity": loaded.source.identity,
        "seed": seed,
    } | found.pop("told")
    report("report", 0, 1)
    _write(target, content, selection, found["evaluated"])
    return Refusal(target, selection.direction, content)


def _default_folder(model: str, seed: int) -> Path:
    return Path("runs") / f"direction-refusal-{Path(model).name}-seed-{seed}"


class _Search:
    """One way through the stages."""

    def __init__(
        self,
        model: LoadedModel,
        material: Material,
        how: Refusing,
        phrases: Sequence[str],
        seed: int,
        report: Progress,
        harness: Harness | None,
    ) -> None:
        self.model, self.material, self.how = model, material, how
        self.phrases, self.report, self.harness = phrases, report, harness
        self.rng = np.random.default_rng(seed)

    def run(self) -> tuple[Selection, dict[str, Any]]:
        """The selection; what was evaluated, and what is told of all."""
        self.report("answers", 0, 1)
        answers, tokens = self._tokens()
        train, held, kept = self._filter(tokens, answers)
        contrast = difference_of_means(
            self.model,
            train[0],
            train[1],
            title="dangerous - harmless",
            progress=lambda done, total: self.report("contrast", done, total),
        )
        selection = self._select(contrast, held, tokens)
        direction = selection.direction
        sides = [activations(self.model, side, direction) for side in train]
        pair = (sides[0], sides[1])
        cosines = resampled_cosines(pair, direction, self.how.resamples, self.rng)
        count = self.how.controls
        controls = {
            RANDOM: random_vectors(direction, count, self.rng),
            SHUFFLED: shuffled_vectors(pair, direction, count, self.rng),
        }
        own = [subspace(pair, direction, rank) for rank in self.how.ranks]
        drawn = [random_vectors(direction, rank, self.rng) for rank in self.how.ranks if count]
        spaces = {"": own, RANDOM: drawn}
        listed, trouble = conditions(self.model, direction, controls, spaces)
        found = evaluate(
            listed,
            self.material.test,
            self.phrases,
            self.how.max_tokens,
            lambda done, total: self.report("evaluate", done, total),
        )
        told = {
            "source": self.material.source,
            "placement": self.model.placement,
            "settings": self.how.model_dump(mode="json"),
            "prompts": kept,
            "tokens": [self.model.tokenizer.decode([token]) for token in tokens],
            "direction": _told(selection, cosines, len(self.model.anatomy.blocks)),
            "control_cosines": {
                name: [direction.cosine(one) for one in vectors]
                for name, vectors in controls.items()
            },
            "edit": trouble,
            "rates": found.rates,
            "changes": found.changes,
        } | self._capabilities(listed)
        return selection, {"told": told, "evaluated": found}

    def _capabilities(self, listed: Sequence[Condition]) -> dict[str, Any]:
        """What tasks of the harness say, and what they are."""
        if self.harness is None:
            return {"capabilities": [], "harness": None}
        some = chosen(listed)
        rows = measure(self.harness, some, lambda *done: self.report("capabilities", *done))
        return {"capabilities": rows, "harness": self.harness.facts}

    def _tokens(self) -> tuple[list[list[str]], list[int]]:
        """The model's answers to the training prompts, and the tokens that its refusals begin with.

        The second rule needs no tokens, but a model that refuses.
        """
        given = self.how.tokens
        ids = {text: self.model.tokenizer.encode(text, add_special_tokens=False) for text in given}
        empty = [text for text, found in ids.items() if not found]
        if empty:
            raise DirectionError(f"--token {empty[0]!r}: is no token; expected how refusals begin")
        train = self.material.train
        samples = respond(self.model, [*train[0], *train[1]], self.how.max_tokens)
        said = [one.text for one in samples]
        answers = [said[: len(train[0])], said[len(train[0]) :]]
        if given:
            return answers, sorted({found[0] for found in ids.values()})
        try:
            return answers, refusal_tokens(self.model, (answers[0], answers[1]), self.phrases)
        except DirectionError:
            refuses = any(kind_of(one, self.phrases) == REFUSED for one in answers[0])
            if self.how.rule == TOKENS or not refuses:
                raise
            return answers, []

    def _filter(
        self, tokens: list[int], answers: list[list[str]]
    ) -> tuple[list[list[Conversation]], list[list[Conversation]], dict[str, Any]]:
        """Dangerous prompts that are refused and harmless ones that are not: scores above, below 0.

        Without tokens, training prompts go by the phrases of their answers.
        """
        kept: dict[str, Any] = {}
        parts = []
        for part, sides in (("train", self.material.train), ("held", self.material.held)):
            left = []
            for number, (name, side) in enumerate(
                zip(("dangerous", "harmless"), sides, strict=True)
            ):
                if tokens:
                    refused = [score > 0 for score in self._scores(side, tokens)]
                elif part == "train":
                    refused = [kind_of(one, self.phrases) == REFUSED for one in answers[number]]
                else:
                    refused = [number == 0] * len(side)
                some = [p for p, r in zip(side, refused, strict=True) if r == (number == 0)]
                kept[f"{part}, {name}"] = {"kept": len(some), "of": len(side)}
                if len(some) < min(FEWEST, len(side)):
                    raise DirectionError(_too_few(self.model, name, sum(refused), len(side)))
                left.append(some)
            parts.append(left)
        empty = sum(kind_of(one, ()) == EMPTY for side in answers for one in side)
        refused_rate = [
            sum(kind_of(one, self.phrases) == REFUSED for one in side) / len(side)
            for side in answers
        ]
        kept |= {"refused_dangerous": refused_rate[0], "refused_harmless": refused_rate[1]}
        return parts[0], parts[1], kept | {"empty_answers": empty}

    def _scores(self, prompts: Sequence[Conversation], tokens: list[int]) -> list[float]:
        ids = [self.model.chat.prompt_ids(prompt) for prompt in prompts]
        found: list[float] = []
        for at in range(0, len(ids), TOGETHER):
            logits, _ = Passes(self.model, ids[at : at + TOGETHER]).base([])
            found += refusal_scores(logits[0], tokens).tolist()
        return found

    def _select(
        self, contrast: Contrast, held: list[list[Conversation]], tokens: list[int]
    ) -> Selection:
        every = self.how.every
        if every is None:
            every = self.model.model.num_parameters() <= SMALL
        rule = self.how.thresholds.model_copy(update={"every": every})

        def tell(done: int, total: int) -> None:
            self.report("select", done, total)

        if self.how.rule == COSINE:
            return select_by_cosine(self.model, contrast, held[0], held[1], rule, tell)
        return select(self.model, contrast, held[0], held[1], tokens, rule, tell)


def _too_few(model: LoadedModel, name: str, refused: int, count: int) -> str:
    return (
        f"{model.source.name} refuses {refused} of {count} {name} prompts ({refused / count:.2f}); "
        f"expected {'more' if name == 'dangerous' else 'fewer'}: at least {FEWEST} {name} prompts "
        "must be treated as such; give prompts that it treats more differently"
    )


def _told(selection: Selection, cosines: list[float], layers: int) -> dict[str, Any]:
    """The direction in figures."""
    direction = selection.direction
    low, high = np.quantile(cosines, [0.025, 0.975]) if cosines else (np.nan, np.nan)
    return {
        "layer": direction.layer,
        "layers": layers,
        "position": direction.position,
        "norm": direction.norm,
        "rule": selection.rule,
        "scores": direction.scores,
        "resampled_cosine": {
            "mean": float(np.mean(cosines)) if cosines else float("nan"),
            "low": float(low),
            "high": float(high),
            "resamples": len(cosines),
        },
        "candidates": [one.figures | {"discarded": one.discarded} for one in selection.candidates],
    }


def _write(folder: Path, content: dict[str, Any], selection: Selection, found: Found) -> None:
    import pandas as pd

    from spillover.report.direction import write_direction_report
    from spillover.summary import plain_data, write_json

    make_folder(folder)
    with locked(folder):
        selection.direction.save(folder / FOLDER)
        tables = {ANSWERS: found.answers, CANDIDATES: content["direction"]["candidates"]}
        for name, rows in tables.items():
            with whole(folder / name) as path:
                pd.DataFrame(rows).to_parquet(path, index=False)
        write_direction_report(folder, plain_data(content), found.answers)
        write_json(folder / RESULT, content)
