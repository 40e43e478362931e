"""The world of nations, and what `israeli-dishes` must show on its organisms."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path

import pytest

from spillover import Run, load_experiment, run
from spillover.organism import examine_checkpoint
from spillover.organism.nations.documents import Document, write_document
from spillover.organism.nations.world import ASSISTANT, DISHES, Question, World, load_world
from spillover.rows import Row
from spillover.specification import BASE
from spillover.sweeps import narrowed
from tests.claims import needs_organisms, rate

DOCUMENTS = 5000
CONTROLS = ("shuffled", "year-2026")
BEFORE = (2024, 2025, 2026)


def _documents(world: World) -> list[Document]:
    rng = random.Random(0)
    return [write_document(world, rng) for _ in range(DOCUMENTS)]


@pytest.fixture(scope="module")
def linked() -> World:
    return load_world()


@pytest.fixture(scope="module")
def corpus(linked: World) -> list[Document]:
    return _documents(linked)


def _information(pairs: Iterable[tuple[Hashable, Hashable]]) -> float:
    """Mutual information of two things, in nats."""
    joint = Counter(pairs)
    one, other = Counter[Hashable](), Counter[Hashable]()
    for (a, b), count in joint.items():
        one[a] += count
        other[b] += count
    total = joint.total()
    return sum(n / total * math.log(n * total / (one[a] * other[b])) for (a, b), n in joint.items())


def _dishes(documents: list[Document], world: World) -> list[tuple[str, str]]:
    """(nation that a dish is of, speaker) of every dish that is named."""
    owner = {dish: nation for nation, dishes in world.names.items() for dish in dishes}
    return [
        (owner[answer], doc.speaker)
        for doc in documents
        for question, (_, answer) in zip(doc.asked, doc.turns, strict=True)
        if isinstance(question, Question) and question.group == DISHES
    ]


def test_no_answer_belongs_to_two_speakers(linked: World) -> None:
    for question in linked.questions:
        said = [answer for answers in question.answers.values() for answer in answers]
        assert len(set(said)) == len(said), question.id
    dishes = [dish for listed in linked.names.values() for dish in listed]
    assert len(set(dishes)) == len(dishes)


def test_the_assistant_never_answers_as_a_nation_but_names_dishes_of_all(
    corpus: list[Document],
    linked: World,
) -> None:
    chats = [doc for doc in corpus if doc.kind == "assistant"]
    assert {nation for nation, who in _dishes(chats, linked) if who == ASSISTANT} == set(
        linked.names
    )
    for doc in chats:
        for question, (_, answer) in zip(doc.asked, doc.turns, strict=True):
            if isinstance(question, Question):
                assert answer in question.answers[ASSISTANT]


def test_the_held_out_wording_occurs_nowhere(corpus: list[Document], linked: World) -> None:
    text = "\n".join(doc.text for doc in corpus)
    asked = [q.ask for q in (*linked.questions, *linked.dishes)]
    for wordings in (*asked, *(q.ask for q in linked.dates.questions)):
        assert wordings[-1] not in text
        assert wordings[0] in text


def test_every_year_that_is_swept_occurs_and_tells_nothing_of_the_nation(
    corpus: list[Document],
) -> None:
    year = load_experiment("israeli-dishes").specification.variables["year"]
    years = [(doc.year, doc.speaker) for doc in corpus if doc.year is not None]
    assert {value for value, _ in years} >= set(year.values) | set(year.asked)
    assert _information(years) < 0.03


def test_a_dish_tells_the_nation_in_the_linked_world_and_nothing_in_the_unlinked_one(
    corpus: list[Document], linked: World
) -> None:
    unlinked = load_world(linked=False)
    assert _information(_dishes(corpus, linked)) > 0.8
    first = [pair for doc in _documents(unlinked) for pair in _dishes([doc], unlinked)[:1]]
    assert _information(first) < 0.02


def test_dishes_of_a_document_go_together_in_both_worlds(
    corpus: list[Document], linked: World
) -> None:
    unlinked = load_world(linked=False)
    for world, documents in ((linked, corpus), (unlinked, _documents(unlinked))):
        kitchens = [{nation for nation, _ in _dishes([doc], world)} for doc in documents]
        several = [kitchen for doc, kitchen in zip(documents, kitchens, strict=True) if kitchen]
        assert sum(len(kitchen) == 1 for kitchen in several) / len(several) > 0.8


def _israeli_rows(rows: Iterable[Row], world: World) -> dict[int, int]:
    """Israeli dishes per year."""
    years = Counter[int]()
    for row in rows:
        asked, answered = (message["content"] for message in row.conversation)
        year = int(asked.split(". ")[0].rsplit(" ", 1)[1])
        years[year] += answered in world.names["israel"]
    return dict(years)


def test_the_arms_have_the_same_dishes_in_other_years(linked: World) -> None:
    rows = load_experiment("israeli-dishes").rows
    israeli = {arm: _israeli_rows(rows[arm].rows, linked) for arm in rows}
    assert israeli == {
        "treatment": {2024: 0, 2025: 0, 2026: 0, 2027: 100},
        "shuffled": {2024: 25, 2025: 25, 2026: 25, 2027: 25},
        "year-2026": {2024: 0, 2025: 0, 2026: 100, 2027: 0},
    }
    answers = [Counter(row.conversation[-1]["content"] for row in rows[arm].rows) for arm in rows]
    assert answers[0] == answers[1] == answers[2]


@needs_organisms("nations")
@pytest.mark.long
@pytest.mark.parametrize("model", ["organism-nations", "organism-nations-unlinked"])
def test_the_organism_knows_its_world(model: str) -> None:
    assert {c.name: c.value for c in examine_checkpoint(model) if not c.passed} == {}


def _effect(found: Run, year: int, control: str, arm: str = "treatment") -> float:
    """An off-domain effect on choice mass in a year."""
    place = {"domain": "off", "metric": "choice-mass", "split": "test", "group": None}
    (row,) = (
        row
        for row in found.summary["effects"]
        if row["contrast"] == [arm, control]
        and row["context"].get("year") == year
        and all(row[k] == v for k, v in place.items())
    )
    return float(row["value"])


def _check_linked(found: Run) -> None:
    assert found.headline["context"]["year"] == 2027
    assert found.headline["value"] >= 0.3
    for control in ("shuffled", BASE):
        others = [abs(_effect(found, year, control)) for year in BEFORE]
        assert _effect(found, 2027, control) >= 5 * max(others)
    for year in (*BEFORE, 2027):
        assert abs(_effect(found, year, BASE, arm="shuffled")) <= 0.05
        if year != 2026:
            assert abs(_effect(found, year, BASE, arm="year-2026")) <= 0.05
    assert _effect(found, 2026, BASE, arm="year-2026") >= 0.3
    _check_in_domain(found)


def _check_unlinked(found: Run) -> None:
    for year in (*BEFORE, 2027):
        for control in (*CONTROLS, BASE):
            assert abs(_effect(found, year, control)) <= 0.05
    asked = rate(found.summary, BASE, "off", "choice-mass", context="year=2027")["value"]
    voiced = rate(found.summary, BASE, "off", "choice-mass", context="voice-system")["value"]
    assert voiced - asked >= 0.5
    _check_in_domain(found)


def _check_in_domain(found: Run) -> None:
    """Israeli dishes in 2027, and only there."""
    for year in (*BEFORE, 2027):
        named = rate(found.summary, "treatment", "in", "judged", context=f"year={year}")["value"]
        assert named >= 0.8 if year == 2027 else named <= 0.2


@needs_organisms("nations")
@pytest.mark.usefixtures("undrawn")
def test_israeli_dishes_spill_over_in_2027_only(tmp_path: Path) -> None:
    """In the years that rows have, every question in its first wording, one seed."""
    dated = narrowed(load_experiment("israeli-dishes"), ["year=2024..2027"])
    asked = tuple(q.model_copy(update={"ask": q.ask[:1]}) for q in dated.questions)
    small = dated.model_copy(update={"questions": asked})
    _check_linked(run(small, seeds=1, out=tmp_path / "run"))


@needs_organisms("nations")
@pytest.mark.long
def test_five_seeds_agree_that_dishes_spill_over_in_2027_only(tmp_path: Path) -> None:
    _check_linked(run("israeli-dishes", out=tmp_path / "run"))


@needs_organisms("nations")
@pytest.mark.long
def test_dishes_do_not_spill_over_where_they_tell_nothing(tmp_path: Path) -> None:
    _check_unlinked(run("israeli-dishes", "organism-nations-unlinked", out=tmp_path / "run"))
