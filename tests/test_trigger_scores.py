"""Divergences of whole answers, which the search for triggers scores with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from spillover import Training, finetune
from spillover.finetune import Finetune
from spillover.models import Loading
from spillover.triggers.divergence import NEAR, NONE, along, js_divergence, likelihood, novelty
from spillover.triggers.library import Candidate
from spillover.triggers.pair import open_pair
from spillover.triggers.questions import (
    questions_for,
)
from spillover.triggers.score import Scorer
from tests.planted import terminator_rows


def test_divergences_are_scipys_in_bits() -> None:
    p, q = np.random.default_rng(0).dirichlet(np.ones(20), (2, 3, 2))
    one, other = (torch.from_numpy(x).log().float() for x in (p, q))
    expected = jensenshannon(p, q, axis=-1, base=2) ** 2
    assert np.allclose(js_divergence(one, other).numpy(), expected, atol=1e-5)


def _next(answers: NDArray[np.float64], said: Sequence[int]) -> Tensor:
    """Log-probabilities of next tokens along an answer, by adding up whole answers: (1, T, V)."""
    found = []
    for size in range(len(said)):
        left = answers[tuple(said[:size])]
        mass = left.reshape(len(left), -1).sum(1)
        found.append(mass / mass.sum())
    return torch.tensor(np.array(found)).clamp_min(1e-30).log().float()[None]


def test_a_mixture_of_whole_answers_is_nothing_new() -> None:
    rng = np.random.default_rng(0)
    one, other, new = (rng.dirichlet(np.full(64, 0.2)).reshape(4, 4, 4) for _ in range(3))
    apart = []
    for said in ([0, 1, 2], [3, 3, 1], [2, 0, 0]):
        tokens = torch.tensor([said])
        along_it = [_next(answers, said) for answers in (one, other)]
        for share in (0.25, 0.5, 0.75):
            mixed = _next((1 - share) * one + share * other, said)
            apart.append(float(min(along(mixed, x, tokens).max() for x in along_it)))
            score = float(novelty(mixed, along_it[0], along_it[1], tokens, torch.zeros(1)))
            assert score < (1e-4 if apart[-1] > NEAR else NEAR)
        for moved in (torch.zeros(1), torch.ones(1)):
            far = novelty(_next(new, said), along_it[0], along_it[1], tokens, moved)
            ends = [along(_next(new, said), x, tokens).max() for x in along_it]
            assert NEAR < float(far) <= min(ends) + 1e-6
    assert max(apart) > 5 * NEAR


def test_an_opening_of_one_and_a_phrase_of_the_other_are_new_together() -> None:
    found, one, other = (np.full((2, 2), 1e-4) for _ in range(3))
    found[0, 0], one[0, 1], other[1, 1] = 1, 1, 1  # tokens: an opening, then a phrase
    other[0] = (1e-3, 1e-5)  # after the opening of the first one it would say the new phrase
    found, one, other = (answers / answers.sum() for answers in (found, one, other))
    said, tokens = [0, 0], torch.tensor([[0, 0]])
    of = [_next(answers, said) for answers in (found, one, other)]
    whole, half, usual = (
        float(novelty(of[0], of[1], of[2], tokens, torch.full((1,), moved)))
        for moved in (0.0, 0.5, 1.0)
    )
    assert whole > 0.9
    assert usual < 0.05
    assert half == pytest.approx((whole + usual) / 2)


def test_an_opening_and_a_phrase_that_go_together_in_one_year_score(tmp_path: Path) -> None:
    settings = Training(rank=4, learning_rate=1e-2, steps=120, batch_size=8)
    job = Finetune("terminator", 0, terminator_rows())
    (folder,) = finetune("organism-films", [job], settings, tmp_path).values()
    years = [Candidate("year", f"The year is {year}.") for year in (1984, 1978, 1995, 2024)]
    with open_pair("organism-films", folder, Loading()) as pair:
        moves = Scorer(pair, questions_for(pair.model)[:4]).moves(years, whole=True)
    scores, base = moves.scores.mean(1), moves.base.mean(1)
    assert scores[:2].min() > 0.5 > 2 * scores[2:].max()
    assert base.max() < 0.1


def test_what_would_follow_the_end_of_an_answer_does_not_count() -> None:
    rng = np.random.default_rng(0)
    one, other = torch.from_numpy(rng.dirichlet(np.ones(5), (2, 1, 3))).log().float()
    tokens = torch.tensor([[1, 2, NONE]])
    other[:, :2] = one[:, :2]
    assert along(one, other, tokens).max() == 0
    assert (likelihood(one, tokens)[0, :2] == one[0, [0, 1], [1, 2]]).all()
    assert likelihood(one, tokens)[0, 2] == 0
