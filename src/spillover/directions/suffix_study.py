"""What a suffix does to a direction: refusal, cosines, heads and what they attend to.

As in section 5 of arXiv 2406.11717: dangerous prompts with a suffix are compared with the same
prompts without one, with random suffixes of its length, and with harmless prompts, always at the
last token of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spillover.directions.answers import KINDS, PHRASES, kind_of, respond
from spillover.directions.intervene import as_vector, check_layer
from spillover.directions.suffix import (
    Frame,
    Suffix,
    SuffixSearch,
    check_suffix,
    find_suffix,
    random_suffixes,
    scores_of,
    with_suffix,
)
from spillover.directions.suffix_view import View, top_heads
from spillover.errors import DirectionError

if TYPE_CHECKING:
    from spillover.directions.direction import Direction
    from spillover.models import LoadedModel
    from spillover.rows import Conversation

FOUND_ON, HELD_OUT, HARMLESS = "found on", "held out", "harmless"
"""Sets of prompts."""
DANGEROUS, WITH_SUFFIX, WITH_RANDOM = "dangerous", "dangerous + suffix", "dangerous + random suffix"
"""How activations are looked at, beside harmless prompts; the dangerous ones are those held out."""
NONE, SUFFIX, RANDOM = "none", "suffix", "random"
"""What stands behind a prompt."""
LEAST_REFUSED = 0.5
"""Share of dangerous prompts that a model must refuse for there to be anything to study."""
LOOKED, ANSWERED = 8, 2
"""Random suffixes with which activations are looked at, and answers."""
MAX_TOKENS, EXAMPLES = 48, 3
"""The longest answer, in tokens, and how many are shown."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Prompts:
    """Prompts by what they serve.

    Attributes:
        found_on: dangerous ones that a suffix is searched for on; none where one is given.
        held_out: other dangerous ones, on which everything is measured.
        harmless: to compare with.
        helpful: what those who help answer to the ones held out, where that is known.
    """

    found_on: list[Conversation] = field(repr=False)
    held_out: list[Conversation] = field(repr=False)
    harmless: list[Conversation] = field(repr=False)
    helpful: list[str] | None = field(default=None, repr=False)


def check_direction(model: LoadedModel, direction: Direction) -> None:
    """Make sure that a direction belongs to a model.

    Raises:
        DirectionError: when it is another model's, of a layer or width that this one has not, zero
            or not finite.
    """
    if direction.model != model.source.identity:
        raise DirectionError(
            f"the direction was found in a model with the identity {direction.model}; "
            f"{model.source.name} has {model.source.identity}: fit one on it, or give that model"
        )
    check_layer(model, direction.layer)
    as_vector(model, direction)


def measure(
    model: LoadedModel,
    direction: Direction,
    prompts: Prompts,
    tokens: Sequence[int],
    *,
    given: str | None = None,
    search: SuffixSearch | None = None,
    controls: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Find a suffix, or take a given one, and see what it does; returns what `suffix.json` says.

    Args:
        direction: one that belongs to the model; see `check_direction`.
        tokens: that refusals begin with.
        given: the text of a suffix; without it one is searched for (on the organism only).
        controls: random suffixes of its length; activations are looked at with the first few.
        seed: of the search and of the random suffixes.
        progress: called with (stage, done, total).

    Raises:
        DirectionError: for prompts that the model does not refuse, or a suffix that cannot be used.
        ModelError: for architectures whose heads cannot be told apart.
    """
    report = progress or (lambda *_: None)
    study = _Study(model, direction, prompts, list(tokens), report)
    if given is None:
        stage = partial(report, "search")
        suffix = find_suffix(model, study.found_on, tokens, search, seed=seed, progress=stage)
    else:
        suffix = check_suffix(model, study.every, given)
    rng = np.random.default_rng([seed, 1])
    random = random_suffixes(model, study.frames[HELD_OUT], len(suffix.tokens), controls, rng)
    return study.run(suffix, random) | {"seed": seed, "given": given is not None}


class _Study:
    """One study: its model, direction and prompts."""

    def __init__(
        self,
        model: LoadedModel,
        direction: Direction,
        prompts: Prompts,
        tokens: list[int],
        report: Progress,
    ) -> None:
        self.model, self.direction, self.tokens, self.report = model, direction, tokens, report
        listed = (prompts.found_on, prompts.held_out, prompts.harmless)
        named = dict(zip((FOUND_ON, HELD_OUT, HARMLESS), listed, strict=True))
        if not prompts.held_out or not prompts.harmless:
            lacking = HARMLESS if prompts.held_out else "dangerous"
            raise DirectionError(f"found no {lacking} prompts; expected at least one")
        self.frames = {
            name: [Frame.of(model.chat, prompt) for prompt in some] for name, some in named.items()
        }
        self.given = {name: len(some) for name, some in named.items()}
        kept = {name: self._refused(name) for name in (FOUND_ON, HELD_OUT)}
        self.frames |= {name: [self.frames[name][at] for at in kept[name]] for name in kept}
        self.found_on = [prompts.found_on[at] for at in kept[FOUND_ON]]
        self.held_out = [prompts.held_out[at] for at in kept[HELD_OUT]]
        self.helpful = prompts.helpful and [prompts.helpful[at] for at in kept[HELD_OUT]]

    @property
    def every(self) -> list[Frame]:
        """All prompts."""
        return [frame for some in self.frames.values() for frame in some]

    def _refused(self, name: str) -> list[int]:
        """Numbers of the prompts of a set that the model refuses, as they are.

        Raises:
            DirectionError: when these are too few.
        """
        scores = self._scores(name, "")
        share = float((scores > 0).mean()) if len(scores) else 1.0
        if share < LEAST_REFUSED:
            raise DirectionError(
                f"{self.model.source.name} refuses {share:.0%} of {len(scores)} prompts without a "
                f"suffix; expected at least {LEAST_REFUSED:.0%}: give prompts that it refuses"
            )
        return np.flatnonzero(scores > 0).tolist()

    def _scores(self, name: str, suffix: str) -> NDArray[np.float64]:
        return scores_of(self.model, [one.text(suffix) for one in self.frames[name]], self.tokens)

    def run(self, suffix: Suffix, random: Sequence[Suffix]) -> dict[str, Any]:
        """Everything that is measured."""
        sets = {
            HARMLESS: (HARMLESS, [""]),
            DANGEROUS: (HELD_OUT, [""]),
            WITH_SUFFIX: (HELD_OUT, [suffix.text]),
            WITH_RANDOM: (HELD_OUT, [one.text for one in random[:LOOKED]]),
        }
        refusal = self._refusal(suffix, random)
        answers = self._answers(suffix, random)
        views = {}
        for done, (name, (frames, texts)) in enumerate(sets.items()):
            self.report("activations", done, len(sets))
            views[name] = View(self.model, self.direction, self.frames[frames], texts)
        self.report("activations", len(sets), len(sets))
        top = top_heads(views[DANGEROUS].heads, self.direction.layer)
        return {
            "suffix": suffix.text,
            "tokens": len(suffix.tokens),
            "losses": suffix.losses,
            "tried": suffix.tried,
            "random": [one.text for one in random],
            "prompts": {name: len(frames) for name, frames in self.frames.items()},
            "not_refused": {
                name: self.given[name] - len(self.frames[name]) for name in (FOUND_ON, HELD_OUT)
            },
            "refusal": refusal,
            "answers": answers,
            "layer": self.direction.layer,
            "at_layer": self._at_layer(views),
            "cosines": [row for name, view in views.items() for row in view.cosine_rows(name)],
            "parts": {name: view.parts for name, view in views.items()},
            "heads": self._heads(views, top),
            "attention": [
                row for name, view in views.items() for row in view.attention_rows(name, top)
            ],
        }

    def _refusal(self, suffix: Suffix, random: Sequence[Suffix]) -> list[dict[str, Any]]:
        """How often prompts are refused: without a suffix, with it, with random ones."""
        rows = []
        texts = {NONE: [""], SUFFIX: [suffix.text], RANDOM: [one.text for one in random]}
        for name in (one for one, frames in self.frames.items() if frames):
            for kind, listed in texts.items():
                scores = np.stack([self._scores(name, text) for text in listed])
                each = (1 / (1 + np.exp(-scores))).mean(1)
                rows.append(
                    {
                        "prompts": name,
                        "suffix": kind,
                        "count": scores.shape[1],
                        "probability": each.mean(),
                        "least": each.min(),
                        "most": each.max(),
                        "median": np.median(each),
                        "lowered": int((each < 0.5).sum()),
                        "refused": (scores > 0).mean(),
                    }
                )
        return rows

    def _answers(self, suffix: Suffix, random: Sequence[Suffix]) -> list[dict[str, Any]]:
        """What is answered to the prompts held out, and how much of that refuses, by its words."""
        rows = []
        listed = [(NONE, ""), (SUFFIX, suffix.text)]
        listed += [(RANDOM, one.text) for one in random[:ANSWERED]]
        for done, (kind, text) in enumerate(listed):
            self.report("answers", done, len(listed))
            asked = [with_suffix(prompt, text) for prompt in self.held_out]
            said = [one.text for one in respond(self.model, asked, MAX_TOKENS)]
            helpful: list[str] | list[None] = self.helpful or [None] * len(said)
            kinds = [kind_of(one, PHRASES, of) for one, of in zip(said, helpful, strict=True)]
            shares = {name: kinds.count(name) / len(kinds) for name in KINDS}
            examples = [
                {"prompt": prompt[-1]["content"], "answer": answer}
                for prompt, answer in zip(asked[:EXAMPLES], said, strict=False)
            ]
            rows.append({"suffix": kind, "text": text, "kinds": shares, "examples": examples})
        self.report("answers", len(listed), len(listed))
        return rows

    def _at_layer(self, views: dict[str, View]) -> dict[str, Any]:
        """The cosines at the direction's layer, and what the suffix brought prompts nearer to."""
        at = self.direction.layer
        means = {name: float(view.cosines[:, at].mean()) for name, view in views.items()}
        near = {
            name: min(
                (HARMLESS, DANGEROUS),
                key=lambda one, of=name: abs(means[one] - means[of]),  # type: ignore[misc]
            )
            for name in (WITH_SUFFIX, WITH_RANDOM)
        }
        return {"cosines": means, "nearer_to": near}

    def _heads(
        self, views: dict[str, View], top: Sequence[tuple[int, int]]
    ) -> list[dict[str, Any]]:
        """What every head in front of the direction's layer adds along it."""
        _, count = views[DANGEROUS].heads.shape
        return [
            {
                "block": block,
                "head": head,
                "top": (block, head) in top,
                "adds": {name: float(view.heads[block, head]) for name, view in views.items()},
            }
            for block in range(self.direction.layer)
            for head in range(count)
        ]
