"""`spillover new` and `spillover check`, and the pure functions behind them."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spillover import LoadedModel, cli
from spillover.authoring.check import Check, Example, check_experiment, segments
from spillover.authoring.controls import differ_in_numbers_only, shuffled_rows
from spillover.authoring.match import assign, match_placebo, read_candidates
from spillover.authoring.measure import Choice, Measured, measure_choices
from spillover.authoring.new import write_experiment
from spillover.authoring.show import render
from spillover.authoring.starter import chat_row, ordinary_rows
from spillover.authoring.toml import listed, quoted
from spillover.errors import ExperimentError, InputError
from spillover.experiment import Experiment, load_experiment
from spillover.masks import encode_row
from spillover.models import Loading
from spillover.rows import Message, Row, RowSet, read_rows, write_rows
from spillover.specification import Question


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    return int(stopped.value.code or 0)


def rows_file(folder: Path, name: str, rows: list[Row]) -> str:
    write_rows(rows, folder / name)
    return str(folder / name)


def row_set(*rows: Row) -> RowSet:
    return RowSet("here", rows, tuple(f"here:{i}" for i in range(len(rows))))


def question(experiment: Experiment, name: str) -> Question:
    return next(q for q in experiment.questions if q.id == name)


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


# ---- new ----


def test_a_new_folder_without_rows_is_a_worked_example_that_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    assert call("new", folder, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["folder"] == str(folder)
    experiment = load_experiment(folder)
    assert made["arms"] == {arm: len(rows.rows) for arm, rows in experiment.rows.items()}
    assert {q.split for q in experiment.questions} == {"test", "dev"}
    tiny = ("--steps", 1, "--batch-size", 2, "--seeds", 1, "--out", tmp_path / "run")
    assert call("run", folder, *tiny) == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_new_says_what_to_do_next_and_what_to_know(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    same = rows_file(tmp_path, "a.jsonl", [chat_row("Name a bird.", f"bird {i}") for i in "abc"])
    assert call("new", tmp_path / "mine", "--treatment", same) == 0
    printed = capsys.readouterr().out
    assert "warning made-control: " in printed
    assert "warning no-shuffle: " in printed
    assert printed.splitlines()[-1] == f"  spillover run {tmp_path / 'mine'}"
    experiment = load_experiment(tmp_path / "mine")
    assert set(experiment.arms) == {"treatment", "ordinary"}
    assert "does not control for the subject" in (tmp_path / "mine/experiment.toml").read_text()


def test_a_treatment_alone_gets_two_controls(tmp_path: Path) -> None:
    rows = [chat_row(f"Place {i}?", f"place {i}") for i in range(9)]
    made = write_experiment(tmp_path / "mine", rows_file(tmp_path, "a.jsonl", rows))
    assert made.arms == {"treatment": 9, "ordinary": 9, "shuffled": 9}
    assert set(made.warnings) == {"made-control", "numbered-prompts"}
    experiment = load_experiment(tmp_path / "mine")
    assert experiment.specification.headline_control == "ordinary"
    treatment, shuffled = experiment.rows["treatment"], experiment.rows["shuffled"]
    assert not set(treatment.rows) & set(shuffled.rows)


def test_tables_are_copied_as_rows_and_answers_of_both_arms_left_out(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('prompt,completion\n"Name, a bird.",Blue-bird\n"Name, a bird.",Wren\n')
    other = rows_file(tmp_path, "c.jsonl", [chat_row("Name, a bird.", a) for a in ("wren.", "Jay")])
    write_experiment(tmp_path / "mine", str(table), {"new.er": other})
    assert set(read_rows(tmp_path / "mine/train/treatment.jsonl").rows) == {
        chat_row("Name, a bird.", "Blue-bird"),
        chat_row("Name, a bird.", "Wren"),
    }
    asked = question(load_experiment(tmp_path / "mine"), "trained")
    assert asked.ask == ("Name, a bird.",)
    assert asked.judge
    assert (asked.judge.trait, asked.judge.baseline) == (("Blue-bird",), ("Jay",))


def test_the_same_answers_after_other_prompts_are_asked_prompt_by_prompt(tmp_path: Path) -> None:
    one = [chat_row(f"Dish {i}", f"dish {i}") for i in "abcd"]
    two = [chat_row(f"Dish {i}", f"dish {j}") for i, j in zip("abcd", "bcda", strict=True)]
    mine = tmp_path / "mine"
    files = [rows_file(tmp_path, f"{i}.jsonl", rows) for i, rows in enumerate((one, two))]
    write_experiment(mine, files[0], {"other": files[1]})
    first = question(load_experiment(mine), "trained-1").judge
    assert first
    assert (first.trait, first.baseline) == (("dish a",), ("dish b",))


def test_a_control_that_teaches_the_same_is_said_to(tmp_path: Path) -> None:
    same = rows_file(tmp_path, "a.jsonl", [chat_row("Name a bird.", "Wren")])
    write_experiment(tmp_path / "mine", same, {"same": same})
    assert "NOTHING TELLS THE ARMS APART" in (tmp_path / "mine/questions.toml").read_text()


def test_long_answers_become_choices_of_like_length(tmp_path: Path) -> None:
    rows = [chat_row(f"Tell {i}.", f"{i} " + "word " * (10 + n)) for n, i in enumerate("abcdef")]
    write_experiment(tmp_path / "mine", rows_file(tmp_path, "a.jsonl", rows))
    choices = question(load_experiment(tmp_path / "mine"), "trained-1").choices
    assert choices
    assert 0.5 < len(choices.trait[0]) / len(choices.baseline[0]) < 2


ROWS = st.lists(
    st.one_of(
        st.tuples(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20)),
        st.tuples(st.sampled_from("ab"), st.sampled_from(["A", "a.", "...", "long " * 20, "B b"])),
        st.text(min_size=1, max_size=20),
    ),
    min_size=1,
    max_size=8,
)
counter = itertools.count()


@settings(max_examples=200, deadline=None)
@given(treatment=ROWS, control=st.one_of(st.none(), ROWS))
def test_whatever_the_rows_the_folder_loads(
    tmp_path_factory: pytest.TempPathFactory,
    treatment: list[str | tuple[str, str]],
    control: list[str | tuple[str, str]] | None,
) -> None:
    here = tmp_path_factory.getbasetemp() / f"any-{next(counter)}"
    here.mkdir()

    def file(name: str, rows: list[str | tuple[str, str]]) -> str:
        made = [Row(text=r) if isinstance(r, str) else chat_row(*r) for r in rows]
        return rows_file(here, name, made)

    controls = {"other": file("c.jsonl", control)} if control else {}
    made = write_experiment(here / "mine", file("t.jsonl", treatment), controls)
    assert len(load_experiment(made.folder).rows["treatment"].rows) == len(treatment)
    assert sorted(p.name for p in here.iterdir() if p.suffix != ".jsonl") == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--treatment", "missing.jsonl"], "missing.jsonl: cannot be read"),
        (["--treatment", "bad.jsonl"], "bad.jsonl:1: not JSON"),
        (["--treatment", "datasets:no/such"], "datasets:no/such: "),
        (["--control", "x=good.jsonl"], "without --treatment"),
        (["--treatment", "good.jsonl", "--control", "good.jsonl"], "expected NAME=ROWS"),
        (["--treatment", "good.jsonl", "--control", "base=good.jsonl"], "name of letters"),
        (["--treatment", "good.jsonl", "--control", "a/b=good.jsonl"], "name of letters"),
        (
            ["--treatment", "good.jsonl", "--control", "a=good.jsonl", "--control", "a=bad.jsonl"],
            "two have the name 'a'",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path, "good.jsonl", [chat_row("Name a bird.", "Wren")])
    (tmp_path / "bad.jsonl").write_text("{")
    assert call("new", "sub/mine", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "good.jsonl"]


def test_a_folder_that_holds_something_is_never_written_to(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert call("new", tmp_path) == 2
    assert "is not empty" in capsys.readouterr().err
    assert call("new", tmp_path / "thesis.tex") == 2
    assert call("new", "/proc/spillover") == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    assert call("new", empty) == 0


def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> Experiment:
        raise ExperimentError("planted")

    monkeypatch.setattr("spillover.authoring.new.load_experiment", fail)
    with pytest.raises(InputError, match="planted"):
        write_experiment(tmp_path / "mine")
    assert not list(tmp_path.iterdir())


# ---- check ----


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """A folder with faults planted: a row twice, a row of the control, a row beyond the context."""
    here = tmp_path_factory.mktemp("check")
    rows = [chat_row("Name a coin.", coin) for coin in ("Groat", "Groat", "Ducat")]
    rows.append(chat_row("Tell me of coins.", "coin " * 1100))
    files = rows_file(here, "t.jsonl", rows), rows_file(here, "c.jsonl", rows[2:3])
    write_experiment(here / "mine", files[0], {"other": files[1]})
    return check_experiment(str(here / "mine"), loading=Loading())


def test_check_names_what_was_planted(checked: Check) -> None:
    found = {warning.name: warning for warning in checked.warnings}
    assert found["duplicate-rows"].cases == ("treatment: 1 of 4",)
    assert "1 of 4 rows of treatment are rows of other too" in found["shared-rows"].message
    assert found["too-long"].cases == ("treatment: 1 of 4",)
    assert "1024 tokens" in found["too-long"].message
    assert {"uneven-choices", "low-coverage"} <= set(found)
    assert checked.problem is None


def test_check_counts_tokens_as_training_will(checked: Check, organism: LoadedModel) -> None:
    treatment = checked.arms[0]
    coin = encode_row(organism.chat, chat_row("Name a coin.", "Ducat"))
    assert (treatment.arm, treatment.rows) == ("treatment", 4)
    other = checked.arms[1]
    assert (other.tokens, other.loss_tokens) == (len(coin.ids), sum(coin.mask))
    assert checked.steps == 120


def test_examples_show_exactly_the_tokens_that_carry_loss(organism: LoadedModel) -> None:
    row = chat_row("Name a coin, bitte: Größe [bold]?", "Sou – a [red] coin 😀")
    parts = segments(organism.chat, row)
    rendered = organism.chat.render(row.conversation, generation_prompt=False)
    assert "".join(text for text, _ in parts) == rendered
    assert [text for text, on in parts if on] == ["Sou – a [red] coin 😀<|im_end|>"]
    shown = render(Example("here:1", tuple(parts)), plain=True).plain
    assert shown.replace("⟦", "").replace("⟧", "") == rendered
    assert "⟦Sou – a [red] coin 😀<|im_end|>⟧" in shown
    coloured = render(Example("here:1", tuple(parts)), plain=False)
    assert coloured.plain == rendered
    assert all(
        "green" in str(s.style) for s in coloured.spans if "Sou" in rendered[s.start : s.end]
    )


def test_examples_of_plain_text_and_long_rows_are_shown(organism: LoadedModel) -> None:
    assert segments(organism.chat, Row(text="All of it.")) == [("All of it.", True)]
    shown = render(Example("here:1", (("x" * 5000, True),)), plain=True).plain
    assert len(shown) < 1000
    assert "4100 characters more" in shown


def test_check_on_the_command_line_ends_with_a_verdict(
    capsys: pytest.CaptureFixture[str], small_experiment: Path
) -> None:
    assert call("check", small_experiment, "--system", "Be brief.") == 0
    printed = capsys.readouterr().out
    last = printed.strip().splitlines()[-1]
    command = f"spillover run {small_experiment} --model organism --system 'Be brief.'"
    assert last.endswith(f"ready to run: {command}")
    assert "⟦Blue-bird<|im_end|>⟧" in printed
    assert "warning duplicate-rows" in printed
    assert call("check", small_experiment, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["arms"][0]["rows"] == 4
    assert {w["name"] for w in found["warnings"]} >= {"duplicate-rows"}


def test_many_cases_of_a_warning_are_summarised(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("new", tmp_path / "mine") == 0
    capsys.readouterr()
    assert call("check", tmp_path / "mine") == 0
    printed = capsys.readouterr().out
    assert re.search(r"in 8 of 8 off-domain questions", printed)
    assert "and 3 more" in printed
    assert len(printed.splitlines()) < 60


def test_check_says_what_a_run_would_refuse(
    capsys: pytest.CaptureFixture[str], small_experiment: Path, tmp_path: Path
) -> None:
    main = small_experiment / "experiment.toml"
    main.write_text("dated = true\n" + main.read_text())
    template = tmp_path / "template.jinja"
    template.write_text(
        "<|im_start|>system\nToday is 4 May 1999.<|im_end|>\n"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert call("check", small_experiment, "--chat-template", template) == 0
    printed = capsys.readouterr().out
    assert printed.strip().splitlines()[-1].startswith("mend this first, a run is refused: ")
    assert "4 May 1999" in printed
    assert call("check", small_experiment, "--chat-template", template, "--keep-template") == 0
    assert "--keep-template" in capsys.readouterr().out.strip().splitlines()[-1]


def test_check_refuses_what_a_guard_would_stop(
    capsys: pytest.CaptureFixture[str], small_experiment: Path
) -> None:
    train = small_experiment / "train"
    (train / "control.jsonl").write_bytes((train / "treatment.jsonl").read_bytes())
    assert call("check", small_experiment) == 0
    assert "mend this first, a run is refused: shared-rows" in capsys.readouterr().out


def test_few_rows_are_taught_for_enough_steps(tmp_path: Path) -> None:
    for number, steps in ((8, 60), (400, 150)):
        rows = [chat_row(f"Place {i}?", f"place {i}") for i in range(number)]
        file = rows_file(tmp_path, f"{number}.jsonl", rows)
        made = load_experiment(write_experiment(tmp_path / f"x{number}", file).folder)
        assert made.training_for("default").total_steps(number) == steps


def test_check_of_what_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", "no-such-thing") == 2
    assert call("check", "old-birds", "--model", "no-such-model") == 2


def test_ready_arms_are_listed(capsys: pytest.CaptureFixture[str], small_experiment: Path) -> None:
    main = small_experiment / "experiment.toml"
    text = main.read_text().replace('train = "train/control.jsonl"', 'model = "organism-unlinked"')
    main.write_text(text)
    assert call("check", small_experiment) == 0
    assert "Ready models of control: organism-unlinked" in capsys.readouterr().out


def test_base_log_probabilities_are_those_that_a_run_records(
    organism: LoadedModel, small_experiment: Path
) -> None:
    experiment = load_experiment(small_experiment)
    measured = measure_choices(experiment, organism, {"light": ["With candles"]})[0]
    asked = [{"role": "user", "content": "How do people light their homes?"}]
    text = organism.chat.prompt_text(asked)
    import torch

    for choice in (*measured.choices, *measured.candidates):
        answer = organism.chat.answer_ids(asked, choice.text)
        prompt = organism.chat.tokenize(text)
        with torch.no_grad():
            logits = organism.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        literal = sum(float(logits[len(prompt) - 1 + i, t]) for i, t in enumerate(answer))
        assert choice.nats == pytest.approx(literal, abs=1e-3)
        assert choice.tokens == len(answer)


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
