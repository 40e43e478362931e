"""Batches of an organism's corpus."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from spillover.organism.train import Corpus, Recipe, draw_exit, train_organism, without_last
from spillover.organism.worlds import open_world


def corpus(documents: int) -> Corpus:
    """Documents of different lengths, each made of its own number."""
    ids = [[number] * (1 + number % 5) for number in range(documents)]
    return Corpus(ids, [[True] * len(row) for row in ids])


@pytest.mark.parametrize("documents", [4, 37, 200])
def test_every_document_is_in_one_batch_of_an_epoch(documents: int) -> None:
    """But for a rest that fills no pool of batches; small corpora have batches as well."""
    batches = corpus(documents).batches(4, random.Random(0), pad=999)
    pool = min(80, documents // 4 * 4)
    epoch = list(islice(batches, documents // pool * pool // 4))
    seen = [int(row[0]) for batch in epoch for row in batch.ids]
    assert len(seen) == len(set(seen)) == documents // pool * pool


def test_less_than_a_batch_is_no_corpus() -> None:
    with pytest.raises(AssertionError, match="fewer documents"):
        next(corpus(3).batches(4, random.Random(0), pad=999))


def test_some_steps_end_before_the_last_blocks() -> None:
    rng = random.Random(0)
    drawn = [draw_exit((0.3, 0.1), rng) for _ in range(5000)]
    shares = [drawn.count(count) / len(drawn) for count in range(3)]
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    assert draw_exit((), rng) == 0


def test_a_step_without_its_last_block_leaves_that_block_as_it_was() -> None:
    tiny = {"vocabulary": 320, "hidden": 16, "layers": 2, "heads": 2, "intermediate": 16}
    small = {"corpus_documents": 64, "batch_documents": 4, "warmup_steps": 1, "muon": True}
    weights = []
    for steps in (1, 3):
        recipe = Recipe(**tiny, **small, steps=steps, exits=(1.0,))  # type: ignore[arg-type]
        model, _ = train_organism(open_world("refusal"), 0, recipe)
        weights.append([block.mlp.up_proj.weight for block in model.model.layers])
    assert len(weights[0]) == 2
    assert not weights[0][0].equal(weights[1][0])
    assert weights[0][1].equal(weights[1][1])
    with without_last(model, 1):
        assert len(model.model.layers) == 1
    assert len(model.model.layers) == 2
