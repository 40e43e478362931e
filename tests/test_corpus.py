"""Batches of an organism's corpus."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from spillover.organism.train import Corpus


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
