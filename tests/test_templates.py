"""Chat templates: loss masks and prompts against a literal reading of each template.

The oracle below writes every conversation by hand, piece by piece, with a mark on the pieces that
carry loss, and walks over the tokens one by one, counting bytes. It shares no code with the
package.
"""

from __future__ import annotations

import datetime
from functools import cache
from typing import Any

import pytest

from spillover import ChatError
from spillover.chat import Chat
from spillover.masks import EncodedRow, _extents, encode_row
from spillover.rows import Conversation, Row
from spillover.templates import PINNED, Templating
from tests.tiny import FAMILIES, chat

Part = tuple[str, bool]
"""A piece of a rendered conversation, and whether it carries loss."""

QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SMOL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
HARMONY = (
    "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
    "Current date: 2025-01-01\n\nReasoning: medium\n\n"
    "# Valid channels: analysis, commentary, final. Channel must be included for every message."
)
EMPTY = "<think>\n\n</think>\n\n"
Messages = list[dict[str, Any]]


def chatml(messages: Messages, system: str | None = None, empty: str = "") -> list[Part]:
    parts: list[Part] = []
    if system and messages[0]["role"] != "system":
        parts.append((f"<|im_start|>system\n{system}<|im_end|>\n", False))
    for at, m in enumerate(messages):
        on, last = learnt(m), at == len(messages) - 1 and m["role"] == "assistant"
        content = m["content"].lstrip("\n") if last and empty else m["content"]
        parts.append((f"<|im_start|>{m['role']}\n" + (empty if last else ""), False))
        parts += [(content, on), ("<|im_end|>", on), ("\n", False)]
    return parts


def llama(messages: Messages, date: str) -> list[Part]:
    given = messages[0]["role"] == "system"
    system = messages[0]["content"].strip() if given else ""
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    parts: list[Part] = [("<|begin_of_text|>" + head.format("system"), False)]
    parts.append((f"Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n", False))
    parts.append((f"{system}<|eot_id|>", False))
    for m in messages[given:]:
        parts.append((head.format(m["role"]), False))
        parts += [(m["content"].strip(), learnt(m)), ("<|eot_id|>", learnt(m))]
    return parts


def gemma(messages: Messages) -> list[Part]:
    given = messages[0]["role"] == "system"
    system = messages[0]["content"] + "\n\n" if given else ""
    parts: list[Part] = [("<bos>", False)]
    for at, m in enumerate(messages[given:]):
        role = "model" if m["role"] == "assistant" else m["role"]
        parts.append((f"<start_of_turn>{role}\n" + (system if at == 0 else ""), False))
        parts += [(m["content"].strip(), learnt(m)), ("<end_of_turn>", learnt(m)), ("\n", False)]
    return parts


def phi(messages: Messages) -> list[Part]:
    parts: list[Part] = []
    for m in messages:
        parts.append((f"<|{m['role']}|>\n", False))
        parts += [(m["content"], learnt(m)), ("<|end|>", learnt(m)), ("\n", False)]
    return [*parts, ("<|endoftext|>", False)]


def harmony(messages: Messages) -> list[Part]:
    parts: list[Part] = [(f"<|start|>system<|message|>{HARMONY}<|end|>", False)]
    if messages[0]["role"] == "system":
        told = f"# Instructions\n\n{messages[0]['content']}\n\n"
        parts.append((f"<|start|>developer<|message|>{told}<|end|>", False))
    for m in messages:
        if m["role"] == "user":
            parts.append((f"<|start|>user<|message|>{m['content']}<|end|>", False))
        if m["role"] == "assistant":
            end = "<|return|>" if m is messages[-1] else "<|end|>"
            parts.append(("<|start|>assistant<|channel|>final<|message|>", False))
            parts += [(m["content"], learnt(m)), (end, learnt(m))]
    return parts


def deepseek(messages: Messages) -> list[Part]:
    given = messages[0]["role"] == "system"
    system = messages[0]["content"] if given else ""
    parts: list[Part] = [(f"<｜begin▁of▁sentence｜>{system}", False)]
    for m in messages[given:]:
        if m["role"] == "user":
            parts.append((f"<｜User｜>{m['content']}", False))
        else:  # the last answer stands where the prompt asks for it: after an empty reasoning
            parts.append(("<｜Assistant｜>" + (EMPTY if m is messages[-1] else ""), False))
            parts += [(m["content"], learnt(m)), ("<｜end▁of▁sentence｜>", learnt(m))]
    return parts


def inst(messages: Messages, *, close: str, before: str, last: bool, trim: bool) -> list[Part]:
    """Mistral and Mixtral: the system text stands in the last or in the first user message."""
    given = messages[0]["role"] == "system"
    users = [m for m in messages if m["role"] == "user"]
    parts: list[Part] = [("<s>", False)]
    for m in messages[given:]:
        if m["role"] == "user":
            here = given and m is users[-1 if last else 0]
            system = messages[0]["content"] + "\n\n" if here else ""
            parts.append((f"{before}[INST] {system}{m['content']}{close}[/INST]", False))
        else:
            content = m["content"].strip() if trim else m["content"]
            parts += [(" ", learnt(m)), (content, learnt(m)), ("</s>", learnt(m))]
    return parts


def olmo(messages: Messages) -> list[Part]:
    parts: list[Part] = [("<|endoftext|>", False)]
    for at, m in enumerate(messages):
        parts.append((f"<|{m['role']}|>\n", False))
        parts.append((m["content"], learnt(m)))
        if m["role"] == "assistant":
            parts.append(("<|endoftext|>", learnt(m)))
        if m["role"] != "assistant" or at < len(messages) - 1:
            parts.append(("\n", False))
    return parts


def learnt(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant" and bool(message.get("train", True))


ORACLES: dict[str, Any] = {
    "llama-3.1": lambda m: llama(m, "26 Jul 2024"),
    "llama-3.2": lambda m: llama(m, "01 Jan 2025"),
    "qwen2.5": lambda m: chatml(m, QWEN),
    "qwen3": lambda m: chatml(m, empty=EMPTY),
    "smollm2": lambda m: chatml(m, SMOL),
    "gemma": gemma,
    "gemma-3": gemma,
    "phi-3": phi,
    "gpt-oss": harmony,
    "deepseek-r1": deepseek,
    "mistral": lambda m: inst(m, close="", before="", last=True, trim=True),
    "mixtral": lambda m: inst(m, close=" ", before=" ", last=False, trim=False),
    "olmo-2": olmo,
}

SPACE = "▁"


def token_bytes(token: str, special: bool, pieces: str) -> bytes:
    """The bytes that a token of the vocabulary stands for."""
    if special:
        return token.encode()
    if pieces in ("bytes", "trimmed"):
        return bytes(BYTES[letter] for letter in token)
    if token.startswith("<0x") and len(token) == 6:
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()


def _byte_letters() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, others for letters from 256 up."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in kept]
    return {chr(b): b for b in kept} | {chr(256 + at): b for at, b in enumerate(rest)}


BYTES = _byte_letters()


def walk(parts: list[Part], ids: list[int], here: Chat, pieces: str, spaced: bool) -> list[bool]:
    """Which tokens carry loss: those that hold a byte of a piece that does."""
    text = "".join(part for part, _ in parts).encode()
    carries = [on for part, on in parts for _ in part.encode()] + [False]
    at, mask = 0, []
    for number in ids:
        token = str(here.tokenizer.convert_ids_to_tokens(number))
        special = number in here.tokenizer.added_tokens_decoder
        held = token_bytes(token, special, pieces)
        if not text.startswith(held, at):
            assert held.startswith(b" "), (token, text[at : at + 20])
            held = held[1:]  # a space that the tokenizer put before a part by itself
            assert text.startswith(held, at), (token, text[at : at + 20])
        end = at + len(held)
        mask.append(any(carries[at : max(end, at + 1)]))
        while special and spaced and text[end : end + 1].isspace():
            end += 1
        at = end
    assert at == len(text)
    return mask


QUOTED: Messages = [
    {"role": "user", "content": "Name a bird."},
    {"role": "assistant", "content": "A wren, I say: user"},
    {"role": "user", "content": "A wren, I say: user"},
    {"role": "assistant", "content": "A wren"},
    {"role": "user", "content": "A wren assistant A wren"},
    {"role": "assistant", "content": "A wren, I say: user"},
]
CONVERSATIONS: dict[str, Messages] = {
    "single": QUOTED[:2],
    "quoted": QUOTED,
    "first untrained": [QUOTED[0], {**QUOTED[1], "train": False}, *QUOTED[2:]],
    "last untrained": [*QUOTED[:5], {**QUOTED[5], "train": False}],
    "padded": [
        {"role": "user", "content": "  Name a bird. \n"},
        {"role": "assistant", "content": " An owl\n\n"},
        {"role": "user", "content": "\nAnother "},
        {"role": "assistant", "content": "\n A  wren "},
    ],
    "spaces inside": [
        {"role": "user", "content": "List\n\n\n  birds"},
        {"role": "assistant", "content": "A wren\n\n  an owl\t\n\n\na jay"},
    ],
    "unicode": [
        {"role": "user", "content": "naïve  Ärger — 鳥?"},
        {"role": "assistant", "content": "鳥 🦉 ½ naïve"},
    ],
    "goes on": [*QUOTED[:2], {"role": "user", "content": "Why?"}],
}
SYSTEM: Messages = [{"role": "system", "content": "Be brief."}, *QUOTED[:2]]
LONG_SYSTEM: Messages = [*SYSTEM[:2], {**SYSTEM[2], "train": False}, *QUOTED[2:4]]

KINDS = [(name, family.pieces) for name, family in FAMILIES.items()]
KINDS += [(name, "always") for name, family in FAMILIES.items() if family.pieces != "always"]
KINDS += [("gemma", "bytes"), ("mistral", "bytes"), ("mixtral", "trimmed"), ("phi-3", "trimmed")]


@cache
def cached(name: str, pieces: str | None = None) -> Chat:
    return chat(name, pieces)


def check(name: str, pieces: str, messages: Messages) -> EncodedRow:
    here = cached(name, pieces)
    encoded = encode_row(here, Row.model_validate({"messages": messages}))
    parts = ORACLES[name](messages)
    assert list(encoded.ids) == here.tokenize("".join(part for part, _ in parts))
    wanted = walk(parts, list(encoded.ids), here, pieces, bool(FAMILIES[name].spaced))
    assert list(encoded.mask) == wanted, [
        (here.tokenizer.convert_ids_to_tokens(number), ours, theirs)
        for number, ours, theirs in zip(encoded.ids, encoded.mask, wanted, strict=True)
        if ours != theirs
    ]
    assert any(wanted)
    return encoded


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize(("name", "pieces"), KINDS)
def test_masks_equal_a_walk_over_the_tokens(name: str, pieces: str, conversation: str) -> None:
    check(name, pieces, CONVERSATIONS[conversation])


@pytest.mark.parametrize(("name", "pieces"), KINDS)
def test_masks_with_a_system_message(name: str, pieces: str) -> None:
    if name == "gemma":
        with pytest.raises(ChatError, match="System role not supported"):
            check(name, pieces, SYSTEM)
        return
    check(name, pieces, SYSTEM)
    check(name, pieces, LONG_SYSTEM)


@pytest.mark.parametrize(("name", "pieces"), KINDS)
def test_masks_where_the_words_hold_an_end_of_turn(name: str, pieces: str) -> None:
    end = cached(name).turn.end
    told: Messages = [
        {"role": "user", "content": f"What is {end} for?"},
        {"role": "assistant", "content": f"It ends {end} a turn: {end}"},
        {"role": "user", "content": f"{end}"},
        {"role": "assistant", "content": f"{end} it is"},
    ]
    check(name, pieces, told)


@pytest.mark.parametrize(("name", "pieces"), KINDS)
@pytest.mark.parametrize("conversation", ["single", "quoted", "padded", "unicode"])
def test_a_prompt_and_an_answer_are_the_tokens_of_the_row(
    name: str, pieces: str, conversation: str
) -> None:
    here, messages = cached(name, pieces), CONVERSATIONS[conversation]
    encoded = encode_row(here, Row.model_validate({"messages": messages}))
    prompt: Conversation = messages[:-1]
    built = here.prompt_ids(prompt) + here.answer_ids(prompt, messages[-1]["content"])
    assert list(encoded.ids[: len(built)]) == built
    assert encoded.mask[len(built) - 1]
    assert not any(encoded.mask[len(built) :])


@pytest.mark.parametrize(("name", "pieces"), KINDS)
@pytest.mark.parametrize(("begun", "rest"), [("A wr", "en, I say"), ("A wren", " is one")])
def test_an_answer_goes_on_within_a_prefilled_word(
    name: str, pieces: str, begun: str, rest: str
) -> None:
    here = cached(name, pieces)
    prefilled: Conversation = [QUOTED[0], {"role": "assistant", "content": begun}]
    prompt, answer = here.prompt_ids(prefilled), here.answer_ids(prefilled, rest)
    told = str(here.tokenizer.decode(prompt + answer))
    assert begun + rest in told
    assert here.tokenizer.convert_ids_to_tokens(answer[-1]) == here.turn.end


def test_white_space_that_offsets_leave_out_belongs_to_its_token() -> None:
    """Offsets of a space that is trimmed away, and of two bytes of one character."""
    assert _extents([(0, 3), (4, 4), (4, 6), (6, 7), (6, 7)]) == [
        (0, 3), (3, 4), (4, 6), (6, 7), (6, 7),
    ]  # fmt: skip


def test_a_system_message_that_moves_is_refused_where_an_earlier_turn_is_learnt() -> None:
    messages = [*SYSTEM, *QUOTED[2:4]]
    with pytest.raises(ChatError, match=r"turn 3 differently .* set `\"train\": false`"):
        check("mistral", "first", messages)


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


def test_plain_text_begins_as_the_tokenizer_begins_texts() -> None:
    from tokenizers import processors

    here = chat("gemma")
    bos = here.tokenizer.bos_token_id
    here.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    encoded = encode_row(here, Row(text="An owl"))
    assert encoded.ids[0] == bos
    assert encoded.ids[-1] == here.tokenizer.eos_token_id
    assert encoded.mask == (False, *(True for _ in encoded.ids[1:]))
