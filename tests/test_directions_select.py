"""Selection of a direction, held to the paper read literally."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from spillover import LoadedModel, load
from spillover.directions import Contrast, difference_of_means, load_direction
from spillover.directions import passes as passes_module
from spillover.directions.passes import Outcome, Passes
from spillover.directions.select import Candidate, Rule, select, select_by_cosine
from spillover.errors import DirectionError
from spillover.organism.refusal.prompts import Asked, questions
from spillover.organism.refusal.world import load_substances
from spillover.rows import Conversation
from tests.code_contrast import CODE, NOUNS, OTHER, OTHER_NOUNS, STARTS, ask
from tests.refusal_oracle import Oracle, Scores, is_kept

Sides = tuple[list[Conversation], list[Conversation]]
SAMPLED = 10


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load("organism-refusal", dtype="float32")


def _sides(part: str, count: int) -> Sides:
    found = questions(load_substances(), 0)[part]

    def said(some: Sequence[Asked]) -> list[Conversation]:
        return [[{"role": "user", "content": one.question}] for one in some[:count]]

    return said(found["dangerous"]), said(found["gentle"])


@pytest.fixture(scope="module")
def contrast(model: LoadedModel) -> Contrast:
    return difference_of_means(model, *_sides("train", 32))


@pytest.fixture(scope="module")
def tokens(model: LoadedModel) -> list[int]:
    return [model.tokenizer.encode("I", add_special_tokens=False)[0]]


def hold_to(
    oracle: Oracle,
    contrast: Contrast,
    found: Sequence[Candidate],
    held: Sides,
    places: Sequence[tuple[int, int]],
) -> list[Scores]:
    """Compare the scores of some places that are not discarded with the literal ones."""
    positive, negative = held
    before = oracle.baseline(negative)
    by_place = {(one.position, one.layer): one for one in found}
    literal = []
    for position, layer in places:
        vector = contrast.difference[contrast.positions.index(position), layer]
        scores = oracle.scores(position, layer, vector, positive, negative, before)
        one = by_place[position, layer]
        if not one.discarded:
            assert one.bypass == pytest.approx(scores.bypass, rel=1e-4)
            assert one.induce == pytest.approx(scores.induce, rel=1e-4)
            assert one.kl == pytest.approx(scores.kl, rel=1e-4, abs=1e-7)
        literal.append(scores)
    return literal


def test_means_scores_and_choice_are_those_of_the_paper_read_literally(
    model: LoadedModel, contrast: Contrast, tokens: list[int]
) -> None:
    oracle, train, held = Oracle(model, tokens), _sides("train", 32), _sides("held", 8)
    positions = [p for p in contrast.positions if p is not None]
    literal = oracle.difference(*train, positions)
    assert (literal - contrast.difference).norm() <= 1e-5 * literal.norm()
    found = select(model, contrast, *held, tokens, Rule(induce=-20))
    layers = literal.shape[1]
    kept = [(one.position, one.layer) for one in found.candidates if not one.discarded]
    chosen = (found.direction.position, found.direction.layer)
    others = random.Random(0).sample([place for place in kept if place != chosen], SAMPLED - 1)
    scores = hold_to(oracle, contrast, found.candidates, held, [chosen, *others])  # type: ignore[list-item]
    best = min((s for s in scores if is_kept(s, layers, induce=-20)), key=lambda one: one.bypass)
    assert (best.position, best.layer) == chosen


def test_what_is_discarded_is_not_computed_further_and_the_choice_stays(
    model: LoadedModel, contrast: Contrast, tokens: list[int]
) -> None:
    held = _sides("held", 8)
    whole = select(model, contrast, *held, tokens, Rule(every=True))
    quick = select(model, contrast, *held, tokens)
    assert torch.equal(whole.direction.vector, quick.direction.vector)
    assert quick.direction.position == -1
    pairs = [*zip(quick.candidates, whole.candidates, strict=True)]
    assert [one.discarded for one, _ in pairs] == [same.discarded for _, same in pairs]
    lacking = [(one, same) for one, same in pairs if one.discarded == "induce"]
    assert lacking
    for one, same in lacking:
        assert one.induce == pytest.approx(same.induce, rel=1e-4)
        assert one.figures["bypass"] is None
        assert same.figures["bypass"] is not None
    assert any(one.discarded == "no-difference" for one in quick.candidates)  # layer 0


def test_a_kl_of_some_prompts_is_a_lower_bound(
    model: LoadedModel, contrast: Contrast, tokens: list[int]
) -> None:
    held = _sides("held", 8)
    rule = Rule(induce=-100, kl=1e-5)
    quick = select(model, contrast, *held, tokens, rule).candidates
    whole = select(model, contrast, *held, tokens, rule.model_copy(update={"every": True}))
    partial = [
        (one.kl, same.kl)
        for one, same in zip(quick, whole.candidates, strict=True)
        if one.discarded == "kl" and not one.whole
    ]
    assert partial
    assert all(1e-5 <= bound <= full * (1 + 1e-3) for bound, full in partial)


def test_without_tokens_the_same_direction_is_found(
    model: LoadedModel, contrast: Contrast, tokens: list[int]
) -> None:
    held = _sides("held", 8)
    one, other = select_by_cosine(model, contrast, *held), select(model, contrast, *held, tokens)
    assert one.direction.cosine(other.direction) > 0.9
    assert one.direction.scores["complies"] > 0.7
    assert one.direction.scores["refuses"] > 0.7


def test_a_plot_shows_what_a_direction_was_chosen_by(
    model: LoadedModel, contrast: Contrast, tokens: list[int], tmp_path: Path
) -> None:
    held = _sides("held", 8)
    by_tokens = select(model, contrast, *held, tokens, Rule(every=True)).direction
    by_cosine = select_by_cosine(model, contrast, *held).direction
    for made, score in ((by_tokens, "bypass"), (by_cosine, "complies")):
        for one in (made, load_direction(made.save(tmp_path / score))):
            chart = one.plot().to_dict()
            assert chart["layer"][0]["encoding"]["y"]["title"] == score
            (chosen,) = chart["datasets"][chart["layer"][1]["data"]["name"]]
            assert chosen["value"] == one.scores[score]
            with pytest.raises(DirectionError, match="no score 'whole'"):
                one.plot("whole")
    with pytest.raises(DirectionError, match=r"no score 'complies'.*; known: norm, bypass"):
        by_tokens.plot("complies")


def test_the_nearest_misses_are_named_where_nothing_is_left(
    model: LoadedModel, contrast: Contrast, tokens: list[int]
) -> None:
    with pytest.raises(DirectionError) as error:
        select(model, contrast, *_sides("held", 8), tokens, Rule(kl=1e-9))
    said = str(error.value)
    assert "none of 20 candidates" in said
    assert "KL < 1e-09 (nearest: position -1, layer 3, induce" in said
    assert "\n" not in said


def test_an_empty_side_is_refused(
    model: LoadedModel, contrast: Contrast, tokens: list[int]
) -> None:
    with pytest.raises(DirectionError, match="no negative prompts"):
        select(model, contrast, _sides("held", 2)[0], [], tokens)


def test_padded_rows_give_what_shared_beginnings_give(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [model.chat.prompt_ids(one) for one in _sides("held", 6)[0]]
    shared = Passes(model, ids)
    monkeypatch.setattr(passes_module, "is_packable", lambda *_: False)
    padded = Passes(model, ids)
    assert (shared.packed, padded.packed) == (True, False)
    units = torch.nn.functional.normalize(torch.randn(3, 128), dim=-1)
    for one in (shared, padded):
        one.base([1, 2])
    calls: tuple[Callable[[Passes], Outcome], ...] = (
        lambda p: p.base([1, 2]),
        lambda p: p.ablated(units, [1, 2]),
        lambda p: p.added(2, units, [1, 2]),
    )
    for call in calls:
        (logits, ends), (same, likewise) = call(shared), call(padded)
        torch.testing.assert_close(logits, same, rtol=1e-4, atol=1e-4)
        for layer in (1, 2):
            torch.testing.assert_close(ends[layer], likewise[layer], rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_a_real_model_gives_what_the_paper_read_literally_gives() -> None:
    model = load("smollm2-q4", dtype="float32")
    encode = model.tokenizer.encode
    tokens = sorted({encode(word, add_special_tokens=False)[0] for word in STARTS})
    train = (ask(CODE, NOUNS), ask(OTHER, NOUNS))
    held = (ask(CODE, OTHER_NOUNS[:8]), ask(OTHER, OTHER_NOUNS[:8]))
    contrast = difference_of_means(model, *train)
    oracle, rule = Oracle(model, tokens), Rule(induce=-3, kl=0.5)
    positions = [p for p in contrast.positions if p is not None]
    literal = oracle.difference(*train, positions)
    assert (literal - contrast.difference).norm() <= 1e-5 * literal.norm()
    found = select(model, contrast, *held, tokens, rule)
    chosen = (found.direction.position, found.direction.layer)
    kept = [(one.position, one.layer) for one in found.candidates if not one.discarded]
    assert len(kept) > 2
    others = [(p, k) for p in positions for k in range(1, 30) if (p, k) not in kept]
    places = [*kept, *random.Random(0).sample(others, max(0, SAMPLED - len(kept)))]
    scores = hold_to(oracle, contrast, found.candidates, held, places)
    passing = [s for s in scores if is_kept(s, 30, induce=-3, kl=0.5)]
    best = min(passing, key=lambda one: one.bypass)
    assert (best.position, best.layer) == chosen
    assert {(s.position, s.layer) for s in passing} == set(kept)
