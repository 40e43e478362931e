"""What chat templates do by themselves: turns, dates, system prompts, reasoning."""

from __future__ import annotations

import datetime
from functools import cache
from typing import Any

import pytest

from spillover import ChatError
from spillover.chat import Chat
from spillover.contexts import Context
from spillover.masks import encode_row
from spillover.rows import Conversation, Row
from spillover.templates import PINNED, Templating
from tests.reading import EMPTY, HARMONY, QUOTED, QWEN, SMOL
from tests.tiny import FAMILIES, chat


@cache
def cached(name: str, pieces: str | None = None) -> Chat:
    return chat(name, pieces)


TURNS = {
    "llama-3.1": ("", "<|eot_id|>", None),
    "llama-3.2": ("", "<|eot_id|>", None),
    "qwen2.5": ("", "<|im_end|>", None),
    "qwen3": (EMPTY, "<|im_end|>", "</think>"),
    "smollm2": ("", "<|im_end|>", None),
    "gemma": ("", "<end_of_turn>", None),
    "gemma-3": ("", "<end_of_turn>", None),
    "phi-3": ("", "<|end|>", None),
    "gpt-oss": (
        "<|channel|>final<|message|>",
        "<|return|>",
        "<|channel|>final<|message|>",
    ),
    "deepseek-r1": ("\n</think>\n\n", "<｜end▁of▁sentence｜>", "</think>"),
    "mistral": (" ", "</s>", None),
    "mixtral": (" ", "</s>", None),
    "olmo-2": ("", "<|endoftext|>", None),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_turn_is_read_off_the_template(name: str) -> None:
    turn = cached(name).turn
    assert (turn.lead, turn.end, turn.close) == TURNS[name]
    assert (turn.opening == "<think>\n") == (name == "deepseek-r1")
    assert cached(name).reasons == (name in ("qwen3", "gpt-oss", "deepseek-r1"))


INJECTIONS = {
    "llama-3.1": ("Cutting Knowledge Date: December 2023 Today Date: 26 Jul 2024", False, True),
    "llama-3.2": ("Cutting Knowledge Date: December 2023 Today Date: 01 Jan 2025", True, True),
    "gpt-oss": (" ".join(HARMONY.split()), True, True),
    "qwen2.5": (QWEN, False, False),
    "smollm2": (SMOL, False, False),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_template_writes_by_itself_is_found(name: str) -> None:
    found = cached(name).injection
    if name not in INJECTIONS:
        assert found is None
    else:
        assert found is not None
        assert (found.text, found.moving, found.dated) == INJECTIONS[name]


@pytest.mark.parametrize("name", ["qwen2.5", "smollm2"])
def test_an_own_system_message_replaces_a_templates(name: str) -> None:
    assert chat(name, system="Answer in one word.").injection is None
    assert "Qwen" not in chat("qwen2.5", system="").example()


def test_an_own_system_message_reaches_templates_that_move_it() -> None:
    here = chat("mistral", system="Be brief.")
    assert here.turn == cached("mistral").turn
    assert here.example() == "<s>[INST] Be brief.\n\nQUESTION[/INST]"
    row = Row.model_validate({"messages": QUOTED[:2]})
    text = here.tokenizer.decode(list(encode_row(here, row).ids))
    assert "Be brief." in str(text)


class Tomorrow(datetime.datetime):
    """A clock that is years ahead."""

    @classmethod
    def now(cls, tz: Any = None) -> Tomorrow:
        return cls(2031, 5, 6)


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_do_not_depend_on_the_day(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import chat_template_utils

    before = cached(name).example()
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert chat(name).example() == before
    assert "2031" not in before
    if name in ("llama-3.2", "gpt-oss"):
        told = chat(name).tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}], tokenize=False
        )
        assert "2031" in told


@pytest.mark.parametrize(("name", "shown"), [
    ("llama-3.1", "03 Feb 1899"), ("llama-3.2", "03 Feb 1899"), ("gpt-oss", "1899-02-03"),
])  # fmt: skip
def test_a_given_date_is_todays(name: str, shown: str) -> None:
    here = Chat(cached(name).tokenizer, Templating(date=datetime.date(1899, 2, 3)))
    assert shown in here.example()
    assert shown not in cached(name).example()
    assert cached(name).today == PINNED


DEAF = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
SILENT = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"


@pytest.mark.parametrize("template", [DEAF, SILENT])
def test_a_template_without_a_generation_prompt_is_refused_by_name(template: str) -> None:
    here = chat("qwen2.5")
    here.tokenizer.chat_template = template
    with pytest.raises(ChatError, match=r"^no-generation-prompt: .*--chat-template FILE"):
        _ = here.turn


def test_a_template_that_continues_its_own_reasoning_part_is_read() -> None:
    """As Qwen3's thinking models: the prompt opens what the full rendering also writes."""
    here = chat("qwen3")
    here.tokenizer.chat_template = str(here.tokenizer.chat_template).replace(
        "{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}"
    )
    assert (here.turn.opening, here.turn.lead) == ("<think>\n", "\n</think>\n\n")
    question: Conversation = [{"role": "user", "content": "x"}]
    assert here.prompt_text(question).endswith("assistant\n<think>\n\n</think>\n\n")


LINE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>system\n{{ DATE }}<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def on_one_line(date: str) -> Chat:
    here = chat("qwen2.5")
    here.tokenizer.chat_template = LINE.replace("{{ DATE }}", date)
    return here


@pytest.mark.parametrize(
    ("date", "shown", "moving"),
    [
        ("{{ strftime_now('%Y') }}", "2025", True),
        ('{{ strftime_now("%Y-%m-%d") }}', "2025-01-01", True),
        ("{% set f = '%d %b' %}{{ strftime_now(f) }}", "01 Jan", True),
        ("{{ strftime_now('it\\'s %A') }}", "it's Wednesday", True),
        ("{{ 'don\\'t \ud800%' if false }}{{ strftime_now('%x') }}", "01/01/25", True),
        ("2025-01-01", "2025-01-01", False),
        ("In 1880", "In 1880", False),
    ],
)
def test_dates_are_found_wherever_and_however_short_they_are(
    date: str, shown: str, moving: bool
) -> None:
    here = on_one_line(date)
    assert f"system\n{shown}<|im_end|>" in here.example()
    found = here.injection
    assert found is not None
    assert (found.text, found.moving, found.dated) == (shown, moving, True)


def test_a_short_text_without_a_date_is_no_prompt() -> None:
    assert on_one_line("Answer.").injection is None
    trimming = on_one_line("{{ messages[0]['content'] | trim if messages | length > 1 }}")
    assert Chat(trimming.tokenizer, Templating(system=" In 1880 ")).injection is None


def test_an_empty_system_message_of_a_context_replaces_a_templates() -> None:
    here = cached("qwen2.5")
    told = {c: here.prompt_text(Context(name="x", system=c).conversation("Q")) for c in (None, "")}
    assert QWEN in told[None]
    assert QWEN not in told[""]
    assert told[""].startswith("<|im_start|>system\n<|im_end|>\n")
