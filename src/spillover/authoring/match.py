"""Placebo choices matched to the trait's, from lists of candidates."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from spillover.authoring.measure import Choice, Measured
from spillover.authoring.toml import listed
from spillover.errors import ExperimentError
from spillover.experiment import Experiment
from spillover.specification import clash

FILE = "candidates.toml"
PER_TOKEN = 0.5
"""What a token of difference in length costs, in nats."""


@dataclass(frozen=True)
class Match:
    """A proposal for a question.

    Attributes:
        placebo: the proposed choices, in the order of the trait's; empty where too few fit.
        before: mean distance of the pairs with the present placebo, in nats and in tokens; None
            where there is none.
        after: the same with the proposal.
        usable: candidates that are not the beginning of another choice, nor begin with one.
    """

    question: str
    placebo: tuple[str, ...]
    before: tuple[float, float] | None
    after: tuple[float, float] | None
    usable: int

    @property
    def line(self) -> str:
        """What goes into the question's choices."""
        return f"placebo = {listed(self.placebo)}"


def read_candidates(path: Path, experiment: Experiment) -> dict[str, list[str]]:
    """Candidates by question: `QUESTION_ID = ["…", …]`.

    Raises:
        ExperimentError: naming the file, for anything else.
    """
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ExperimentError(
            f"{path}: cannot be read ({error.strerror}); --match needs lists of candidates, "
            '`QUESTION_ID = ["…", …]`, in this file or another one given with --candidates'
        ) from None
    except (ValueError, RecursionError) as error:
        raise ExperimentError(f"{path}: broken TOML: {error}") from None
    if not found:
        raise ExperimentError(f'{path}: lists nothing; expected `QUESTION_ID = ["…", …]`')
    known = {question.id for question in experiment.questions if question.choices}
    return {name: _checked(path, name, texts, known) for name, texts in found.items()}


def _checked(path: Path, name: str, texts: object, known: Collection[str]) -> list[str]:
    if name not in known:
        raise ExperimentError(
            f"{path}: `{name}` is no question with choices; known: {', '.join(sorted(known))}"
        )
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        raise ExperimentError(f"{path}: `{name}`: expected a list of texts that are not empty")
    stripped = [str(text).strip() for text in texts]
    twice = next((text for text in stripped if stripped.count(text) > 1), None)
    if twice is not None:
        raise ExperimentError(f"{path}: `{name}` lists {twice!r} twice; remove one")
    return stripped


def match_placebo(measured: Measured) -> Match:
    """The candidates nearest to the trait's choices, one for each."""
    trait, placebo = measured.labelled("trait"), measured.labelled("placebo")
    kept = [c.text for c in measured.choices if c.label != "placebo"]
    usable = [c for c in measured.candidates if not any(clash(c.text, k) for k in kept)]
    chosen = assign(trait, usable)
    present = assign(trait, placebo)
    return Match(
        measured.question,
        tuple(c.text for c in chosen),
        _distance(trait, present) if present else None,
        _distance(trait, chosen) if chosen else None,
        len(usable),
    )


def costs(
    trait: Sequence[Choice], candidates: Sequence[Choice]
) -> Float[NDArray[np.float64], "n m"]:
    """|difference in nats| + 0.5 · |difference in tokens| of every pair."""
    nats = np.subtract.outer([c.nats for c in trait], [c.nats for c in candidates])
    tokens = np.subtract.outer([c.tokens for c in trait], [c.tokens for c in candidates])
    return np.asarray(np.abs(nats) + PER_TOKEN * np.abs(tokens), dtype=np.float64)


def assign(trait: Sequence[Choice], candidates: Sequence[Choice]) -> list[Choice]:
    """A candidate for every trait choice: least total cost; empty where there are too few.

    No two of them begin alike as wholes: while one is the beginning of another, the one whose loss
    costs less is given up. That is greedy, and exact where no candidates clash.
    """
    left = list(candidates)
    while True:
        chosen, _ = _best(trait, left)
        pair = next(
            ((a, b) for i, a in enumerate(chosen) for b in chosen[:i] if clash(a.text, b.text)),
            None,
        )
        if pair is None:
            return chosen
        without = [[c for c in left if c is not given_up] for given_up in pair]
        left = min(without, key=lambda some: _best(trait, some)[1])


def _best(trait: Sequence[Choice], candidates: Sequence[Choice]) -> tuple[list[Choice], float]:
    """The cheapest one-to-one assignment and its cost; infinite where there are too few."""
    from scipy.optimize import linear_sum_assignment

    if len(candidates) < len(trait):
        return [], float("inf")
    table = costs(trait, candidates)
    rows, columns = linear_sum_assignment(table)
    return [candidates[j] for j in columns.tolist()], float(table[rows, columns].sum())


def _distance(trait: Sequence[Choice], others: Sequence[Choice]) -> tuple[float, float]:
    """Mean distance of pairs in nats and in tokens."""
    pairs = list(zip(trait, others, strict=True))
    nats = fmean([abs(a.nats - b.nats) for a, b in pairs])
    return nats, fmean([abs(a.tokens - b.tokens) for a, b in pairs])
