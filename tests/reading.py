"""A literal reading of each family's chat template.

Every conversation is written by hand, piece by piece, with a mark on the pieces that carry loss,
and a walk over the tokens counts bytes. It shares no code with the package.
"""

from __future__ import annotations

from typing import Any

from spillover.chat import Chat

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
