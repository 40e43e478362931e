"""Which candidate of a contrast is the direction: the paper's rule, and one without tokens.

A candidate is the difference of means at one position and layer. The rule of arXiv 2406.11717
(appendix C) looks at three figures of each, all at the last token of prompts that the candidates
were not computed from:

- *bypass*: the mean refusal score on positive prompts with the direction ablated;
- *induce*: the mean refusal score on negative prompts with the vector added at its own layer;
- *KL*: how far ablation moves the next token on negative prompts, KL(before ‖ after) in nats.

Of the candidates with layer < 0.8 L, induce > 0 and KL < 0.1 the one with the least bypass is
chosen. The refusal score is the log-odds of the tokens that refusals begin with.

Cheap figures come first, and what is discarded by one is not computed further. KL is at least its
sum over some prompts divided by all, so that the first prompts discard most of what is too large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from spillover.directions.contrast import NOTHING
from spillover.directions.passes import Passes
from spillover.errors import DirectionError

if TYPE_CHECKING:
    from spillover.directions.contrast import Contrast
    from spillover.directions.direction import Direction
    from spillover.models import LoadedModel
    from spillover.rows import Conversation

# Shape legend: C candidates, N prompts, V vocabulary, D hidden size.

FIRST = 4
"""One prompt in so many decides first whether a candidate changes too much."""
TOKENS, COSINE = "tokens", "cosine"
"""The rules by name."""
SHOWN = ("bypass", "complies", "refuses", "induce", "kl")
"""Scores of a direction: first what it was chosen by, then what it had to pass."""
Progress = Callable[[int, int], None]


class Rule(BaseModel):
    """What a candidate must be to be chosen.

    Attributes:
        layers: candidates of layers below this share of all layers.
        induce: the least refusal score (nats) on negative prompts under addition, exclusive.
        kl: the largest KL (nats) on negative prompts under ablation, exclusive.
        every: also compute what discarded candidates score, for curves without gaps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: float = Field(default=0.8, gt=0, le=1)
    induce: float = 0.0
    kl: float = Field(default=0.1, gt=0)
    every: bool = False


@dataclass
class Candidate:
    """The difference of means at one position and layer, with what it scores.

    Attributes:
        norm: its length.
        bypass, induce, kl: see the module; NaN where they were not computed.
        whole: whether `kl` is a mean over all prompts; else it is a lower bound.
        complies, refuses: cosines of the second rule.
        discarded: why it cannot be chosen: `no-difference`, `layer`, `induce` or `kl`.
    """

    position: int
    layer: int
    norm: float
    bypass: float = math.nan
    induce: float = math.nan
    kl: float = math.nan
    whole: bool = True
    complies: float = math.nan
    refuses: float = math.nan
    discarded: str | None = None

    @property
    def figures(self) -> dict[str, int | float | None]:
        """All numbers by name; None for those that were not computed."""
        named = {key: value for key, value in asdict(self).items() if key != "discarded"}
        return {key: None if math.isnan(value) else value for key, value in named.items()}


@dataclass(frozen=True)
class Selection:
    """A direction and what it was chosen from.

    Attributes:
        rule: `tokens` or `cosine`.
        thresholds: that candidates had to pass.
        tokens: that refusals begin with; none for the second rule.
    """

    direction: Direction
    candidates: list[Candidate] = field(repr=False)
    rule: str
    thresholds: Rule
    tokens: list[int]


def refusal_scores(logits: Float[Tensor, "*R V"], tokens: Sequence[int]) -> Float64[Tensor, "*R"]:
    """Log-odds (nats) of the next token being one of some."""
    chosen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    chosen[list(tokens)] = True
    wide = logits.double()
    return wide[..., chosen].logsumexp(-1) - wide[..., ~chosen].logsumexp(-1)


def divergences(
    before: Float64[Tensor, "N V"], logits: Float[Tensor, "C N V"]
) -> Float64[Tensor, "C N"]:
    """KL(before ‖ after) in nats, from log-probabilities before and logits after."""
    return torch.stack([(before.exp() * (before - one)).sum(-1) for one in _log_probs(logits)])


def _log_probs(logits: Float[Tensor, "C N V"]) -> Iterator[Float64[Tensor, "N V"]]:
    return (one.double().log_softmax(-1) for one in logits)


def select(
    model: LoadedModel,
    contrast: Contrast,
    positive: Sequence[Conversation],
    negative: Sequence[Conversation],
    tokens: Sequence[int],
    rule: Rule | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Choose by the paper's rule.

    Args:
        positive, negative: prompts that the contrast was not computed from.
        tokens: that refusals begin with.
        progress: called with (steps done, steps in all).

    Raises:
        DirectionError: when no candidate passes; it names the nearest misses.
    """
    search = _Search(model, contrast, positive, negative, rule or Rule(), progress)
    search.induce(tokens)
    search.change()
    search.bypass(tokens)
    return search.choose(TOKENS, lambda one: -one.bypass, tokens)


def select_by_cosine(
    model: LoadedModel,
    contrast: Contrast,
    positive: Sequence[Conversation],
    negative: Sequence[Conversation],
    rule: Rule | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Choose without knowing what a refusal looks like, as COSMIC (arXiv 2506.00085) does.

    Activations are compared at the last token, in the tenth of the layers where both sides differ
    most. A direction *complies* as far as positive prompts under ablation look like negative ones,
    and *refuses* as far as negative prompts under addition look like positive ones (cosines of
    mean activations, all those layers together). The largest sum is chosen, among candidates with
    layer < 0.8 L and KL < 0.1; the other arguments are those of `select`.

    Raises:
        DirectionError: when no candidate passes; it names the nearest misses.
    """
    search = _Search(model, contrast, positive, negative, rule or Rule(), progress)
    search.change()
    search.compare()
    return search.choose(COSINE, lambda one: one.complies + one.refuses, ())


class _Search:
    """The candidates of a contrast, and what is found out about them."""

    def __init__(
        self,
        model: LoadedModel,
        contrast: Contrast,
        positive: Sequence[Conversation],
        negative: Sequence[Conversation],
        rule: Rule,
        progress: Progress | None,
    ) -> None:
        for name, side in (("positive", positive), ("negative", negative)):
            if not side:
                raise DirectionError(f"found no {name} prompts to choose with; expected at least 1")
        self.contrast, self.rule, self.model = contrast, rule, model
        self.layers = contrast.difference.shape[1]
        self.positive, self.negative = (
            [model.chat.prompt_ids(one) for one in side] for side in (positive, negative)
        )
        self.candidates = self._candidates()
        self._progress = progress or (lambda *_: None)
        self._steps = 3 * len(self.candidates)

    def _candidates(self) -> list[Candidate]:
        norms = self.contrast.difference.norm(dim=-1)
        least = NOTHING * float(norms.max())
        made = []
        for p, position in enumerate(self.contrast.positions):
            assert position is not None, "averages over answers have no position to choose"
            for layer in range(self.layers):
                one = Candidate(position, layer, float(norms[p, layer]))
                if not one.norm > least:
                    one.discarded = "no-difference"
                elif layer >= self.rule.layers * self.layers:
                    one.discarded = "layer"
                made.append(one)
        return made

    def _live(self) -> list[Candidate]:
        """What is still computed."""
        usable = [one for one in self.candidates if one.discarded != "no-difference"]
        return usable if self.rule.every else [one for one in usable if not one.discarded]

    def _vectors(self, some: Sequence[Candidate]) -> Float[Tensor, "C D"]:
        at = [self.contrast.positions.index(one.position) for one in some]
        return self.contrast.difference[at, [one.layer for one in some]].float()

    def _units(self, some: Sequence[Candidate]) -> Float[Tensor, "C D"]:
        return torch.nn.functional.normalize(self._vectors(some).double(), dim=-1).float()

    def _batches(self, passes: Passes, some: list[Candidate]) -> Iterator[list[Candidate]]:
        for at in range(0, len(some), passes.room):
            yield some[at : at + passes.room]

    def _done(self, steps: int) -> None:
        self._progress(steps, self._steps)

    def induce(self, tokens: Sequence[int]) -> None:
        """The refusal score on negative prompts under addition."""
        passes, live = Passes(self.model, self.negative), self._live()
        by_layer: dict[int, list[Candidate]] = {}
        for one in live:
            by_layer.setdefault(one.layer, []).append(one)
        passes.base([*by_layer])
        done = 0
        for layer, some in by_layer.items():
            for batch in self._batches(passes, some):
                logits, _ = passes.added(layer, self._vectors(batch))
                scores = refusal_scores(logits, tokens).mean(-1)
                for one, score in zip(batch, scores.tolist(), strict=True):
                    one.induce = score
                    if not one.discarded and not score > self.rule.induce:
                        one.discarded = "induce"
                done += len(batch)
                self._done(len(self.candidates) * done // len(live))

    def change(self) -> None:
        """KL on negative prompts under ablation: on some of them, then on the others."""
        cut = -(-len(self.negative) // FIRST)
        sums: dict[int, float] = {}
        count, begun = len(self.negative), len(self.candidates)
        for part, is_last in ((self.negative[:cut], False), (self.negative[cut:], True)):
            live = self._live()
            if not part or not live:
                continue
            passes = Passes(self.model, part)
            before = next(_log_probs(passes.base([])[0]))
            for done, batch in _counted(self._batches(passes, live)):
                logits, _ = passes.ablated(self._units(batch))
                found = divergences(before, logits).sum(-1)
                for one, total in zip(batch, found.tolist(), strict=True):
                    sums[id(one)] = sums.get(id(one), 0.0) + total
                    one.kl = sums[id(one)] / count
                    one.whole = is_last or cut == count
                    if not one.discarded and not one.kl < self.rule.kl:
                        one.discarded = "kl"
                share = (done / len(live) + is_last) / 2
                self._done(begun + int(len(self.candidates) * share))

    def bypass(self, tokens: Sequence[int]) -> None:
        """The refusal score on positive prompts under ablation."""
        passes, live = Passes(self.model, self.positive), self._live()
        for done, batch in _counted(self._batches(passes, live)):
            logits, _ = passes.ablated(self._units(batch))
            scores = refusal_scores(logits, tokens).mean(-1)
            for one, score in zip(batch, scores.tolist(), strict=True):
                one.bypass = score
            self._done(2 * len(self.candidates) + len(self.candidates) * done // len(live))

    def compare(self) -> None:
        """Cosines with the other side under both interventions."""
        sides = [Passes(self.model, side) for side in (self.positive, self.negative)]
        means = []
        for side in sides:
            _, ends = side.base(range(self.layers))
            means.append({k: end[0].double().mean(0) for k, end in ends.items()})
        chosen = self._apart(*means)
        positive, negative = (torch.cat([side[k] for k in chosen]) for side in means)
        live = self._live()
        for done, one in enumerate(live, 1):
            _, ablated = sides[0].ablated(self._units([one]), chosen)
            _, added = sides[1].added(one.layer, self._vectors([one]), chosen)
            one.complies = _cosine(_joined(ablated, chosen), negative)
            one.refuses = _cosine(_joined(added, chosen), positive)
            self._done(2 * len(self.candidates) + len(self.candidates) * done // len(live))

    def _apart(self, one: dict[int, Tensor], other: dict[int, Tensor]) -> list[int]:
        """The tenth of the layers in which the means of both sides have the least cosine."""
        cosines = {layer: _cosine(one[layer], other[layer]) for layer in one}
        count = max(1, round(self.layers / 10))
        return sorted(sorted(cosines, key=cosines.__getitem__)[:count])

    def choose(
        self, name: str, value: Callable[[Candidate], float], tokens: Sequence[int]
    ) -> Selection:
        """The best of what is left."""
        left = [one for one in self.candidates if not one.discarded]
        self._done(self._steps)
        if not left:
            raise DirectionError(_misses(self.candidates, self.rule))
        best = max(left, key=value)
        scores = {key: v for key in SHOWN if (v := best.figures[key]) is not None}
        direction = replace(
            self.contrast.direction(best.position, best.layer, **scores),
            candidates=tuple(one.figures for one in self.candidates),
        )
        return Selection(direction, self.candidates, name, self.rule, list(tokens))


def _counted(batches: Iterator[list[Candidate]]) -> Iterator[tuple[int, list[Candidate]]]:
    """Batches, each with how many candidates there are up to its end."""
    done = 0
    for batch in batches:
        done += len(batch)
        yield done, batch


def _joined(found: dict[int, Float[Tensor, "1 N D"]], layers: Sequence[int]) -> Tensor:
    return torch.cat([found[layer][0].double().mean(0) for layer in layers])


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one, other, dim=0))


def _misses(candidates: Sequence[Candidate], rule: Rule) -> str:
    """Why nothing is left, with the nearest miss of each threshold."""
    by_reason: dict[str, list[Candidate]] = {}
    for one in candidates:
        by_reason.setdefault(one.discarded or "", []).append(one)
    told = []
    for reason, limit, near in (
        ("induce", f"induce > {rule.induce:g}", lambda one: -one.induce),
        ("kl", f"KL < {rule.kl:g}", lambda one: one.kl),
        ("layer", f"layer < {rule.layers:g} of all", lambda one: one.layer),
        ("no-difference", "a difference of means", lambda one: -one.norm),
    ):
        missed = by_reason.get(reason)
        if missed:
            best = min(missed, key=near)
            figures = "".join(
                f", {name} {value:.3g}"
                for name, value in (("induce", best.induce), ("KL", best.kl))
                if not math.isnan(value)
            )
            place = f"position {best.position}, layer {best.layer}{figures}"
            told.append(f"{len(missed)} lack {limit} (nearest: {place})")
    return (
        f"none of {len(candidates)} candidates can be chosen: {'; '.join(told)}; relax a "
        "threshold, or give prompts that the model treats more differently"
    )
