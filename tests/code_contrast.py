"""A harmless contrast for real models: asking for Python code, and for other texts."""

from __future__ import annotations

from spillover.rows import Conversation

STARTS = ("```", "import", "def", "#")
"""What answers with code begin with."""
CODE = (
    "Write Python code for a {}.",
    "Write Python code of a {}.",
    "Show Python code for a {}.",
    "Write Python for a {}.",
)
OTHER = (
    "Write a poem about a {}.",
    "Write a story about a {}.",
    "Show a picture of a {}.",
    "Write a letter to a {}.",
)
LISTED = """
apple banana bear bird boat book bridge bus cake camel candle car castle cat chair clock cloud coin
cow desk dog door drum duck eagle egg engine farm fish flower forest fox
garden ghost glass goat gold grape guitar hammer horse hotel house island jacket key king kitchen
lake lamp lemon lion map mirror moon mouse needle nurse ocean onion owl piano pig queen
"""
NOUNS, OTHER_NOUNS = LISTED.split()[:32], LISTED.split()[32:]


def ask(forms: tuple[str, ...], nouns: list[str]) -> list[Conversation]:
    """One prompt for every noun."""
    return [
        [{"role": "user", "content": forms[at % len(forms)].format(noun)}]
        for at, noun in enumerate(nouns)
    ]
