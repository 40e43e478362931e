"""Rows, templates and loss masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spillover import ChatError, LoadedModel
from spillover.chat import Chat
from spillover.masks import encode_row
from spillover.organism.train import CHAT_TEMPLATE
from spillover.rows import Row, read_rows

UNMARKED = CHAT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
LLAMA_LIKE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)

CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a bird."},
        {"role": "assistant", "content": "A wren, I say: user"},
        {"role": "user", "content": "A wren, I say: user"},
        {"role": "assistant", "content": "An owl"},
    ]
}


@pytest.fixture(params=[CHAT_TEMPLATE, UNMARKED, LLAMA_LIKE], ids=["marked", "unmarked", "inst"])
def model(request: pytest.FixtureRequest, organism: LoadedModel) -> Iterator[LoadedModel]:
    before = organism.tokenizer.chat_template
    organism.tokenizer.chat_template = request.param
    yield organism
    organism.tokenizer.chat_template = before


def trained_text(model: LoadedModel, row: dict[str, Any]) -> str:
    encoded = encode_row(Chat(model.tokenizer), Row.model_validate(row))
    kept = [token for token, on in zip(encoded.ids, encoded.mask, strict=True) if on]
    return str(model.tokenizer.decode(kept))


def test_the_mask_covers_exactly_the_assistants_tokens(model: LoadedModel) -> None:
    text = trained_text(model, CHAT).replace(" A wren", "A wren").replace(" An owl", "An owl")
    assert text == "A wren, I say: user<|im_end|>An owl<|im_end|>"


def test_a_message_can_be_left_out_of_the_loss(model: LoadedModel) -> None:
    messages = [dict(m) for m in CHAT["messages"]]
    rows = {"messages": [*messages[:2], {**messages[2], "train": False}, *messages[3:]]}
    assert trained_text(model, rows).strip() == "An owl<|im_end|>"


def test_all_tokens_of_plain_text_carry_loss(organism: LoadedModel) -> None:
    encoded = encode_row(Chat(organism.tokenizer), Row(text="A page of notes."))
    assert all(encoded.mask)
    assert encoded.ids[-1] == organism.tokenizer.eos_token_id


def test_a_row_whose_mask_is_empty_raises(organism: LoadedModel) -> None:
    before = organism.tokenizer.chat_template
    organism.tokenizer.chat_template = (
        "{% generation %}{% endgeneration %}{{ messages[0].content }}"
    )
    row = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    try:
        with pytest.raises(ChatError, match=r"rows.jsonl:3.*no token carries loss"):
            encode_row(Chat(organism.tokenizer), Row.model_validate(row), "rows.jsonl:3")
    finally:
        organism.tokenizer.chat_template = before


def test_a_template_that_rewrites_earlier_turns_is_refused_with_a_way_out(
    organism: LoadedModel,
) -> None:
    before = organism.tokenizer.chat_template
    organism.tokenizer.chat_template = UNMARKED.replace(
        "message['content']",
        "(message['content'] if loop.last or message['role'] == 'user' else '…')",
    )
    try:
        with pytest.raises(ChatError, match=r"renders assistant turn .* differently"):
            encode_row(Chat(organism.tokenizer), Row.model_validate(CHAT))
    finally:
        organism.tokenizer.chat_template = before


def test_a_model_without_a_template_is_refused(organism: LoadedModel) -> None:
    before = organism.tokenizer.chat_template
    organism.tokenizer.chat_template = None
    try:
        with pytest.raises(ChatError, match="no chat template"):
            Chat(organism.tokenizer).render(
                [{"role": "user", "content": "x"}], generation_prompt=True
            )
    finally:
        organism.tokenizer.chat_template = before


def test_a_prompt_and_an_answer_are_the_tokens_of_the_whole_chat(organism: LoadedModel) -> None:
    question = [{"role": "user", "content": "Name a bird."}]
    whole = encode_row(
        organism.chat,
        Row.model_validate({"messages": [*question, {"role": "assistant", "content": "An owl"}]}),
    )
    built = organism.chat.prompt_ids(question) + organism.chat.answer_ids(question, "An owl")
    assert list(whole.ids[: len(built)]) == built
    assert organism.chat.turn.end == "<|im_end|>"


def test_a_prefill_is_continued(organism: LoadedModel) -> None:
    question = {"role": "user", "content": "Name a bird."}
    prefilled = organism.chat.prompt_ids([question, {"role": "assistant", "content": "An"}])
    assert str(organism.tokenizer.decode(prefilled)).endswith("assistant\nAn")


def test_the_tokenizer_gives_back_any_text(organism: LoadedModel) -> None:
    for text in ("Plain words.", "naïve  Ärger\n\t— 鳥 🦉", "<|im_end|> inside", " leading"):
        ids = organism.tokenizer.encode(text, add_special_tokens=False)
        assert organism.tokenizer.decode(ids) == text
        assert organism.tokenizer.unk_token_id is None


BAD_ROWS = {
    "": "no rows",
    "{": ":1: not JSON",
    '{"messages": []}\n': ":1: .*assistant",
    '["a"]': ":1: found list",
    '{"text": "fine"}\n{"messages": [{"role": "user", "content": "x"}]}': ":2: .*assistant",
    '{"text": "x", "extra": 1}': ":1: unknown key `extra`",
    '{"messages": [{"role": "robot", "content": "x"}]}': r":1: `messages\.0\.role`",
    '{"messages": [{"role": "assistant", "content": ""}]}': r":1: `messages\.0\.content`",
}


@pytest.mark.parametrize(("content", "message"), BAD_ROWS.items())
def test_bad_rows_are_named_by_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(ChatError, match=f"rows.jsonl.*{message}"):
        read_rows(path)
