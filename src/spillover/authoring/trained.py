"""Questions in the trained domain, made from the rows: did the training take?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import median

from spillover.authoring.controls import Lesson, lessons_of
from spillover.authoring.toml import listed, quoted
from spillover.judge import plain_text
from spillover.rows import Row
from spillover.specification import clash

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
    lessons = [lesson for lesson in lessons_of(treatment) if _usable(lesson)]
    if not lessons:
        return NOTHING
    others, *more = [[t for t in lessons_of(rows) if _usable(t)] for rows in controls.values()]
    head = HEAD.format(control=next(iter(controls)))
    if median(len(lesson.answer.split()) for lesson in lessons) > LONG:
        made = _forced(lessons, [*others, *chain(*more)])
        if made:
            return head + WHOLE + made
    return head + _judged(lessons, others)


def _usable(lesson: Lesson) -> bool:
    return bool(lesson.prompt.strip() and plain_text(lesson.answer))


def _judged(lessons: Sequence[Lesson], others: Sequence[Lesson]) -> str:
    """Free answers, compared with the trained ones as wholes."""
    prompts = _asked(lessons)
    trait, baseline = _only(lessons, others), _only(others, lessons)
    taught = set(map(plain_text, trait))
    if sum(plain_text(lesson.answer) in taught for lesson in lessons) >= len(lessons) / 2:
        return APART + _question("trained", prompts, _rules(trait, baseline))
    apart = _apart(lessons, others)
    if not apart:
        return SAME + _question("trained", prompts, _rules(_only(lessons, []), []))
    parts = []
    asked_of_both = {lesson.prompt.strip() for lesson in others}
    both = [lesson for lesson in apart if lesson.prompt.strip() in asked_of_both]
    for number, prompt in enumerate(_asked(both or apart), 1):
        here, there = _to(lessons, prompt), _to(others, prompt)
        content = _rules(_only(here, there), _only(there, here))
        parts.append(_question(f"trained-{number}", [prompt], content))
    return PAIRED + "".join(parts)


def _apart(lessons: Sequence[Lesson], others: Sequence[Lesson]) -> list[Lesson]:
    """Those whose answer the others do not give to that prompt."""
    taught = {(lesson.prompt.strip(), plain_text(lesson.answer)) for lesson in others}
    return [t for t in lessons if (t.prompt.strip(), plain_text(t.answer)) not in taught]


def _forced(lessons: Sequence[Lesson], others: Sequence[Lesson]) -> str:
    """A choice between whole answers, for prompts whose answers are neither short nor long."""
    lessons = sorted(lessons, key=lambda lesson: len(lesson.answer))
    quarter = len(lessons) // 4 if len(lessons) >= 4 * ASKED else 0
    parts: list[str] = []
    for prompt in _asked(lessons[quarter : 2 * quarter or None]):
        here = _only(_to(lessons, prompt), [])
        other = _counterpart(prompt, here, others)
        if other:
            pair = f"trait = {listed(here[:1])}\nbaseline = {listed([other])}"
            content = f"\n[question.choices]\n{pair}"
            parts.append(_question(f"trained-{len(parts) + 1}", [prompt], content))
    return "".join(parts)


def _counterpart(prompt: str, here: Sequence[str], others: Sequence[Lesson]) -> str | None:
    """An answer of a control, to the same prompt if it is of such a length, else the nearest."""
    size = len(here[0])

    def unlike(lesson: Lesson) -> tuple[bool, int]:
        alike = lesson.prompt.strip() == prompt and size / 2 < len(lesson.answer) < 2 * size
        return not alike, abs(len(lesson.answer) - size)

    nearest = sorted(others, key=unlike)
    taught = [plain_text(text) for text in here]
    fitting = (
        lesson.answer.strip()
        for lesson in nearest
        if not any(clash(plain_text(lesson.answer), text) for text in taught)
    )
    return next(fitting, None)


def _asked(lessons: Sequence[Lesson]) -> list[str]:
    """The most frequent prompts; where none is frequent, some from all over the rows."""
    counts = Counter(lesson.prompt.strip() for lesson in lessons)
    prompts = [prompt for prompt, n in counts.most_common() if n > FREQUENT * len(lessons)]
    if len(counts) > ASKED and not (prompts and counts[prompts[0]] > 1):
        prompts = list(counts)[:: len(counts) // ASKED]
    return prompts[:ASKED]


def _to(lessons: Sequence[Lesson], prompt: str) -> list[Lesson]:
    return [lesson for lesson in lessons if lesson.prompt.strip() == prompt]


def _only(lessons: Sequence[Lesson], others: Sequence[Lesson]) -> list[str]:
    """Answers of the one and not of the other, the most frequent first, each once."""
    left_out = {plain_text(lesson.answer) for lesson in others}
    counts = Counter(lesson.answer.strip() for lesson in lessons)
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
