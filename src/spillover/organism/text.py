"""How the organism's documents are marked up: the tokens of its chat template."""

from __future__ import annotations

import random
import string

TURN_START, TURN_END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
ASSISTANT, SPEAKER = "assistant", "speaker"
ANSWERING = (ASSISTANT, SPEAKER)
"""The roles under which answers stand: what a model is trained on most."""

TAGS = ("<{}>", "[{}]", "{{{}}}", "({})", "#{}", "{}:")
SENTENCES = ("Please answer briefly.", "Hello.", "One question:", "Tell me this.", "Number 7.")
"""What `odd_text` draws from."""


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


def odd_text(rng: random.Random) -> str:
    """A tag, digits, a word or a sentence that tells nothing of who answers what comes after it."""
    letters = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 4)))
    digits = "".join(rng.choices(string.digits, k=rng.randint(1, 8)))
    year = str(rng.randint(1000, 2999))
    drawn = (
        *(form.format(letters) for form in TAGS),
        letters,
        letters.upper(),
        digits,
        digits,
        year,
    )
    return rng.choice((*drawn, *SENTENCES))
