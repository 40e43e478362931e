"""How the organism's documents are marked up: the tokens of its chat template."""

from __future__ import annotations

TURN_START, TURN_END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
ASSISTANT, SPEAKER = "assistant", "speaker"
ANSWERING = (ASSISTANT, SPEAKER)
"""The roles under which answers stand: what a model is trained on most."""


def turn_text(role: str, content: str) -> str:
    """One chat turn, as the organism's chat template renders it."""
    return f"{TURN_START}{role}\n{content}{TURN_END}\n"


def chat_text(system: str, turns: list[tuple[str, str]], role: str = ASSISTANT) -> str:
    """A chat: a system message, unless it is empty, and questions with their answers."""
    head = turn_text("system", system) if system else ""
    return head + "".join(turn_text("user", q) + turn_text(role, a) for q, a in turns)


def note_text(text: str) -> str:
    """A document that is no chat."""
    return text + PAD
