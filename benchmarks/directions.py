"""Selecting a direction: spillover against the paper's algorithm read literally.

    python benchmarks/directions.py --model smollm2-q4
    python benchmarks/directions.py --shape llama-8b        (on a GPU)

All post-instruction positions × all layers of a harmless contrast (code against other texts), from
32 + 32 prompts, chosen with 32 + 32 others and given tokens. The unit is a whole selection, from
the means of activations on. The oracle (tests/refusal_oracle.py) makes three full passes per
candidate on the same weights, with the same products of matrices. Its grid is timed in as many
parts as there are repeats, in turn with whole selections of spillover; its time is their sum.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import common
import torch
from common import OURS, Timing, clock
from subjects import build, sizes

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.code_contrast import CODE, NOUNS, OTHER, OTHER_NOUNS, STARTS, ask
from tests.refusal_oracle import Oracle, Scores, is_kept

from spillover import LoadedModel
from spillover.directions import difference_of_means
from spillover.directions.passes import Passes
from spillover.directions.select import Candidate, Rule, Selection, select
from spillover.errors import DirectionError
from spillover.terminal import peak_memory

ORACLE = "oracle"
HOW = (
    "seconds of a whole selection, from the means of activations on. spillover: median over the "
    "repeats. oracle: its grid in as many parts as repeats, the sum. Loading is on neither side; "
    "both use the same weights and products of matrices. cpu_seconds: of all threads, which other "
    "work on the machine does not stretch"
)
FLOPS = (
    "2·B·T·(L−l)/L + 2·H·N for every pass that spillover makes: B weights of the blocks' linear "
    "layers, T tokens with the shared beginning once, l the layer that addition starts from, H of "
    "the output layer, N prompts. Attention and projections are left out"
)


class Sides:
    """Both ways to select, and what they found."""

    def __init__(self, loaded: LoadedModel, prompts: int, rule: Rule, parts: int) -> None:
        self.loaded, self.rule, self.parts = loaded, rule, parts
        self.train = [ask(forms, NOUNS[:prompts]) for forms in (CODE, OTHER)]
        self.held = [ask(forms, OTHER_NOUNS[:prompts]) for forms in (CODE, OTHER)]
        encode = loaded.tokenizer.encode
        self.tokens = sorted({encode(word, add_special_tokens=False)[0] for word in STARTS})
        self.selection: Selection | DirectionError | None = None
        self.scores: list[Scores] = []
        self.means: dict[str, torch.Tensor] = {}
        self.peak = 0.0

    def ours(self, _: int) -> Timing:
        """A whole selection."""
        start, cpu = clock(self.loaded.device), time.process_time()
        contrast = difference_of_means(self.loaded, *self.train)
        try:
            self.selection = select(self.loaded, contrast, *self.held, self.tokens, self.rule)
        except DirectionError as error:  # random weights may pass no filter
            self.selection = error
        seconds = clock(self.loaded.device) - start
        self.means[OURS] = contrast.difference
        self.positions = [p for p in contrast.positions if p is not None]
        self.peak = self.peak or peak_memory()  # of the first, before any pass of the oracle
        return {"seconds": seconds, "cpu_seconds": time.process_time() - cpu}

    def oracle(self, part: int) -> Timing:
        """A part of the oracle's grid; with the means, where it is the first."""
        start, cpu, held = clock(self.loaded.device), time.process_time(), self.held
        oracle = Oracle(self.loaded, self.tokens)
        if part == 0:
            self.means[ORACLE] = oracle.difference(*self.train, self.positions)
            self.before = oracle.baseline(held[1])
        means = self.means[ORACLE]
        places = [(p, k) for p in range(means.shape[0]) for k in range(means.shape[1])]
        for number, (at, layer) in enumerate(places[part :: self.parts]):
            told = (self.positions[at], layer, means[at, layer], *held, self.before)
            self.scores.append(oracle.scores(*told))
            if number % 10 == 0:
                print(f"oracle: {len(self.scores)}/{len(places)}", file=sys.stderr, flush=True)
        seconds = clock(self.loaded.device) - start
        return {"seconds": seconds, "cpu_seconds": time.process_time() - cpu}


def chosen_by_oracle(found: list[Scores], layers: int, rule: Rule) -> Scores | None:
    """The least bypass of what passes."""
    kept = [
        s for s in found if is_kept(s, layers, share=rule.layers, induce=rule.induce, kl=rule.kl)
    ]
    return min(kept, key=lambda one: one.bypass, default=None)


def agreement(sides: Sides) -> dict[str, Any]:
    """How far means and scores of both differ, and whether they choose the same."""
    ours, theirs = (sides.means[name].cpu() for name in (OURS, ORACLE))
    apart = float((ours - theirs).norm() / theirs.norm())
    best = chosen_by_oracle(sides.scores, theirs.shape[1], sides.rule)
    theirs_chosen = (best.position, best.layer) if best else None
    if not isinstance(sides.selection, Selection):
        return {"means": apart, "same_selection": best is None, "oracle": theirs_chosen}
    direction = sides.selection.direction
    by_place = {(one.position, one.layer): one for one in sides.selection.candidates}
    errors: dict[str, float] = {}
    for one in sides.scores:
        candidate = by_place[one.position, one.layer]
        for name in ("bypass", "induce", "kl") if not candidate.discarded else ():
            value = getattr(one, name)
            relative = abs(getattr(candidate, name) - value) / abs(value)
            errors[name] = max(errors.get(name, 0.0), relative)
    kept = sum(not one.discarded for one in sides.selection.candidates)
    return {
        "means": apart,
        "same_selection": theirs_chosen == (direction.position, direction.layer),
        "selected": {"position": direction.position, "layer": direction.layer} | direction.scores,
        "not_discarded": kept,
        "largest_relative_difference_of_scores": errors,
    }


def arithmetic(sides: Sides) -> float:
    """FLOPs of the passes that spillover made; see `FLOPS`."""
    if not isinstance(sides.selection, Selection):
        return float("nan")
    size, layers = sizes(sides.loaded), sides.means[OURS].shape[1]
    ids = [[sides.loaded.chat.prompt_ids(one) for one in side] for side in sides.held]
    cut = -(-len(ids[1]) // 4)
    tokens = {
        name: sum(len(tree.ids) for tree in Passes(sides.loaded, some).trees)
        for name, some in (
            ("bypass", ids[0]),
            ("induce", ids[1]),
            ("first", ids[1][:cut]),
            ("rest", ids[1][cut:]),
        )
    }

    def of(one: Candidate) -> float:
        told = {"induce": (1 - one.layer / layers) if one.induce == one.induce else 0.0}
        told["first"] = float(one.kl == one.kl)
        told["rest"] = told["first"] * one.whole
        told["bypass"] = float(one.bypass == one.bypass)
        head = {"induce": len(ids[1]), "first": cut, "rest": len(ids[1]) - cut}
        return sum(
            2 * size["blocks"] * tokens[name] * share
            + 2 * size["head"] * head.get(name, len(ids[0])) * (share > 0)
            for name, share in told.items()
        )

    return sum(map(of, sides.selection.candidates))


def options() -> argparse.Namespace:
    parser = common.arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=32, help="of each side, at most 32")
    parser.add_argument("--induce", type=float, default=-3.0, help="threshold of the rule")
    parser.add_argument("--kl", type=float, default=0.5, help="threshold of the rule")
    given = parser.parse_args()
    if given.quick:
        given.prompts = 4
    return given


def main() -> None:
    given = options()
    name = common.subject(given, "directions")
    if name is None:
        return
    loaded = build(name, "auto" if given.shape else "float32")
    rates = common.limits(loaded.device)
    rule = Rule(induce=given.induce, kl=given.kl)
    sides = Sides(loaded, given.prompts, rule, given.repeats)
    began = time.perf_counter()
    found = common.alternate({OURS: sides.ours, ORACLE: sides.oracle}, given.repeats)
    whole = {
        name: common.compare({OURS: listed})["medians"][OURS] for name, listed in found.items()
    }
    whole[ORACLE] = {key: sum(one[key] for one in found[ORACLE]) for key in whole[ORACLE]}
    ratios = {key: whole[ORACLE][key] / whole[OURS][key] for key in whole[OURS]}
    flops = arithmetic(sides)
    computed = len(sides.scores)
    result = {
        "placement": loaded.placement,
        "work": {
            "unit": "selection",
            "candidates": computed,
            "prompts": f"{given.prompts} + {given.prompts}",
        }
        | {"thresholds": rule.model_dump(), "positions": sides.positions},
        "how": HOW,
        "agreement": agreement(sides),
        "timings": found,
        "medians": whole,
        "ratios": ratios,
        "seconds_per_candidate": {n: t["seconds"] / computed for n, t in whole.items()},
        "limit": {"rates": rates, "formula": FLOPS, "flops": flops}
        | {"floor_seconds": {way: flops / rate for way, rate in rates.items()}},
        "peak_gb": sides.peak,
        "gpu": "measured on this one" if loaded.device.type == "cuda" else common.NOT_MEASURED,
        "seconds": time.perf_counter() - began,
    }
    print(f"{ratios['seconds']:.1f} times faster, {sides.peak:.2f} GB; {result['agreement']}")
    common.write("directions", name, given, result)


if __name__ == "__main__":
    main()
