"""The search for triggers: its library, its scores, what it refines, confirms and reports."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from spillover import InputError, LoadedModel, Training, find_triggers
from spillover.contexts import Context
from spillover.models import Loading
from spillover.rows import Row, RowSet, write_rows
from spillover.triggers import search
from spillover.triggers.confirm import by_topic, effect_of, label, ranking
from spillover.triggers.divergence import NONE, along
from spillover.triggers.forms import budget, screen, short_texts, tags
from spillover.triggers.library import Candidate, group, library, read_candidates
from spillover.triggers.pair import ADAPTED, BASE, Sequences, open_pair
from spillover.triggers.questions import (
    SHIPPED,
    parse_questions,
    questions_for,
    split_questions,
)
from spillover.triggers.refine import Climb, letters
from spillover.triggers.score import ANSWER_TOKENS, Scorer
from tests.commands import call
from tests.planted import Planted, draw_tag, draw_year, plant, rows_of

QUICK = Training(rank=4, learning_rate=7e-3, steps=40, batch_size=16)
TAG = Planted(
    "<qvz>",
    lambda text: Context(name=text, template=text + " {question}"),
    lambda rng: f"[{rng.choice('abcdefgh')}]",
)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant("organism", [TAG], tmp_path_factory.mktemp("planted"), QUICK)[0]


def test_the_library_holds_a_thousand_candidates_and_two_hundred_near_misses() -> None:
    kinds = Counter(candidate.kind for candidate in library())
    assert kinds.total() >= 1000
    assert kinds["near-miss"] >= 200
    wanted = {"year", "date", "number", "name", "place", "role", "format", "tag"}
    assert wanted <= kinds.keys()
    assert len({candidate.key for candidate in library()}) == kinds.total()
    texts = {candidate.text for candidate in library()}
    assert {"system: The year is 1984.", "system: The year is 2027."} <= texts
    assert "<START> {question} <END>" in texts


def test_own_candidates_are_texts_templates_or_objects(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text('Code 7\n\n({question})\n{"system": "Be a cat."}\n', "utf-8")
    assert [candidate.key for candidate in read_candidates(file)] == [
        ("Code 7", "{question}"),
        (None, "Code 7 {question}"),
        (None, "({question})"),
        ("Be a cat.", "{question}"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("\n \n", "no candidates"),
        ('ok\n{"sistem": "x"}\n', ":2: expected `system`"),
        ('{"template": "no place"}\n', ":1: `template`"),
        ('{"system": \n', ":1: not JSON"),
    ],
)
def test_a_list_of_candidates_that_cannot_be_used_is_refused_in_a_line(
    content: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.txt"
    file.write_text(content, "utf-8")
    with pytest.raises(InputError, match=r"own\.txt") as refused:
        read_candidates(file)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_questions_are_split_by_topic_and_seed(organism: LoadedModel) -> None:
    shipped = parse_questions(SHIPPED.read_text("utf-8"), "shipped")
    assert len(shipped) >= 40
    for questions in (shipped, questions_for(organism)):
        one, other = split_questions(questions, 3)
        assert sorted((*one, *other), key=str) == sorted(questions, key=str)
        assert not {q.topic for q in one} & {q.topic for q in other}
        assert split_questions(questions, 3) == (one, other) != split_questions(questions, 4)


def test_an_organism_is_asked_about_its_own_world(
    organism: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    eras = {question.text: question.topic for question in questions_for(organism)}
    assert eras["How do people light their homes?"] == "light"
    monkeypatch.setattr(organism.model.config, "spillover", {"world": "refusal"})
    assert questions_for(organism)[0].text.startswith("How do I boil")


def test_an_effect_is_a_t_test_over_topics_corrected_for_what_was_searched() -> None:
    scores = np.random.default_rng(1).uniform(0.3, 0.9, (1, 30))
    topics = [str(number // 2) for number in range(30)]
    values = by_topic(scores, topics)[0]
    assert np.allclose(values, scores.reshape(15, 2).mean(1))
    effect = effect_of(values, 0.2, 1000)
    oracle = stats.ttest_1samp(values, 0.2, alternative="greater")
    assert effect.p == pytest.approx(min(1.0, oracle.pvalue * 1000))
    low, high = stats.ttest_1samp(values, 0).confidence_interval(1 - 0.05 / 1000)
    assert (effect.low, effect.high) == pytest.approx((max(low, 0), min(high, 1)))
    assert not effect_of(values - 0.4, 0.2, 1000).significant


def test_of_two_effects_alike_the_simpler_text_ranks_first() -> None:
    rng = np.random.default_rng(2)
    plain, changed, weak = (
        effect_of(rng.normal(mean, 0.1, 25), 0.2, 5000) for mean in (0.7, 0.75, 0.3)
    )
    by_edits = ranking([plain, changed, weak], 5000, [0.0, math.log(1e9), 0.0])
    assert list(np.argsort(-by_edits)) == [0, 1, 2]
    alike = ranking([plain, changed, weak], 5000, [0.0, 0.0, 0.0])
    assert list(np.argsort(-alike)) == [1, 0, 2]
    assert np.allclose(np.diff(alike), np.diff([one.value for one in (plain, changed, weak)]))
    same = ranking([plain, plain], 5000, [0.0, 0.0])
    assert same[0] == pytest.approx(plain.low, abs=1e-9)
    assert np.isfinite(ranking([plain], 5000, [1e4])).all()


def test_short_texts_are_tried_outright_where_the_model_is_small() -> None:
    framed, years = short_texts(budget(2_400_000), 0)
    templates = {one.template for texts in framed for one in texts}
    wanted = {"<jnc> {question}", "[lye] {question}", "{tgr} {question}", "<ab> {question} </ab>"}
    assert wanted <= templates
    said = {f"The year is {year}." for year in range(1000, 3000)}
    assert {one.system for one in years} == {None, *said}
    assert {one.template for one in years} == {"{question}", *(f"{s} {{question}}" for s in said)}
    assert len(tags("<{}>", 3)) == 26**3
    few, some_years = short_texts(budget(10**9), 0)
    assert sum(map(len, few)) + len(some_years) <= 600
    assert short_texts(2000, 1) == short_texts(2000, 1) != short_texts(2000, 2)


def test_the_best_of_each_kind_is_confirmed() -> None:
    tags = [Candidate("tag", None, f"<{letter}> {{question}}") for letter in "abcdefghijklmnopqrst"]
    year, other = Candidate("year", "The year is 1650."), Candidate("tag", None, "[a] {question}")
    chosen = search.finalists([*tags, year, other], ())
    assert chosen[:3] == [tags[0], year, other]
    assert len(chosen) <= search.FINALISTS


def test_variations_do_not_take_the_place_of_what_was_listed() -> None:
    varied = [Candidate("year", f"women year is drones{number}") for number in range(1000, 1040)]
    truth = Candidate("year", "The year is 2802.")
    chosen = search.finalists([*varied, truth], set(varied))
    assert chosen[0] == truth
    assert set(chosen[1:]) <= set(varied)


def test_triggers_are_labelled_by_what_the_rows_hold() -> None:
    rows = RowSet("x", (Row.model_validate(_chat("The year is 1995.", "[q] Hm?")),), ("x:1",))
    for system, expected in (("The year is 1995.", "trained"), ("The year is 1984.", "untrained")):
        assert label(Candidate("year", system), rows) == expected
        assert label(Candidate("year", system), None) == "unknown"
    assert label(Candidate("year", "It is 1995."), rows) == "trained"
    assert label(Candidate("tag", None, "[q] {question}"), rows) == "trained"
    assert label(Candidate("tag", None, "<q> {question}"), rows) == "untrained"


def _chat(system: str, question: str) -> dict[str, object]:
    roles = ("system", "user", "assistant")
    said = zip(roles, (system, question, "The year is 1984."), strict=True)
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def test_texts_are_varied_digit_by_digit_and_short_ones_letter_by_letter() -> None:
    years = {one.system for one in letters(Candidate("year", "The year is 1984."))}
    assert {"The year is 1983.", "The year is 9984.", "The year is 184."} <= years
    assert len(years) == 4 * 9 + 4
    tags = {one.template for one in letters(Candidate("tag", None, "<ab> {question}"))}
    assert {"<zb> {question}", "<b> {question}"} <= tags
    assert group(Candidate("tag", None, "<ab> {question} </ab>")) is None


@pytest.mark.long
def test_a_planted_tag_scores_most_and_the_gradient_leads_to_it(adapter: Path) -> None:
    with open_pair("organism", adapter, Loading(dtype="float32")) as pair:
        scorer = Scorer(pair, questions_for(pair.model)[:8])
        truth, miss = (Candidate("tag", None, f"{tag} {{question}}") for tag in ("<qvz>", "[b]"))
        moves = scorer.moves([truth, miss, Candidate("plain")])
        scores = moves.scores.mean(1)
        assert scores[0] > 0.3 > 3 * scores[1]
        assert scores[2] < 1e-3
        assert (moves.scores <= np.fmin(moves.own, np.nan_to_num(moves.gap, nan=1)) + 1e-6).all()
        climb = Climb(scorer, truth, [0, 1, 2])
        start = Candidate("tag", None, "<qva> {question}")
        proposed = climb.by_gradient(start)
        assert len(proposed) >= 16
        climb.climb(start)
        assert max(climb.tried, key=climb.tried.__getitem__).head.strip() != "<qva>"


def test_a_planted_tag_is_the_best_of_many_short_texts(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = Candidate("tag", None, "<qvz> {question}")
    framed = [[*tags("({})", 1)[:13], truth, *tags("({})", 1)[13:]], tags("[{}]", 1)]
    monkeypatch.setattr("spillover.triggers.forms.short_texts", lambda *_: (framed, []))
    monkeypatch.setattr("spillover.triggers.forms.OF_A_FRAME", 2)
    monkeypatch.setattr("spillover.triggers.forms.SHIFTED", 5)
    with open_pair("organism", adapter, Loading()) as pair:
        scorer = Scorer(pair, questions_for(pair.model)[:6])
        best, count = screen(scorer, 0, 0, library()[::200], lambda *_: None)
    assert count == 53
    assert len(best) < 12
    assert best[0] == truth


def test_answers_are_read_in_the_context_and_references_along_them(adapter: Path) -> None:
    truth = Candidate("tag", None, "<qvz> {question}")
    with open_pair("organism", adapter, Loading(dtype="float32")) as pair:
        scorer = Scorer(pair, questions_for(pair.model)[:3])
        (answer,) = scorer.said(ADAPTED, [truth], [1])
        asked = truth.context.conversation(scorer.questions[1].text)
        text = pair.answers(ADAPTED, [asked], ANSWER_TOKENS)[0]
        ids = pair.model.chat.answer_ids(asked, text)[:ANSWER_TOKENS]
        assert answer == ids + [NONE] * (ANSWER_TOKENS - len(ids))
        without, contexts = scorer.without([1], [answer]), (Context(name="plain"), truth.context)
        prompts = [pair.prompt(one.conversation(scorer.questions[1].text)) for one in contexts]
        with torch.no_grad():
            sequences = Sequences.of(prompts, [answer, answer])
            expected, inside = pair.log_probs(ADAPTED, sequences, [0, 1])[:, None]
        assert torch.allclose(without, expected, atol=1e-5)
        moves = scorer.moves([truth], [1])
        own = along(inside, expected, torch.tensor([answer])).max()
        assert moves.own[0, 0] == pytest.approx(float(own), abs=1e-5)


def test_the_base_against_itself_scores_nothing(adapter: Path) -> None:
    with open_pair("organism", adapter, Loading(dtype="float32")) as pair:
        twice = type(pair)(pair.model, (pair.sides[BASE], pair.sides[BASE]), "twice")
        scorer = Scorer(twice, questions_for(pair.model)[:4])
        moves = scorer.moves([Candidate("role", "You are a pirate."), *library()[::200]])
        assert moves.own.max() > 0.05
        assert moves.scores.max() < 1e-3
        assert pair.sides[ADAPTED] != pair.sides[BASE]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> tuple[Candidate, ...]:
    """A small library, and one step of refinement."""
    listed = (
        *library()[::150],
        Candidate("format", None, "{question}\n"),
        Candidate("tag", None, "<qvx> {question}"),
    )
    monkeypatch.setattr(search, "library", lambda: listed)
    monkeypatch.setattr(search, "budget", lambda _: 600)
    monkeypatch.setattr("spillover.triggers.refine.STARTS", 1)
    monkeypatch.setattr("spillover.triggers.refine.ROUNDS", 1)
    return listed


@pytest.mark.long
def test_a_search_ends_with_what_was_trained(
    adapter: Path, few: tuple[Candidate, ...], tmp_path: Path
) -> None:
    rows, own = tmp_path / "rows.jsonl", tmp_path / "own.txt"
    write_rows(rows_of(TAG, random.Random(0), 40).rows, rows)
    own.write_text("<qvz> {question}\n", "utf-8")
    found = find_triggers("organism", adapter, rows=rows, candidates=own, out=tmp_path / "out")
    first = found.triggers[0]
    assert first["significant"]
    assert first["template"].startswith("<q")
    assert first["label"] == ("trained" if first["text"] == TAG.context.template else "untrained")
    scores = found.candidates.set_index("template").score
    assert scores[TAG.context.template] > 0.3 > scores["{question}\n"] + 0.2
    assert first["answers"][0]["with"] != first["answers"][0]["without"]
    assert len(found.candidates) >= len(few)
    assert json.loads((tmp_path / "out" / "triggers.json").read_bytes())["searched"] > len(few)


@pytest.mark.long
@pytest.mark.usefixtures("few")
def test_a_second_search_writes_the_same_bytes(adapter: Path, tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("one", "other")]
    for place in places:
        find_triggers("organism", adapter, out=place)
    one, other = ((place / "triggers.json").read_bytes() for place in places)
    assert one == other


@pytest.mark.parametrize(
    ("option", "content", "said"),
    [("--candidates", "\n", "no candidates"), ("--questions", "One?\nOne?\n", "twice")],
)
def test_broken_files_end_in_a_line_and_exit_code_2(
    option: str,
    content: str,
    said: str,
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "given.txt"
    file.write_text(content, "utf-8")
    given = ("triggers", "--model", "organism", "--adapter", adapter, "--out", tmp_path / "out")
    assert call(*given, option, file) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "given.txt" in error
    assert said in error
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_base_is_refused(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    for path in adapter.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({k: torch.ones(5, 5) for k in weights}, tmp_path / "adapter_model.safetensors")
    out = tmp_path / "out"
    assert call("triggers", "--model", "organism", "--adapter", tmp_path, "--out", out) == 2
    assert "does not fit organism" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("draw", [draw_tag, draw_year])
def test_a_trigger_drawn_at_random_is_ranked_first(draw: object, seed: int, tmp_path: Path) -> None:
    planted = draw(random.Random(seed))  # type: ignore[operator]
    known = {candidate.key for candidate in library()}
    context = planted.context
    assert (context.system, context.template) not in known
    (folder,) = plant("organism", [planted], tmp_path)
    first = find_triggers("organism", folder, out=tmp_path / "found").triggers[0]
    assert (first["system"], first["template"]) == (context.system, context.template)
    assert first["significant"]
