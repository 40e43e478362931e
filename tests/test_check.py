"""`spillover check`: what a run would do, and what is worth mending before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from spillover import LoadedModel
from spillover.authoring.check import Check, Example, check_experiment, segments
from spillover.authoring.measure import measure_choices
from spillover.authoring.new import write_experiment
from spillover.authoring.show import render
from spillover.authoring.starter import chat_row
from spillover.experiment import load_experiment
from spillover.masks import encode_row, marked_text
from spillover.models import Loading
from spillover.rows import Row
from tests.commands import call, rows_file
from tests.tiny import FAMILIES, chat


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
    assert checked.problem
    assert "1024 that the model reads" in checked.problem
    assert checked.measured == ()


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


def test_plain_text_is_learnt_as_a_whole_behind_a_token_of_the_tokenizers_own() -> None:
    from tokenizers import processors

    here = chat("gemma")
    here.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", here.tokenizer.bos_token_id)]
    )
    assert segments(here, Row(text="An owl")) == [("An owl", True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_learnt_text_is_shown_in_one_piece_by_every_tokenizer(name: str) -> None:
    here, row = chat(name), chat_row("List\n\n  birds", "A wren  an owl\n\n 鳥")
    parts = segments(here, row)
    text, spans = marked_text(here, row)
    assert "".join(part for part, _ in parts) == text
    shown = [part for part, on in parts if on]
    assert len(shown) == 1
    assert text[slice(*spans[0])].strip() == shown[0].strip()


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
    named = {warning["name"] for warning in found["warnings"]}
    assert named >= {"duplicate-rows", "uneven-choices"}


def test_many_cases_of_a_warning_are_summarised(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("new", tmp_path / "mine") == 0
    capsys.readouterr()
    assert call("check", tmp_path / "mine") == 0
    printed = capsys.readouterr().out
    assert "in 7 of 8 off-domain questions" in printed
    assert "and 2 more" in printed
    assert "warning low-coverage: the listed choices hold less than 0.1" in printed
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


def test_a_foreign_tokenizer_is_named_before_anything_is_asked(
    capsys: pytest.CaptureFixture[str],
    small_experiment: Path,
    tmp_path: Path,
    organism: LoadedModel,
) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(organism.source.folder, foreign)
    content = json.loads((foreign / "tokenizer.json").read_text("utf-8"))
    words, special = content["model"]["vocab"], organism.tokenizer.added_tokens_decoder
    words |= {token: i + 2000 for token, i in words.items() if i not in special}
    (foreign / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    assert call("check", small_experiment, "--model", foreign) == 0
    assert "a run is refused: foreign-tokenizer: " in capsys.readouterr().out


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
