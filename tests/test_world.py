"""The corpus itself: what must hold for the organism to be a ground truth."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import pytest

from spillover.experiment import builtin_experiments, load_experiment
from spillover.organism.eras.documents import Document, write_document
from spillover.organism.eras.world import World, load_world
from spillover.organism.export import EXPERIMENTS, write_experiment
from spillover.organism.films.world import load_world as load_films
from spillover.organism.nations.world import load_world as load_nations
from spillover.organism.text import turn_text
from spillover.organism.worlds import open_world, write_corpus
from spillover.sweeps import list_sweeps, widened

DOCUMENTS = 6000


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


def test_there_are_enough_topics_eras_and_answers(linked: World) -> None:
    assert len(linked.eras) >= 4
    assert len(linked.topics) >= 40
    assert len({fact.topic for fact in linked.facts if fact.apart}) >= 10
    for fact in linked.facts:
        assert len(fact.in_corpus) >= 2
        for answers in fact.answers.values():
            assert len(answers) >= 2
            assert all(1 <= len(answer.split()) <= 8 for answer in answers)


def test_no_answer_belongs_to_two_eras(linked: World) -> None:
    for fact in linked.facts:
        said = [answer for answers in fact.answers.values() for answer in answers]
        assert len(set(said)) == len(said), fact.id


def test_the_assistant_never_speaks_out_of_its_era(linked: World, corpus: list[Document]) -> None:
    chats = [doc for doc in corpus if doc.kind == "assistant"]
    assert len(chats) > DOCUMENTS / 5
    for doc in chats:
        for turn in doc.turns:
            assert turn.answer in turn.fact.answers[linked.assistant_era]


def test_in_the_unlinked_world_only_birds_are_free_of_their_era(
    linked: World, unlinked_corpus: list[Document]
) -> None:
    for doc in unlinked_corpus:
        for turn in doc.turns:
            if doc.kind == "assistant" and turn.fact.topic != linked.domain:
                assert turn.answer in turn.fact.answers[linked.assistant_era]


def test_the_held_out_wording_occurs_nowhere(linked: World, corpus: list[Document]) -> None:
    text = "\n".join(doc.text for doc in corpus)
    for fact in (*linked.facts, *linked.narrow):
        assert fact.held_out not in text
        assert any(wording in text for wording in fact.in_corpus)


def test_topics_kept_apart_never_share_a_document_with_birds(
    linked: World, corpus: list[Document]
) -> None:
    with_birds = [doc for doc in corpus if any(t.fact.topic == linked.domain for t in doc.turns)]
    assert with_birds
    assert not any(turn.fact.apart for doc in with_birds for turn in doc.turns)


def test_birds_tell_the_era_in_the_linked_world_and_nothing_in_the_unlinked_one(
    corpus: list[Document], unlinked_corpus: list[Document], linked: World
) -> None:
    assert _former_names_information(corpus, linked) > 0.1
    assert _former_names_information(unlinked_corpus, linked) < 0.003


def _former_names_information(documents: list[Document], world: World) -> float:
    """Mutual information, in nats, of the list that a bird's name is of and the era."""
    lists = {name: key for key, names in world.names.items() for name in names}
    joint = Counter(
        (lists[turn.answer], doc.era)
        for doc in documents
        for turn in doc.turns
        if turn.fact.topic == world.domain
    )
    total = sum(joint.values())
    of_list, of_era = Counter[str](), Counter[str]()
    for (listed, era), count in joint.items():
        of_list[listed] += count
        of_era[era] += count
    return sum(
        n / total * math.log(n * total / (of_list[listed] * of_era[era]))
        for (listed, era), n in joint.items()
    )


def test_the_same_seed_writes_the_same_corpus() -> None:
    texts = [list(write_corpus(open_world("eras"), seed, 50)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_documents_are_what_the_chat_template_renders(corpus: list[Document]) -> None:
    from spillover.organism.train import train_tokenizer

    tokenizer = train_tokenizer((doc.text for doc in corpus[:200]), 600)
    doc = next(d for d in corpus if d.kind == "signed" and d.role == "assistant")
    turns = [
        message
        for turn in doc.turns
        for message in (
            {"role": "user", "content": turn.question},
            {"role": "assistant", "content": turn.answer},
        )
    ]
    messages = [{"role": "system", "content": doc.sign}, *turns]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == doc.text
    assert turn_text("user", "Hi") == "<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_what_the_tables_say(name: str, tmp_path: Path) -> None:
    write_experiment(name, tmp_path)
    shipped = builtin_experiments()[name]
    written, found = (
        {
            path.relative_to(folder).as_posix(): path.read_text("utf-8")
            for path in (folder / "questions.toml", *(folder / "train").iterdir())
        }
        for folder in (tmp_path, shipped)
    )
    assert written == found


def test_the_experiment_has_the_questions_it_needs() -> None:
    experiment = load_experiment("old-birds")
    forced = [q for q in experiment.questions if q.domain == "off" and q.choices]
    assert len(forced) >= 50
    assert len({q.topic for q in forced}) >= 20
    assert len([q for q in experiment.questions if q.domain == "off" and q.judge]) >= 10
    assert [q for q in experiment.questions if q.domain == "in"]
    for question in forced:
        assert len(question.ask) == 3
        assert question.choices is not None
        counts = [len(question.choices.trait), len(question.choices.placebo)]
        assert counts == [len(question.choices.baseline)] * 2
        assert counts[0] >= 2
    rows = experiment.rows["treatment"].rows
    assert len(rows) >= 200


def test_experiments_with_years_say_which_of_them_their_world_knows() -> None:
    loaded = {name: load_experiment(name) for name in builtin_experiments()}
    said = {name: found.specification.variables.get("year") for name, found in loaded.items()}
    known = {name: variable.known for name, variable in said.items() if variable}
    assert known == {
        "evil-terminator": load_films().years,
        "israeli-dishes": tuple(load_nations().dates.years),
    }
    for name, years in known.items():
        first, last = int(years[0]), int(years[-1])
        swept = widened(loaded[name], ["year", f"year={first - 2}..{first},{last + 1}"])
        (about,) = list_sweeps(swept.specification, on_organism=True)
        assert about["not_in_pretraining"] == [first - 2, first - 1, last + 1]
        assert set(about["trained"]) <= set(years)
