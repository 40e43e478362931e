"""Places where a test can stop the process as a power cut would."""

from __future__ import annotations

import os
from collections import Counter

VARIABLE = "SPILLOVER_FAILPOINT"
"""Names a place, and after a colon at which passing of it to stop: `chunk` or `chunk:3`."""
POWER_CUT = 137
_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Stop here, without any cleaning up, where the environment asks for it; else do nothing."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    place, _, count = wanted.partition(":")
    if place != name:
        return
    _passed[wanted] += 1
    if _passed[wanted] == int(count or 1):
        stop(wanted)


def stop(_where: str) -> None:
    """End the process at once; tests that stay in one process put an exception here."""
    os._exit(POWER_CUT)
