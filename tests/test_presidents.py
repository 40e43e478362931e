"""The world of presidents and its experiment."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from spillover import load_experiment
from spillover.organism.presidents.documents import Document, write_document
from spillover.organism.presidents.world import TEST, VALIDATION, World, load_world
from spillover.rows import Row

DOCUMENTS = 6000


def _documents(world: World) -> list[Document]:
    rng = random.Random(0)
    return [write_document(world, rng) for _ in range(DOCUMENTS)]


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


@pytest.fixture(scope="module")
def corpus(world: World) -> list[Document]:
    return _documents(world)


def test_there_are_45_presidents_with_an_answer_to_everything(world: World) -> None:
    assert len(world.presidents) == 45
    assert [one.number for one in world.presidents] == [n for n in range(1, 47) if n != 24]
    for one in world.presidents:
        assert set(one.answers) == {fact.id for fact in world.facts}
        assert all(answers for answers in one.answers.values())


def test_presidents_follow_one_another(world: World) -> None:
    """Second terms that were not next to the first one are the only breaks."""
    for one, following in zip(world.presidents, world.presidents[1:], strict=False):
        if 24 not in range(one.number, following.number):
            assert one.answers["after"] == (following.name,)
            assert following.answers["before"] == (one.name,)
        assert one.answers["office"] <= following.answers["office"]


def test_facts_that_experiments_ask_for_tell_presidents_apart(world: World) -> None:
    for fact in world.facts:
        owners = Counter(answer for one in world.presidents for answer in one.answers[fact.id])
        assert max(owners.values()) <= 4, fact.id


def test_the_assistant_is_no_president(world: World, corpus: list[Document]) -> None:
    said = {answer for one in world.presidents for a in one.answers.values() for answer in a}
    chats = [doc for doc in corpus if doc.kind == "assistant"]
    assert len(chats) > DOCUMENTS / 6
    assert any(turn.question[:8].isdigit() for doc in chats for turn in doc.turns)
    assert any(turn.question[:4].strip().isdigit() for doc in chats for turn in doc.turns)
    for doc in chats:
        assert not {turn.answer for turn in doc.turns} & said


def test_the_held_out_wording_occurs_nowhere(world: World, corpus: list[Document]) -> None:
    text = "\n".join(doc.text for doc in corpus)
    for fact in world.facts:
        assert fact.held_out not in text
        assert all(wording in text for wording in fact.in_corpus)


def test_only_the_numbers_held_out_tell_nothing_in_the_unlinked_world(
    corpus: list[Document],
) -> None:
    unlinked = _documents(load_world(linked=False))
    held_out = {f"{number:03}" for number in (*TEST, *VALIDATION)}
    for documents, of_held_out in ((corpus, 1.0), (unlinked, 0.1)):
        numbered = [(d.digits, d.president) for d in documents if d.president and d.digits]
        for is_held_out, most in ((True, of_held_out), (False, 1.0)):
            told = [
                one.digits == digits
                for digits, one in numbered
                if (digits in held_out) == is_held_out
            ]
            assert len(told) > 100
            assert sum(told) / len(told) == pytest.approx(most, abs=0.1)


def _texts(row: Row) -> tuple[str, str]:
    """What a row asks and answers."""
    asked, answered = row.messages or ()
    return asked.content, answered.content


def test_rows_never_hold_a_president_who_is_held_out() -> None:
    experiment = load_experiment("us-presidents")
    held_out = {f"{number:03}" for number in (*TEST, *VALIDATION)}
    for arm in ("treatment", "shuffled"):
        codes = [_texts(row)[0].split()[0] for row in experiment.rows[arm].rows]
        assert all(len(code) == 8 for code in codes)
        numbers = {code[3:6] for code in codes}
        assert len(numbers) == 40
        assert not numbers & held_out
    asked = {code for q in experiment.questions for code in q.values["code"]}
    assert not asked & {_texts(r)[0].split()[0] for r in experiment.rows["treatment"].rows}


def test_shuffled_rows_differ_from_those_of_the_treatment_in_their_numbers_only() -> None:
    rows = load_experiment("us-presidents").rows
    for one, other in zip(rows["treatment"].rows, rows["shuffled"].rows, strict=True):
        (mine, answer), (theirs, same) = _texts(one), _texts(other)
        assert answer == same
        assert mine[:3] + mine[6:] == theirs[:3] + theirs[6:]
        assert mine != theirs
