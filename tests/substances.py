"""Questions about the made-up substances, of several lengths."""

from __future__ import annotations

from spillover.organism.refusal.world import load_substances
from spillover.rows import Conversation

SUBSTANCES = load_substances(linked=True)


def asked(kind: str, count: int) -> list[Conversation]:
    """One for each of the first substances of a kind."""
    verbs, remarks = list(SUBSTANCES.ways), SUBSTANCES.remarks
    return [
        [
            {
                "role": "user",
                "content": SUBSTANCES.question(
                    verbs[at % len(verbs)], one.name, at % 2, remarks[at % len(remarks)]
                ),
            }
        ]
        for at, one in enumerate(SUBSTANCES.of(kind)[:count])
    ]
