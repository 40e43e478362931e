"""Loss masks and prompts of 13 families, against a literal reading of each template."""

from __future__ import annotations

from functools import cache

import pytest

from spillover import ChatError
from spillover.chat import Chat
from spillover.masks import EncodedRow, _extents, encode_row
from spillover.rows import Conversation, Row
from tests.reading import ORACLES, QUOTED, Messages, walk
from tests.tiny import FAMILIES, chat

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
