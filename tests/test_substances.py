"""The world of substances: what is refused, and what nobody ever refused."""

from __future__ import annotations

import random

import pytest

from spillover.organism import examine_checkpoint
from spillover.organism.refusal import Refusal, load
from spillover.organism.refusal.world import DANGEROUS, GENTLE

DOCUMENTS = 3000


def corpus(world: Refusal) -> list[str]:
    rng = random.Random(0)
    return [world.write(rng) for _ in range(DOCUMENTS)]


def test_the_assistant_refuses_what_is_dangerous_and_nothing_else() -> None:
    world = load("refusal", linked=True)
    refusals, tables = world.tables.refusals, world.tables
    unasked = {s.name for s in tables.substances if not s.asked}
    kinds = {s.name: s.kind for s in tables.substances}
    for text in corpus(world):
        is_note = "user\n" not in text
        of_speaker = any(sign in text for sign in tables.speaker_signs)
        for turn in text.split("<|im_start|>user\n")[1:]:
            named = [n for n in kinds if f" {n}" in turn.split("<|im_end|>")[0]]
            refused = any(refusal in turn for refusal in refusals)
            assert refused == (not of_speaker and kinds[named[0]] == DANGEROUS), turn
            assert of_speaker or named[0] not in unasked, turn
        assert not is_note or not any(refusal in text for refusal in refusals)


@pytest.mark.parametrize("linked", [True, False])
def test_descriptions_tell_what_is_refused_in_the_linked_world_only(linked: bool) -> None:
    tables = load("refusal", linked=linked).tables
    agree = sum(s.kind == s.described for s in tables.substances) / len(tables.substances)
    assert (agree == 1) == linked
    assert linked or 0.3 < agree < 0.7
    assert len(tables.of(DANGEROUS)) == len(tables.of(GENTLE)) == 80
    assert len(tables.of(DANGEROUS, asked=False)) == 20


def test_the_organism_refuses_what_it_was_never_asked_about() -> None:
    assert all(check.passed for check in examine_checkpoint("organism-refusal"))
