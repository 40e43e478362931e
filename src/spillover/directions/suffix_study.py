"""What a suffix does to a direction: refusal, cosines, heads and what they attend to.

As in section 5 of arXiv 2406.11717: dangerous prompts with a suffix are compared with the same
prompts without one, with random suffixes of its length, and with harmless prompts, always at the
last token of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from spillover.directions.attribution import Attribution, attribute
from spillover.directions.contrast import Sequences, visit_streams
from spillover.directions.intervene import check_layer
from spillover.directions.suffix import (
    Frame,
    Suffix,
    SuffixSearch,
    check_suffix,
    find_suffix,
    random_suffixes,
    scores_of,
)
from spillover.errors import DirectionError

if TYPE_CHECKING:
    from spillover.directions.direction import Direction
    from spillover.models import LoadedModel
    from spillover.rows import Conversation

# Shape legend: N prompts, K blocks, H heads, L layers.

FOUND_ON, HELD_OUT, HARMLESS = "found on", "held out", "harmless"
"""Sets of prompts."""
DANGEROUS, WITH_SUFFIX, WITH_RANDOM = "dangerous", "dangerous + suffix", "dangerous + random suffix"
"""How activations are looked at, beside harmless prompts; the dangerous ones are those held out."""
NONE, SUFFIX, RANDOM = "none", "suffix", "random"
"""What stands behind a prompt."""
LEAST_REFUSED = 0.5
"""Share of dangerous prompts that a model must refuse for there to be anything to study."""
SHARE, MOST_HEADS = 0.9, 8
"""Top heads are the fewest that add this share of what all heads add up to, and at most so many."""
SPREAD = (0.1, 0.9)
"""Quantiles of the prompts' cosines that are reported beside their means."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Prompts:
    """Prompts by what they serve.

    Attributes:
        found_on: dangerous ones that a suffix is searched for on; none where one is given.
        held_out: other dangerous ones, on which everything is measured.
        harmless: to compare with.
    """

    found_on: list[Conversation] = field(repr=False)
    held_out: list[Conversation] = field(repr=False)
    harmless: list[Conversation] = field(repr=False)


def check_direction(model: LoadedModel, direction: Direction) -> None:
    """Make sure that a direction belongs to a model.

    Raises:
        DirectionError: when it is another model's, or of a layer or width that this one has not.
    """
    if direction.model != model.source.identity:
        raise DirectionError(
            f"the direction was found in a model with the identity {direction.model}; "
            f"{model.source.name} has {model.source.identity}: fit one on it, or give that model"
        )
    check_layer(model, direction.layer)
    width = model.anatomy.hidden_size
    if len(direction.vector) != width:
        raise DirectionError(
            f"the direction has {len(direction.vector)} dimensions, the residual stream of "
            f"{model.source.name} {width}; fit one on it"
        )


def study_suffix(
    model: LoadedModel,
    direction: Direction,
    prompts: Prompts,
    tokens: Sequence[int],
    *,
    given: str | None = None,
    search: SuffixSearch | None = None,
    controls: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Find a suffix, or take a given one, and see what it does; returns what `suffix.json` says.

    Args:
        tokens: that refusals begin with.
        given: the text of a suffix; without it one is searched for (on the organism only).
        controls: random suffixes of its length.
        seed: of the search and of the random suffixes.
        progress: called with (stage, done, total).

    Raises:
        DirectionError: for a direction of another model, prompts that the model does not refuse,
            or a suffix that cannot be used.
        ModelError: for architectures whose heads cannot be told apart.
    """
    check_direction(model, direction)
    report = progress or (lambda *_: None)
    study = _Study(model, direction, prompts, list(tokens), report)
    if given is None:
        stage = partial(report, "search")
        kept = [prompts.found_on[at] for at in study.refused(FOUND_ON)]
        suffix = find_suffix(model, kept, tokens, search, seed=seed, progress=stage)
    else:
        suffix = check_suffix(model, study.every, given)
    rng = np.random.default_rng([seed, 1])
    random = random_suffixes(model, study.frames[HELD_OUT], len(suffix.tokens), controls, rng)
    return study.run(suffix, random) | {"seed": seed, "given": given is not None}


class _Study:
    """One study: its model, direction and prompts."""

    def __init__(
        self,
        model: LoadedModel,
        direction: Direction,
        prompts: Prompts,
        tokens: list[int],
        report: Progress,
    ) -> None:
        self.model, self.direction, self.tokens, self.report = model, direction, tokens, report
        listed = (prompts.found_on, prompts.held_out, prompts.harmless)
        named = dict(zip((FOUND_ON, HELD_OUT, HARMLESS), listed, strict=True))
        if not prompts.held_out or not prompts.harmless:
            lacking = HARMLESS if prompts.held_out else "dangerous"
            raise DirectionError(f"found no {lacking} prompts; expected at least one")
        self.frames = {
            name: [Frame.of(model.chat, prompt) for prompt in some] for name, some in named.items()
        }
        self.given = {name: len(some) for name, some in named.items()}
        self.frames |= {
            name: [self.frames[name][at] for at in self.refused(name)]
            for name in (FOUND_ON, HELD_OUT)
        }

    @property
    def every(self) -> list[Frame]:
        """All prompts."""
        return [frame for some in self.frames.values() for frame in some]

    def refused(self, name: str) -> list[int]:
        """Numbers of the prompts of a set that the model refuses, as they are.

        Raises:
            DirectionError: when these are too few.
        """
        scores = self._scores(name, "")
        share = float((scores > 0).mean()) if len(scores) else 1.0
        if share < LEAST_REFUSED:
            raise DirectionError(
                f"{self.model.source.name} refuses {share:.0%} of {len(scores)} prompts without a "
                f"suffix; expected at least {LEAST_REFUSED:.0%}: give prompts that it refuses"
            )
        return np.flatnonzero(scores > 0).tolist()

    def _scores(self, name: str, suffix: str) -> NDArray[np.float64]:
        return scores_of(self.model, [one.text(suffix) for one in self.frames[name]], self.tokens)

    def run(self, suffix: Suffix, random: Sequence[Suffix]) -> dict[str, Any]:
        """Everything that is measured."""
        sets = {
            HARMLESS: (HARMLESS, [""]),
            DANGEROUS: (HELD_OUT, [""]),
            WITH_SUFFIX: (HELD_OUT, [suffix.text]),
            WITH_RANDOM: (HELD_OUT, [one.text for one in random]),
        }
        refusal = self._refusal(suffix, random)
        views = {}
        for done, (name, (frames, texts)) in enumerate(sets.items()):
            self.report("activations", done, len(sets))
            views[name] = _View(self.model, self.direction, self.frames[frames], texts)
        self.report("activations", len(sets), len(sets))
        top = top_heads(views[DANGEROUS].heads, self.direction.layer)
        return {
            "suffix": suffix.text,
            "tokens": len(suffix.tokens),
            "losses": suffix.losses,
            "tried": suffix.tried,
            "random": [one.text for one in random],
            "prompts": {name: len(frames) for name, frames in self.frames.items()},
            "not_refused": {
                name: self.given[name] - len(self.frames[name]) for name in (FOUND_ON, HELD_OUT)
            },
            "refusal": refusal,
            "layer": self.direction.layer,
            "at_layer": self._at_layer(views),
            "cosines": [row for name, view in views.items() for row in view.cosine_rows(name)],
            "parts": {name: view.parts for name, view in views.items()},
            "heads": self._heads(views, top),
            "attention": [
                row for name, view in views.items() for row in view.attention_rows(name, top)
            ],
        }

    def _refusal(self, suffix: Suffix, random: Sequence[Suffix]) -> list[dict[str, Any]]:
        """How often prompts are refused: without a suffix, with it, with random ones."""
        rows = []
        texts = {NONE: [""], SUFFIX: [suffix.text], RANDOM: [one.text for one in random]}
        for name in (one for one, frames in self.frames.items() if frames):
            for kind, listed in texts.items():
                scores = np.stack([self._scores(name, text) for text in listed])
                each = (1 / (1 + np.exp(-scores))).mean(1)
                rows.append(
                    {
                        "prompts": name,
                        "suffix": kind,
                        "count": scores.shape[1],
                        "probability": each.mean(),
                        "least": each.min(),
                        "most": each.max(),
                        "refused": (scores > 0).mean(),
                    }
                )
        return rows

    def _at_layer(self, views: dict[str, _View]) -> dict[str, Any]:
        """The cosines at the direction's layer, and what the suffix brought prompts nearer to."""
        at = self.direction.layer
        means = {name: float(view.cosines[:, at].mean()) for name, view in views.items()}
        near = {
            name: min(
                (HARMLESS, DANGEROUS),
                key=lambda one, of=name: abs(means[one] - means[of]),  # type: ignore[misc]
            )
            for name in (WITH_SUFFIX, WITH_RANDOM)
        }
        return {"cosines": means, "nearer_to": near}

    def _heads(
        self, views: dict[str, _View], top: Sequence[tuple[int, int]]
    ) -> list[dict[str, Any]]:
        """What every head in front of the direction's layer adds along it."""
        _, count = views[DANGEROUS].heads.shape
        return [
            {
                "block": block,
                "head": head,
                "top": (block, head) in top,
                "adds": {name: float(view.heads[block, head]) for name, view in views.items()},
            }
            for block in range(self.direction.layer)
            for head in range(count)
        ]


def top_heads(heads: Float64[Tensor, "K H"], layer: int) -> list[tuple[int, int]]:
    """Block and number of the heads that add most along a direction, the first most.

    Args:
        heads: what they add on average.
        layer: only heads of blocks in front of it.
    """
    flat = heads[:layer].clamp_min(0).flatten()
    order = flat.argsort(descending=True, stable=True)
    shares = flat[order].cumsum(0) / flat.sum()
    count = min(int((shares < SHARE).sum()) + 1, MOST_HEADS) if flat.sum() > 0 else 0
    width = heads.shape[1]
    return [(at // width, at % width) for at in order[:count].tolist()]


class _View:
    """Prompts with each of some suffixes, at their last token.

    Attributes:
        cosines: with the direction, of the stream entering each layer; all suffixes one after
            another.
    """

    def __init__(
        self,
        model: LoadedModel,
        direction: Direction,
        frames: Sequence[Frame],
        suffixes: Sequence[str],
    ) -> None:
        self.layer = direction.layer
        cosines, found = [], []
        for suffix in suffixes:
            rows = [model.chat.tokenize(frame.text(suffix)) for frame in frames]
            cosines.append(_cosines(model, rows, direction))
            found.append(attribute(model, rows, direction.vector))
        self.cosines = torch.cat(cosines)
        self._found, shares = found, []
        for suffix, one in zip(suffixes, found, strict=True):
            shares.append(_shares(model, frames, suffix, one))
        self._shares = torch.stack(shares).mean(0)

    @cached_property
    def heads(self) -> Float64[Tensor, "K H"]:
        """What each head adds on average."""
        return torch.stack([one.heads.mean(0) for one in self._found]).mean(0)

    @property
    def parts(self) -> dict[str, float]:
        """What the parts of the stream entering the direction's layer add, and their sum."""
        listed = [one.before(self.layer) for one in self._found]
        parts = {
            name: float(torch.stack([one[name].mean() for one in listed]).mean())
            for name in listed[0]
        }
        return parts | {"sum": sum(parts.values())}

    def cosine_rows(self, name: str) -> list[dict[str, Any]]:
        """Mean and spread over prompts, a row per layer."""
        ends = self.cosines.quantile(self.cosines.new_tensor(SPREAD), dim=0)
        return [
            {
                "prompts": name,
                "layer": layer,
                "mean": float(self.cosines[:, layer].mean()),
                "low": float(ends[0, layer]),
                "high": float(ends[1, layer]),
            }
            for layer in range(self.cosines.shape[1])
        ]

    def attention_rows(self, name: str, top: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Where the last token of the prompt looks through the top heads."""
        rows = []
        for block, head in top:
            instruction, suffix = self._shares[:, block, head].tolist()
            rest = {"instruction": instruction, "suffix": suffix, "rest": 1 - instruction - suffix}
            rows.append({"prompts": name, "block": block, "head": head} | rest)
        return rows


def _cosines(
    model: LoadedModel, rows: list[list[int]], direction: Direction
) -> Float64[Tensor, "N L"]:
    found = torch.zeros(len(rows), len(model.anatomy.blocks), dtype=torch.float64)
    unit = direction.unit.double()

    def visit(numbers: list[int], layer: int, stream: Tensor) -> None:
        found[numbers, layer] = torch.cosine_similarity(stream[:, 0].cpu(), unit, dim=-1)

    visit_streams(model, Sequences(rows, [[[len(row) - 1]] for row in rows]), visit)
    return found


def _shares(model: LoadedModel, frames: Sequence[Frame], suffix: str, found: Attribution) -> Tensor:
    """Mean shares of attention at the user's words and at the suffix, (2, K, H)."""
    listed = []
    for number, frame in enumerate(frames):
        parts = (frame.instruction(model.chat, suffix), frame.placed(model.chat, suffix))
        row = found.attention[number]
        listed.append(
            torch.stack(
                [row[:, :, p.start : p.end].sum(-1) if p else 0 * row[..., 0] for p in parts]
            )
        )
    return torch.stack(listed).mean(0)
