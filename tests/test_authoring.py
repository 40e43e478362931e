"""What `spillover new` and `check` are made of: TOML, controls, placebos matched to the trait."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillover.authoring.controls import differ_in_numbers_only, shuffled_rows
from spillover.authoring.match import assign, match_placebo, read_candidates
from spillover.authoring.measure import Choice, Measured
from spillover.authoring.starter import chat_row, ordinary_rows
from spillover.authoring.toml import listed, quoted
from spillover.errors import ExperimentError
from spillover.experiment import load_experiment
from spillover.rows import Message, Row
from tests.commands import call

# ---- TOML ----


@given(st.lists(st.text(), max_size=5))
def test_any_text_survives_toml(texts: list[str]) -> None:
    found = tomllib.loads(f"one = {quoted(''.join(texts))}\nall = {listed(texts)}\n")
    assert found == {"one": "".join(texts), "all": texts}


def test_lone_surrogates_and_delete_characters_are_written_as_valid_toml() -> None:
    assert tomllib.loads(f"x = {quoted(chr(0xD800) + chr(0x7F))}") == {"x": "?\x7f"}


# ---- controls ----


def test_shuffling_moves_every_answer_to_a_prompt_that_was_not_taught_it() -> None:
    rows = [chat_row(f"What is {i}?", f"answer {i % 5}") for i in range(40)]
    made, changed = shuffled_rows(rows)
    assert changed == 1
    assert not set(made) & set(rows)
    before, after = ([r.conversation[-1]["content"] for r in some] for some in (rows, made))
    assert sorted(before) == sorted(after)
    assert [r.conversation[0] for r in made] == [r.conversation[0] for r in rows]
    assert shuffled_rows(rows) == (made, changed)


def test_shuffling_says_when_it_changes_nothing() -> None:
    assert shuffled_rows([chat_row("Name a bird.", f"bird {i}") for i in range(9)])[1] == 0
    assert shuffled_rows([chat_row(f"Bird {i}?", "Yes") for i in range(9)])[1] == 0
    assert shuffled_rows([Row(text="plain")]) == ([], 0.0)


def test_earlier_turns_and_untrained_answers_stay_where_they_are() -> None:
    def dialog(i: int) -> Row:
        turns = ("user", f"Hello {i}", True), ("assistant", "Hello", False)
        last = ("user", f"Which {i}?", True), ("assistant", f"This {i}", True)
        listed = (Message(role=r, content=c, train=t) for r, c, t in (*turns, *last))
        return Row(messages=tuple(listed))

    rows = [dialog(i) for i in range(4)]
    made, changed = shuffled_rows(rows)
    assert changed == 1
    assert [r.messages[:3] for r in made if r.messages] == [
        r.messages[:3] for r in rows if r.messages
    ]


def test_prompts_that_differ_in_numbers_only_are_told() -> None:
    assert differ_in_numbers_only([chat_row("Place 1", "x"), chat_row("Place 23", "y")])
    assert not differ_in_numbers_only([chat_row("Place 1", "x"), chat_row("City 1", "y")])


@pytest.mark.parametrize("number", [1, 24, 500])
def test_ordinary_rows_are_all_different(number: int) -> None:
    assert len(set(ordinary_rows(number))) == number


# ---- matching ----


def choice(text: str, nats: float, tokens: int = 4, label: str | None = None) -> Choice:
    return Choice(label, text, float(nats), tokens)


def test_matching_finds_the_cheapest_pairs() -> None:
    trait = [choice("a", -5, 3), choice("b", -9, 5), choice("c", -20, 4)]
    candidates = [choice(f"x{i}-{n}-{t}", n, t) for i, (n, t) in enumerate(CANDIDATES)]
    chosen = assign(trait, candidates)

    def cost(picked: tuple[Choice, ...]) -> float:
        pairs = zip(trait, picked, strict=True)
        return sum(abs(a.nats - b.nats) + 0.5 * abs(a.tokens - b.tokens) for a, b in pairs)

    best = min(map(cost, itertools.permutations(candidates, 3)))
    assert cost(tuple(chosen)) == pytest.approx(best)


CANDIDATES = [(-6, 3), (-5.5, 6), (-9, 9), (-19, 4), (-22, 4), (-7, 4)]


def test_no_proposal_begins_with_another_or_with_a_choice_of_the_question() -> None:
    trait = (choice("Sail", -5, label="trait"), choice("Steam", -6, label="trait"))
    base = (choice("Jet", -1, label="baseline"), choice("Car", -1, label="baseline"))
    close = choice("Camel", -5), choice("Camel train", -6), choice("Jet pack", -5.1)
    far = (choice("Sledge", -9),)
    found = match_placebo(Measured("q", "off", (*trait, *base), 1.0, (*close, *far)))
    assert set(found.placebo) == {"Camel", "Sledge"} or set(found.placebo) == {
        "Camel train",
        "Sledge",
    }
    assert found.before is None
    assert found.usable == 3
    few = match_placebo(Measured("q", "off", (*trait, *base), 1.0, close[1:]))
    assert (few.placebo, few.after) == ((), None)


def test_a_match_is_printed_to_be_pasted(
    capsys: pytest.CaptureFixture[str], small_experiment: Path
) -> None:
    lists = small_experiment / "candidates.toml"
    lists.write_text('light = ["With rushlights", "With LED bulbs galore", "By \\"magic\\""]\n')
    assert call("check", small_experiment, "--match") == 0
    printed = capsys.readouterr().out
    line = re.search(r"match light: .* after, per pair\n +(placebo = .*)\n", printed)
    assert line
    assert len(tomllib.loads(line[1])["placebo"]) == 1
    other = small_experiment / "other.toml"
    other.write_text('message = ["By raven", "By herald"]\n')
    assert call("check", small_experiment, "--candidates", other, "--json") == 0
    assert json.loads(capsys.readouterr().out)["matches"][0]["question"] == "message"
    lists.write_text('light = ["With LED bulbs galore"]\n')
    assert call("check", small_experiment, "--match") == 0
    assert "too few candidates" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lists nothing"),
        ("light = [", "broken TOML"),
        ('lihgt = ["x"]', "`lihgt` is no question with choices; known: light, message"),
        ('bird = ["x"]', "`bird` is no question"),
        ("light = [1]", "expected a list of texts"),
        ('light = "x"', "expected a list of texts"),
        ('light = ["x", " "]', "expected a list of texts"),
        ('light = ["x", "x "]', "lists 'x' twice"),
    ],
)
def test_broken_lists_of_candidates_are_named(
    small_experiment: Path, content: str, message: str
) -> None:
    path = small_experiment / "candidates.toml"
    path.write_text(content)
    with pytest.raises(ExperimentError, match=re.escape(message)) as caught:
        read_candidates(path, load_experiment(small_experiment))
    assert str(path) in str(caught.value)


def test_match_without_lists_says_how_to_give_them(
    capsys: pytest.CaptureFixture[str], small_experiment: Path
) -> None:
    assert call("check", small_experiment, "--match") == 2
    assert "--candidates" in capsys.readouterr().err
