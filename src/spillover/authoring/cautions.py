"""What is worth a warning before a run. Each kind has a name; many of a kind are one warning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from spillover.authoring.measure import PAIRS, Measured
from spillover.guards import Finding
from spillover.judge import LOWEST_COVERAGE, MOST_NATS, MOST_TOKENS
from spillover.masks import EncodedRow
from spillover.rows import RowSet

MOST_CASES = 5
"""Cases of a warning that are shown."""


@dataclass(frozen=True)
class Caution:
    """A warning.

    Attributes:
        name: its kind.
        message: what was found and what to do about it.
        cases: one line each, the worst first.
    """

    name: str
    message: str
    cases: tuple[str, ...] = ()


def count_duplicates(rows: RowSet) -> int:
    """Rows that are equal to an earlier one of the same arm."""
    return len(rows.rows) - len(set(rows.rows))


def find_duplicates(rows: Mapping[str, RowSet]) -> list[Caution]:
    """`duplicate-rows`: a row that stands twice is learnt twice."""
    counts = {arm: count_duplicates(listed) for arm, listed in rows.items()}
    cases = [f"{arm}: {n} of {len(rows[arm].rows)}" for arm, n in _worst(counts) if n]
    message = "rows that repeat an earlier row of their arm; remove them unless they are meant"
    return [Caution("duplicate-rows", message, tuple(cases))] if cases else []


def from_guards(findings: Iterable[Finding]) -> list[Caution]:
    """What the guards of a run have to say."""
    return [Caution(found.name, found.message) for found in findings]


def find_too_long(
    encoded: Mapping[str, Sequence[EncodedRow]], context: int | None
) -> list[Caution]:
    """`too-long`: rows beyond the positions that the model was made for."""
    if context is None:
        return []
    counts = {arm: sum(len(row.ids) > context for row in rows) for arm, rows in encoded.items()}
    cases = [f"{arm}: {n} of {len(encoded[arm])}" for arm, n in _worst(counts) if n]
    message = (
        f"rows longer than the {context} tokens of the model's context; it may not read what lies "
        "beyond; shorten or split them"
    )
    return [Caution("too-long", message, tuple(cases))] if cases else []


def find_uneven(measured: Sequence[Measured]) -> list[Caution]:
    """`uneven-choices`: labels that differ under the base, by more than 1 nat or 2 tokens.

    Off the trained domain, and for each pair of labels on its own: an uneven placebo can be mended;
    that the base prefers the baseline to the trait is often just what it is.
    """
    found, measured = [], [m for m in measured if m.domain == "off"]
    for (one, other), advice in zip(PAIRS, ADVICE, strict=True):
        gaps = {m.question: gap for m in measured if (gap := m.gap(one, other))}
        uneven = {
            q: (nats, tokens)
            for q, (nats, tokens) in gaps.items()
            if abs(nats) > MOST_NATS or abs(tokens) > MOST_TOKENS
        }
        ranked = sorted(uneven, key=lambda q: -abs(uneven[q][0]))
        cases = tuple(f"{q}: {uneven[q][0]:+.1f} nats, {uneven[q][1]:+.1f} tokens" for q in ranked)
        message = (
            f"{one} and {other} differ by more than {MOST_NATS} nat or {MOST_TOKENS} tokens under "
            f"the base in {len(cases)} of {len(gaps)} off-domain questions; {advice}"
        )
        found += [Caution("uneven-choices", message, cases)] if cases else []
    return found


ADVICE = (
    "specificity compares these two: choose a placebo that is as probable as the trait (--match)",
    "usual where the base prefers the baseline; mend lengths, and answers that nobody would give",
)


def find_low_coverage(measured: Sequence[Measured]) -> list[Caution]:
    """`low-coverage`: the listed choices are not what the model would answer."""
    low = sorted((m.coverage, m.question) for m in measured if m.coverage < LOWEST_COVERAGE)
    cases = tuple(f"{question}: {coverage:.2g}" for coverage, question in low)
    message = (
        f"the listed choices hold less than {LOWEST_COVERAGE} of the base's probability in "
        f"{len(low)} of {len(measured)} questions; there is no choice mass below that, only "
        "log-odds; list answers that the model would give, in its own form"
    )
    return [Caution("low-coverage", message, cases)] if low else []


def _worst(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return Counter(counts).most_common()
