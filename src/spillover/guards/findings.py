"""What a guard found, and whether a run can live with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spillover.errors import InputError, RunError

NO_CHANGE = 1e-6
"""Changes of logits and of log-probabilities (nats) up to this are none."""


@dataclass(frozen=True)
class Finding:
    """What a guard found.

    Attributes:
        name: the guard's.
        message: what was found, what was expected, and what to do next, in one line.
        fatal: whether the run must not go on.
    """

    name: str
    message: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


def settle(
    findings: Iterable[Finding], error: type[InputError | RunError] = RunError
) -> list[Finding]:
    """The findings that a run can live with.

    Raises:
        error: for the first that it cannot.
    """
    kept = list(findings)
    for finding in kept:
        if finding.fatal:
            raise error(str(finding))
    return kept
