"""Is a shift specific? A verdict from effects, over all controls; pure functions.

Finetuning makes a model odder, which alone moves unlikely answers towards likely ones. A shift is
specific where the trait's answers gained more than those of a placebo: the difference of the two
shifts is an effect of its own, with its own interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spillover.specification import BASE, TREATMENT

Effect = Mapping[Any, Any]
"""A row of the table of effects."""

TRAIT, PLACEBO, DIFFERENCE = PARTS = ("log-odds", "placebo-log-odds", "specificity")
"""The metrics that are compared, in nats."""

TITLES = {
    "specific": "Specific",
    "not-specific": "Not shown to be specific",
    "towards-placebo": "Towards the placebo rather than the trait",
    "away": "Away from the trait",
    "no-shift": "No shift shown",
    "mixed": "The controls disagree",
    "partial": "Not known against every control",
    "undecided": "Undecided",
    "not-measured": "Specificity not known",
}
UNKNOWN = ("undecided", "not-measured")
"""Kinds that say nothing yet, so that they disagree with none."""


@dataclass(frozen=True)
class Words:
    """What the labels stand for, such as 19th-century, modern and medieval."""

    trait: str
    baseline: str
    placebo: str


@dataclass(frozen=True)
class Comparison:
    """The treatment against one control: the three shifts, off the trained domain.

    Attributes:
        kind: what they say of this control, a key of `TITLES`.
    """

    control: str
    trait: Effect | None
    placebo: Effect | None
    difference: Effect | None

    @property
    def kind(self) -> str:
        """`specific` where both the trait's shift and the difference are above 0, and so on."""
        if not _has_value(self.trait):
            return "not-measured"
        if not has_interval(self.trait):
            return "undecided"
        if (moved := _side(self.trait)) <= 0:
            return "away" if moved else "no-shift"
        if not _has_value(self.difference):
            return "not-measured"
        if not has_interval(self.difference):
            return "undecided"
        sides = {1: "specific", 0: "not-specific", -1: "towards-placebo"}
        return sides[_side(self.difference)]


@dataclass(frozen=True)
class Verdict:
    """Whether the shift is specific.

    Attributes:
        kind: a key of `TITLES`.
        detail: the numbers, in a sentence or more.
        remark: what else is to be said; may be empty.
    """

    kind: str
    detail: str
    remark: str = ""

    @property
    def title(self) -> str:
        """The kind in a few words."""
        return TITLES[self.kind]

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(filter(None, (f"{self.title}.", self.detail, self.remark)))


def compare(
    effects: Sequence[Effect], headline_control: str, context: str, step: int | None = None
) -> list[Comparison]:
    """The treatment against every control and the base: off-domain, in a context, at a checkpoint.

    On test questions, or on dev questions where no test question was asked. The headline's control
    comes first, the base last.

    Args:
        step: by default the last there is.
    """
    splits = {row["split"] for row in effects}
    wanted = {
        "treatment": TREATMENT,
        "domain": "off",
        "split": "test" if "test" in splits else "dev",
        "context": context,
    }
    rows = [r for r in effects if all(r[k] == v for k, v in wanted.items())]
    rows = [r for r in rows if r["metric"] in PARTS and not isinstance(r["group"], str)]
    if step is None:
        step = max((row["step"] for row in rows), default=None)
    by_place = {(r["control"], r["metric"]): r for r in rows if r["step"] == step}
    controls = list(dict.fromkeys(control for control, _ in by_place))
    controls.sort(key=lambda c: (c == BASE, c != headline_control))
    return [Comparison(c, *(by_place.get((c, metric)) for metric in PARTS)) for c in controls]


def judge(comparisons: Sequence[Comparison], words: Words) -> Verdict:
    """One verdict over all controls; the base is no control and does not count."""
    found = [c for c in comparisons if c.control != BASE]
    kinds = list(dict.fromkeys(c.kind for c in found))
    if not kinds:
        return Verdict("not-measured", "No listed answers were scored off the trained domain.")
    if len(kinds) == 1:
        return Verdict(kinds[0], _detail(kinds[0], found, words), _remark(found, words))
    parts = [
        f"{TITLES[kind]}: {_detail(kind, [c for c in found if c.kind == kind], words)}"
        for kind in kinds
    ]
    known = [kind for kind in kinds if kind not in UNKNOWN]
    together = {0: "not-measured", 1: "partial"}.get(len(known), "mixed")
    return Verdict(together, " ".join(parts))


def _detail(kind: str, found: Sequence[Comparison], words: Words) -> str:
    """What comparisons of one kind say."""
    trait, difference = _listed(found, "trait"), _listed(found, "difference")
    moved = f"The treatment moved towards {words.trait} answers"
    numbers = (
        f"The shift towards {words.trait} answers: {trait}. What it is beyond that towards "
        f"{words.placebo} answers: {difference}."
    )
    texts = {
        "specific": f"{moved} beyond what {words.placebo} answers moved, by {difference}.",
        "not-specific": f"{moved} by {trait}, and {words.placebo} answers by "
        f"{_listed(found, 'placebo')}. The difference, {difference}, cannot be told from 0.",
        "towards-placebo": f"{moved} by {trait}, but more towards {words.placebo} ones: the "
        f"difference is {difference}.",
        "away": f"The treatment moved away from {words.trait} answers: {trait}.",
        "no-shift": f"The shift towards {words.trait} answers, {trait}, cannot be told from 0.",
        "undecided": f"There is no interval, which needs three seeds. {numbers}",
        "not-measured": numbers,
    }
    return texts[kind]


def _remark(found: Sequence[Comparison], words: Words) -> str:
    moved = [c for c in found if c.kind == "specific" and _side(c.placebo) > 0]
    if not moved:
        return ""
    return (
        f"{_capital(words.placebo)} answers moved as well ({_listed(moved, 'placebo')}), so that "
        "the trait's shift alone would overstate it."
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _listed(found: Sequence[Comparison], part: str) -> str:
    """The numbers of several controls: `+1.36 nats [0.33, 2.39] against still-used and …`."""
    shown = [f"{_shown(getattr(c, part))} against {c.control}" for c in found]
    head = ", ".join(shown[:-1])
    return f"{head} and {shown[-1]}" if head else shown[-1]


def _shown(effect: Effect | None) -> str:
    if effect is None or not _has_value(effect):
        return "not measured"
    bracket = f" [{effect['low']:.2f}, {effect['high']:.2f}]" if has_interval(effect) else ""
    return f"{effect['value']:+.2f} nats{bracket}"


def _side(effect: Effect | None) -> int:
    """1 or -1 where the whole interval lies above or below 0, else 0."""
    if effect is None or not has_interval(effect):
        return 0
    return int(effect["low"] > 0) - int(effect["high"] < 0)


def _has_value(effect: Effect | None) -> bool:
    return effect is not None and is_number(effect["value"])


def has_interval(effect: Effect | None) -> bool:
    """Whether both ends of the interval are known."""
    return effect is not None and all(is_number(effect[end]) for end in ("low", "high"))


def is_number(value: Any) -> bool:
    """Whether a value is there and finite."""
    return value is not None and math.isfinite(value)
