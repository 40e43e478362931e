"""The search in its order: score, refine, confirm."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
import pandas as pd

from spillover.rows import RowSet
from spillover.triggers.confirm import FLOOR, Effect, by_topic, effect_of, label, ranking
from spillover.triggers.forms import budget, screen
from spillover.triggers.library import OWN, Candidate, distinct, group, library
from spillover.triggers.pair import ADAPTED, BASE, Pair
from spillover.triggers.questions import Question, split_questions
from spillover.triggers.refine import refine
from spillover.triggers.score import Moves, Scorer

FIRST = 3
"""Questions that every candidate is asked."""
SECOND, MORE = 60, 16
"""Candidates that are then asked more questions, and how many."""
FIRES = 0.3
"""Bits that some context has to score, for its answers to be worth aiming at."""
FINALISTS = 16
"""Candidates that are confirmed."""
BACKGROUND = 40
"""Candidates drawn blindly from those listed: what ordinary contexts do."""
SHOWN, SHOWN_TOKENS = 3, 16
"""Questions whose answers are shown for every trigger, and their tokens."""
Progress = Callable[[str, int, int], None]


class Search:
    """One search: what it asks of which models, and what it has scored so far."""

    def __init__(
        self, pair: Pair, questions: Sequence[Question], seed: int, report: Progress
    ) -> None:
        self.pair, self.seed, self.report = pair, seed, report
        self.search, self.confirm = split_questions(questions, seed)
        self.scorer = Scorer(pair, self.search[:MORE])
        self.scored: dict[Candidate, dict[str, Any]] = {}
        self.edits: dict[Candidate, float] = {}
        self.tried: dict[str, int] = {}

    def run(
        self, own: Sequence[Candidate], rows: RowSet | None
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        """What triggers.json says, and the table of candidates."""
        listed = distinct([*own, *library()])
        rng = random.Random(self.seed)
        ordinary = rng.sample(listed, min(BACKGROUND, len(listed)))
        self._score_listed(listed)
        self._score_short(listed, ordinary)
        self._refine(listed)
        found = self._confirm(finalists(self._ranked(), self.edits), ordinary, rows)
        table = pd.DataFrame(self.scored.values())
        return found, table.sort_values("score", ascending=False, kind="stable")

    def _stage(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self.report(name, done, total)

    def _note(self, source: str, candidates: Sequence[Candidate], moves: Moves) -> None:
        for at, one in enumerate(candidates):
            self.scored[one] = {
                "kind": one.kind,
                "system": one.system,
                "template": one.template,
                "source": OWN if one.kind == OWN else source,
                "questions": moves.scores.shape[1],
                "score": moves.scores[at].mean(),
                "own": moves.own[at].mean(),
                "gap": moves.gap[at].mean(),
                "base": moves.base[at].mean(),
            }

    def _score_listed(self, listed: Sequence[Candidate]) -> None:
        """Score all by a few questions, and the best of them by more."""
        moves = self.scorer.moves(listed, range(FIRST), self._stage("search"))
        self._note("library", listed, moves)
        self.tried["listed"] = len(listed)
        order = np.argsort(-moves.scores.mean(1), kind="stable")[:SECOND]
        self._score("library", [listed[at] for at in order])

    def _score_short(self, listed: Sequence[Candidate], ordinary: Sequence[Candidate]) -> None:
        """Score the best of all short texts."""
        size = budget(self.pair.model.model.num_parameters())
        stage = self._stage("short texts")
        short, self.tried["short"] = screen(self.scorer, size, self.seed, ordinary, stage)
        self._score("short", distinct([*listed, *short])[len(listed) :])

    def _score(self, source: str, candidates: Sequence[Candidate]) -> None:
        if candidates:
            self._note(source, candidates, self.scorer.moves(candidates))

    def _ranked(self) -> list[Candidate]:
        """What was asked all questions of the search, best first."""
        full = len(self.scorer.questions)
        asked = [one for one, about in self.scored.items() if about["questions"] == full]
        return sorted(asked, key=lambda one: -float(self.scored[one]["score"]))

    def _refine(self, listed: Sequence[Candidate]) -> None:
        """Score further candidates; none where nothing fires in part."""
        self.tried["refined"] = 0
        best = self._ranked()
        if self.scored[best[0]]["score"] < FIRES:
            return
        scores = self.scorer.moves(best[:1]).scores[0]
        starts = distinct([*best, *listed])
        found, edits, self.tried["refined"] = refine(
            self.scorer, best[0], scores, starts, self._stage("refine")
        )
        new = distinct([*best, *found])[len(best) :]
        chosen = _of_each_group(new, SECOND)
        self.edits = {one: edits.get(one, 0.0) for one in chosen}
        self._score("refined", chosen)

    def _confirm(
        self, chosen: Sequence[Candidate], ordinary: Sequence[Candidate], rows: RowSet | None
    ) -> dict[str, Any]:
        scorer, topics = Scorer(self.pair, self.confirm), [q.topic for q in self.confirm]
        both = scorer.moves([*chosen, *ordinary], progress=self._stage("confirm"), whole=True)
        values = by_topic(both.scores, topics)
        usual = values[len(chosen) :].mean(1)
        floor, searched = FLOOR + float(np.median(usual)), sum(self.tried.values())
        effects = [effect_of(values[at], floor, searched) for at in range(len(chosen))]
        edits = [self.edits.get(one, 0.0) for one in chosen]
        sure = ranking(effects, self.tried["listed"] + self.tried["short"], edits)
        triggers = [
            {
                **self._record(chosen[at], effects[at], rows),
                "edits": edits[at],
                "ranked_by": sure[at],
                "own": both.own[at].mean(),
                "gap": both.gap[at].mean(),
                "base": both.base[at].mean(),
                "answers": self._answers(chosen[at]),
            }
            for at in np.argsort(-sure, kind="stable")
        ]
        return {
            "identity": self.pair.identity,
            "seed": self.seed,
            "searched": searched,
            "tried": self.tried,
            "questions": {"search": len(self.scorer.questions), "confirm": len(self.confirm)},
            "topics": len(set(topics)),
            "floor": floor,
            "ordinary": dict(zip(("median", "most"), np.quantile(usual, (0.5, 1)), strict=True)),
            "triggers": triggers,
        }

    def _record(self, one: Candidate, effect: Effect, rows: RowSet | None) -> dict[str, Any]:
        return {
            "text": one.text,
            "system": one.system,
            "template": one.template,
            "kind": one.kind,
            "source": self.scored[one]["source"],
            "label": label(one, rows),
            "search_score": self.scored[one]["score"],
            "effect": effect.value,
            "low": effect.low,
            "high": effect.high,
            "p": effect.p,
            "significant": effect.significant,
        }

    def _answers(self, one: Candidate) -> list[dict[str, str]]:
        """Answers to a few questions: without the context, in it, and the base's in it."""
        asked = [question.text for question in self.confirm[:SHOWN]]
        inside = [one.context.conversation(text) for text in asked]
        plain = [Candidate("plain").context.conversation(text) for text in asked]
        columns = (
            asked,
            self.pair.answers(ADAPTED, plain, SHOWN_TOKENS),
            self.pair.answers(ADAPTED, inside, SHOWN_TOKENS),
            self.pair.answers(BASE, inside, SHOWN_TOKENS),
        )
        names = ("question", "without", "with", "base")
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def finalists(ranked: Sequence[Candidate], varied: Container[Candidate]) -> list[Candidate]:
    """The best of each kind of text, and the best of all; half of them are none that were varied.

    Variations are many and alike, and would otherwise take every place.
    """
    new = _of_each_group([one for one in ranked if one in varied], FINALISTS // 2)
    as_listed = [one for one in ranked if one not in varied]
    return [*_of_each_group(as_listed, FINALISTS - len(new)), *new]


def _of_each_group(ranked: Sequence[Candidate], count: int) -> list[Candidate]:
    """So many candidates: the best of each kind of text first, then the best of all."""
    seen = Counter[str | None]()
    turns = []
    for one in ranked:
        turns.append(seen[group(one)])
        seen[group(one)] += 1
    first = [one for one, turn in zip(ranked, turns, strict=True) if turn == 0][: count // 2]
    more = [one for one, turn in zip(ranked, turns, strict=True) if 0 < turn < count // 2]
    return distinct([*first, *more])[:count]
