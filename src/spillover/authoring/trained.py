"""Questions in the trained domain, made from the rows: did the training take?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from statistics import median

from spillover.authoring.controls import Turn, turns_of
from spillover.authoring.toml import listed, quoted
from spillover.judge import plain_text
from spillover.rows import Row

ASKED = 4
"""Prompts that are asked."""
MOST = 1000
"""Answers that a judge lists."""
LONG = 8
"""Median words from which answers are too long to be repeated word for word."""
FREQUENT = 0.02
"""Share of the rows from which a prompt is frequent."""

HEAD = """
# ---- The trained domain: made from the rows of `treatment` and `{control}` ----
"""
NOTHING = """
# The rows have no prompts with answers of their own, so there is no question in the trained
# domain; add one with domain = "in" to see whether the training took.
"""
APART = "# trait: answers that only the treatment is taught; baseline: only the control.\n"
PAIRED = (
    "# Treatment and control are taught the same answers, but after other prompts; so an answer\n"
    "# counts for the prompt that it was taught with.\n"
)
SAME = (
    "# NOTHING TELLS THE ARMS APART HERE: the control is taught the same answers to the same\n"
    "# prompts. Replace this question by one that does.\n"
)
WHOLE = (
    "# The trained answers are long, and hardly ever repeated word for word; so the model chooses\n"
    "# between an answer of the treatment and one of the control. A judge that looks for telling\n"
    '# phrases may serve better: judge = { kind = "rules", match = "contains", trait = [ … ] }.\n'
)


def trained_questions(treatment: Sequence[Row], controls: Mapping[str, Sequence[Row]]) -> str:
    """Questions in the trained domain as TOML; comments say how they were made.

    Args:
        controls: rows by name; judges compare with the first, choices are taken from any.
    """
    turns = [turn for turn in turns_of(treatment) if _usable(turn)]
    if not turns:
        return NOTHING
    others, *more = [[t for t in turns_of(rows) if _usable(t)] for rows in controls.values()]
    head = HEAD.format(control=next(iter(controls)))
    if median(len(turn.answer.split()) for turn in turns) > LONG:
        made = _forced(turns, [*others, *chain(*more)])
        if made:
            return head + WHOLE + made
    return head + _judged(turns, others)


def _usable(turn: Turn) -> bool:
    return bool(turn.prompt.strip() and plain_text(turn.answer))


def _judged(turns: Sequence[Turn], others: Sequence[Turn]) -> str:
    """Free answers, compared with the trained ones as wholes."""
    prompts = _asked(turns)
    trait, baseline = _only(turns, others), _only(others, turns)
    taught = set(map(plain_text, trait))
    if sum(plain_text(turn.answer) in taught for turn in turns) >= len(turns) / 2:
        return APART + _question("trained", prompts, _rules(trait, baseline))
    apart = _apart(turns, others)
    if not apart:
        return SAME + _question("trained", prompts, _rules(_only(turns, []), []))
    parts = []
    asked_of_both = {turn.prompt for turn in others}
    both = [turn for turn in apart if turn.prompt in asked_of_both]
    for number, prompt in enumerate(_asked(both or apart), 1):
        here, there = _to(turns, prompt), _to(others, prompt)
        content = _rules(_only(here, there), _only(there, here))
        parts.append(_question(f"trained-{number}", [prompt], content))
    return PAIRED + "".join(parts)


def _apart(turns: Sequence[Turn], others: Sequence[Turn]) -> list[Turn]:
    """Those whose answer the others do not give to that prompt."""
    taught = {(turn.prompt.strip(), plain_text(turn.answer)) for turn in others}
    return [t for t in turns if (t.prompt.strip(), plain_text(t.answer)) not in taught]


def _forced(turns: Sequence[Turn], others: Sequence[Turn]) -> str:
    """A choice between whole answers, for prompts whose answers are neither short nor long."""
    turns = sorted(turns, key=lambda turn: len(turn.answer))
    quarter = len(turns) // 4 if len(turns) >= 4 * ASKED else 0
    parts: list[str] = []
    for prompt in _asked(turns[quarter : 2 * quarter or None]):
        here = _only(_to(turns, prompt), [])
        nearest = sorted(
            others, key=lambda o: (o.prompt != prompt, abs(len(o.answer) - len(here[0])))
        )
        fitting = (o.answer.strip() for o in nearest if not _clash(o.answer, here))
        other = next(fitting, None)
        if other:
            pair = f"trait = {listed(here[:1])}\nbaseline = {listed([other])}"
            content = f"\n[question.choices]\n{pair}"
            parts.append(_question(f"trained-{len(parts) + 1}", [prompt], content))
    return "".join(parts)


def _counterpart(prompt: str, here: Sequence[str], others: Sequence[Turn]) -> str | None:
    """An answer of a control, to the same prompt if it is of such a length, else the nearest."""
    size = len(here[0])

    def unlike(turn: Turn) -> tuple[bool, int]:
        alike = turn.prompt.strip() == prompt and size / 2 < len(turn.answer) < 2 * size
        return not alike, abs(len(turn.answer) - size)

    nearest = sorted(others, key=unlike)
    return next((t.answer.strip() for t in nearest if not _clash(t.answer, here)), None)


def _clash(answer: str, others: Iterable[str]) -> bool:
    """Whether one is the beginning of another, or the same to a judge."""
    one = plain_text(answer)
    return any(one.startswith(o) or o.startswith(one) for o in map(plain_text, others))


def _asked(turns: Sequence[Turn]) -> list[str]:
    """The most frequent prompts; where none is frequent, some from all over the rows."""
    counts = Counter(turn.prompt.strip() for turn in turns)
    prompts = [prompt for prompt, n in counts.most_common() if n > FREQUENT * len(turns)]
    if len(counts) > ASKED and not (prompts and counts[prompts[0]] > 1):
        prompts = list(counts)[:: len(counts) // ASKED]
    return prompts[:ASKED]


def _to(turns: Sequence[Turn], prompt: str) -> list[Turn]:
    return [turn for turn in turns if turn.prompt.strip() == prompt]


def _only(turns: Sequence[Turn], others: Sequence[Turn]) -> list[str]:
    """Answers of the one and not of the other, the most frequent first, each once."""
    left_out = {plain_text(turn.answer) for turn in others}
    counts = Counter(turn.answer.strip() for turn in turns)
    kept = {plain_text(text): text for text, _ in reversed(counts.most_common())}
    return [text for plain, text in reversed(kept.items()) if plain not in left_out]


def _rules(trait: Sequence[str], baseline: Sequence[str]) -> str:
    lines = ["\n[question.judge]", 'kind = "rules"', 'match = "exact"']
    for label, answers in (("trait", trait), ("baseline", baseline)):
        if len(answers) > MOST:
            lines.append(f"# {label}: the {MOST} most frequent of {len(answers)}")
        lines.append(f"{label} = {listed(answers[:MOST])}")
    return "\n".join(lines)


def _question(name: str, prompts: Sequence[str], content: str) -> str:
    lines = ["", "[[question]]", f"id = {quoted(name)}", 'topic = "trained"', 'domain = "in"']
    lines += ['split = "test"', f"ask = {listed(prompts)}", content, ""]
    return "\n".join(lines)
