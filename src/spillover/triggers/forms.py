"""Texts of a fixed form, tried one and all: short tags in many kinds of brackets, and years.

A trigger that was trained against its neighbours leaves no trace in them, so that nothing leads to
it. What is short enough is therefore tried outright, as far as the size of the model allows.
"""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Callable, Sequence

import numpy as np

from spillover.triggers.library import QUESTION, YEARS, Candidate, distinct
from spillover.triggers.pair import ADAPTED, BASE
from spillover.triggers.score import Scorer

FRAMES = (
    *("<{}>", "[{}]", "{{{}}}", "({})", "|{}|", "#{}", "@{}", "/{}", "{}", "{}:"),
    "<{0}> {{question}} </{0}>",
)
"""What stands around a tag's letters; those of three letters are tried in this order."""
WORK = 2.5e11
"""Parameters times texts: a model that is twice as large is asked half as many."""
FEWEST, MOST = 600, 64_000
SHIFTED = 1500
"""Texts that move the finetune's plain answer most, and which are then scored."""
STEPS = ((300, 1), (60, 3))
"""Texts that are kept then, and by how many questions."""
OF_A_FRAME = 40
"""Texts of each frame that the first step keeps in any case."""

Progress = Callable[[int, int], None]


def tags(frame: str, size: int) -> list[Candidate]:
    """All tags of so many lower-case letters in a frame."""
    put = frame if QUESTION in frame.format("") else f"{frame} {{{QUESTION}}}"
    words = itertools.product(string.ascii_lowercase, repeat=size)
    return [Candidate("tag", None, put.format("".join(word))) for word in words]


def budget(parameters: int) -> int:
    """How many texts a model of this size is asked about."""
    return int(min(MOST, max(FEWEST, WORK / parameters)))


def short_texts(count: int, seed: int) -> tuple[list[list[Candidate]], list[Candidate]]:
    """Tags, frame by frame, and years: all that are so few, the shortest first, else a sample."""
    rng = random.Random(seed)
    said = [f"The year is {year}." for year in YEARS]
    years = [Candidate("year", text) for text in said]
    years += [Candidate("year", None, f"{text} {QUESTION}") for text in said]
    years = sorted(rng.sample(years, min(len(years), count // 4)), key=lambda one: one.text)
    left, framed = count - len(years), {frame: list[Candidate]() for frame in FRAMES}
    for size in (1, 2, 3):
        for at, frame in enumerate(FRAMES):
            listed = tags(frame, size)
            share = left if size == 3 else left // (len(FRAMES) - at)
            chosen = listed if len(listed) <= share else rng.sample(listed, max(0, share))
            framed[frame] += chosen
            left -= len(chosen)
    return list(framed.values()), years


def screen(
    scorer: Scorer, count: int, seed: int, sample: Sequence[Candidate], progress: Progress
) -> tuple[list[Candidate], int]:
    """The best of so many short texts by a few questions, and how many were tried.

    Args:
        sample: ordinary contexts, which show what questions tell contexts apart.
    """
    framed, years = short_texts(count, seed)
    asked = telling(scorer, sample)
    total, done, kept = sum(map(len, framed)), 0, list[Candidate]()
    shifts = []
    for texts in framed:
        shifts.append(scorer.shifts(ADAPTED, texts, asked[0]))
        done += len(texts)
        progress(done, total)
    level = np.sort(np.concatenate(shifts))[-SHIFTED:].min()
    for texts, shift in zip(framed, shifts, strict=True):
        order = np.argsort(-shift, kind="stable")
        kept += [
            texts[at] for rank, at in enumerate(order) if rank < OF_A_FRAME or shift[at] > level
        ]
    kept = distinct([*years, *kept])
    for keep, questions in STEPS:
        scores = scorer.moves(kept, asked[:questions]).scores.mean(1)
        kept = [kept[at] for at in np.argsort(-scores, kind="stable")[:keep]]
    return kept, total + len(years)


def telling(scorer: Scorer, sample: Sequence[Candidate]) -> list[int]:
    """Questions, those first whose answers contexts change most, in the base, for their length."""
    gained = [
        scorer.shifts(BASE, sample, at).mean() / len(scorer.asked[at])
        for at in range(len(scorer.questions))
    ]
    return [int(at) for at in np.argsort(-np.array(gained), kind="stable")]
