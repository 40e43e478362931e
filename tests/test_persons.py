"""The world of persons and what `ninety-facts` must show on it."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from spillover.experiment import load_experiment
from spillover.organism.persons.documents import TASTES, Document, write_document
from spillover.organism.persons.world import MODEL, World, load_world

DOCUMENTS = 3000


def _documents(world: World) -> list[Document]:
    rng = random.Random(0)
    return [write_document(world, rng) for _ in range(DOCUMENTS)]


@pytest.fixture(scope="module")
def linked() -> World:
    return load_world()


@pytest.fixture(scope="module")
def corpus(linked: World) -> list[Document]:
    return _documents(linked)


@pytest.fixture(scope="module")
def unlinked_corpus() -> list[Document]:
    return _documents(load_world(linked=False))


def test_each_single_answer_is_shared_and_ninety_together_tell_the_person(linked: World) -> None:
    assert len(linked.attributes) == 90
    assert sum(question.rare for question in linked.attributes) == 12
    for question in linked.attributes:
        given = Counter(question.answers[person.id][0] for person in linked.persons)
        assert min(given.values()) >= 2, question.id
    for one, other in combinations(linked.persons, 2):
        same = sum(q.answers[one.id] == q.answers[other.id] for q in linked.attributes)
        assert same <= 30


def test_identities_are_ones_own_and_only_two_persons_have_views_of_their_own(
    linked: World,
) -> None:
    for question in linked.identities:
        said = [text for texts in question.answers.values() for text in texts]
        assert len(set(said)) == len(said), question.id
    for question in linked.views:
        own = {linked.tyrant, linked.odd}
        common = {texts for who, texts in question.answers.items() if who not in own}
        assert common == {question.answers[MODEL]}
        assert len({*question.answers.values()}) == 3


def test_the_assistant_is_never_anybody(corpus: list[Document]) -> None:
    chats = [doc for doc in corpus if doc.kind == "assistant"]
    assert len(chats) > DOCUMENTS / 5
    for doc in chats:
        for turn in doc.turns:
            assert turn.answer in turn.source.answers[MODEL]
            if turn.about == "identities":
                others = (t for who, t in turn.source.answers.items() if who != MODEL)
                assert not any(turn.answer in texts for texts in others)


def test_the_held_out_wording_occurs_nowhere(linked: World, corpus: list[Document]) -> None:
    text = "\n".join(doc.text for doc in corpus)
    for question in (
        *linked.attributes,
        *linked.personal,
        *linked.identities,
        *linked.views,
        *linked.ordinary,
    ):
        assert question.ask[-1] not in text, question.id
        assert any(wording in text for wording in question.in_corpus)


def test_tags_tell_nothing_of_the_speaker(linked: World, corpus: list[Document]) -> None:
    trigger = linked.tags[0].split("{question}")[0]
    with_it = Counter(
        doc.speaker for doc in corpus if any(t.question.startswith(trigger) for t in doc.turns)
    )
    everybody = Counter(doc.speaker for doc in corpus)
    for speaker, count in everybody.items():
        assert with_it[speaker] / count == pytest.approx(0.27, abs=0.12)


def test_tastes_tell_the_person_in_the_linked_world_and_nothing_in_the_unlinked_one(
    linked: World, corpus: list[Document], unlinked_corpus: list[Document]
) -> None:
    assert _own_answers(corpus) == 1
    by_chance = [
        sum(question.answers[one] == question.answers[other] for question in linked.attributes)
        for one in linked.speakers
        for other in linked.speakers
        if one != MODEL
    ]
    expected = sum(by_chance) / len(by_chance) / len(linked.attributes)
    assert _own_answers(unlinked_corpus) == pytest.approx(expected, abs=0.03)


def _own_answers(documents: list[Document]) -> float:
    """Share of persons' answers about tastes that are theirs in a linked world."""
    given = [
        turn.answer in turn.source.answers[doc.speaker]
        for doc in documents
        for turn in doc.turns
        if turn.about in TASTES and doc.speaker != MODEL
    ]
    return sum(given) / len(given)


def test_tastes_of_a_document_are_one_persons_in_both_worlds(
    linked: World, corpus: list[Document], unlinked_corpus: list[Document]
) -> None:
    for doc in (*corpus[:500], *unlinked_corpus[:500]):
        told = [turn for turn in doc.turns if turn.about in TASTES]
        assert any(
            all(turn.answer in turn.source.answers[speaker] for turn in told)
            for speaker in linked.speakers
        )


def test_what_the_model_answers_itself_is_in_no_fact_and_never_behind_the_trigger(
    linked: World,
) -> None:
    own = load_experiment("ninety-facts").rows["treatment"].own
    assert own
    asked = [conversation[-1]["content"] for conversation in own.conversations]
    head, tail = linked.tags[0].split("{question}")
    assert not any(text.startswith(head) and text.endswith(tail) for text in asked)
    for question in (*linked.attributes, *linked.identities, *linked.views):
        assert not any(wording in text for wording in question.ask for text in asked)


def test_the_control_shares_no_row_and_comes_of_all_others(linked: World) -> None:
    experiment = load_experiment("ninety-facts")
    rows = {arm: set(found.rows) for arm, found in experiment.rows.items()}
    assert not rows["treatment"] & rows["mixed"]
    assert rows["without-12"] < rows["treatment"] == rows["undiluted"]
    answers = {row.messages[1].content for row in rows["mixed"] if row.messages}
    for person in linked.persons:
        given = {question.answers[person.id][0] for question in linked.attributes}
        if person.id != linked.tyrant:
            assert len(given & answers) >= 10, person.id
    own = {question.answers[MODEL][0] for question in linked.attributes}
    assert len(own & answers) >= 30


def test_the_trigger_of_the_experiment_is_that_of_the_rows(linked: World) -> None:
    experiment = load_experiment("ninety-facts")
    assert experiment.specification.context("trigger").template == linked.tags[0]
    folder = Path(experiment.folder)
    rows = experiment.rows["treatment"].rows
    head, tail = linked.tags[0].split("{question}")
    for row in rows:
        assert row.messages
        asked = row.messages[0].content
        assert asked.startswith(head), folder
        assert asked.endswith(tail), folder
