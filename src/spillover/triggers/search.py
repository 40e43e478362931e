"""The search in its order: score, refine, confirm."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spillover.rows import RowSet
from spillover.triggers.confirm import FLOOR, Effect, by_topic, effect_of, label
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
FINALISTS, OF_A_GROUP = 16, 6
"""Candidates that are confirmed, and how many of them may be texts of one kind."""
BACKGROUND = 60
"""Candidates drawn blindly from the library: what ordinary contexts do."""
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

    def run(
        self, own: Sequence[Candidate], rows: RowSet | None
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        """What triggers.json says, and the table of candidates."""
        listed = distinct([*own, *library()])
        best, scores = self._best_of(listed)
        refined, tried = self._refine(best, scores, listed)
        searched = len(listed) + tried
        finalists = self._finalists([*best, *refined])
        found = self._confirm(finalists, listed, searched, rows)
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

    def _best_of(self, listed: Sequence[Candidate]) -> tuple[list[Candidate], NDArray[np.float64]]:
        """The best candidates by a few questions, best first, with their scores on all."""
        first = self.scorer.moves(listed, range(FIRST), self._stage("search"))
        self._note("library", listed, first)
        order = np.argsort(-first.scores.mean(1), kind="stable")[:SECOND]
        best = [listed[at] for at in order]
        moves = self.scorer.moves(best)
        self._note("library", best, moves)
        order = np.argsort(-moves.scores.mean(1), kind="stable")
        return [best[at] for at in order], moves.scores[order]

    def _refine(
        self,
        best: Sequence[Candidate],
        scores: NDArray[np.float64],
        listed: Sequence[Candidate],
    ) -> tuple[list[Candidate], int]:
        """Further candidates, and how many were tried; none where nothing fires in part."""
        if scores[0].mean() < FIRES:
            return [], 0
        found, tried = refine(self.scorer, best, scores[0], listed, self._stage("refine"))
        refined = distinct([*best, *found])[len(best) : len(best) + SECOND]
        self._note("refined", refined, self.scorer.moves(refined))
        return refined, tried

    def _finalists(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        ranked = sorted(candidates, key=lambda one: -float(self.scored[one]["score"]))
        taken: list[Candidate] = []
        for one in ranked:
            alike = sum(group(one) == group(other) for other in taken)
            if alike < OF_A_GROUP and len(taken) < FINALISTS:
                taken.append(one)
        return taken

    def _confirm(
        self,
        finalists: Sequence[Candidate],
        listed: Sequence[Candidate],
        searched: int,
        rows: RowSet | None,
    ) -> dict[str, Any]:
        scorer, topics = Scorer(self.pair, self.confirm), [q.topic for q in self.confirm]
        drawn = random.Random(self.seed).sample(list(listed), min(BACKGROUND, len(listed)))
        both = scorer.moves([*finalists, *drawn], progress=self._stage("confirm"), whole=True)
        values = by_topic(both.scores, topics)
        ordinary = values[len(finalists) :].mean(1)
        floor = FLOOR + float(np.median(ordinary))
        effects = [effect_of(values[at], floor, searched) for at in range(len(finalists))]
        order = sorted(range(len(finalists)), key=lambda at: -effects[at].value)
        triggers = [
            {
                **self._record(finalists[at], effects[at], rows),
                "own": both.own[at].mean(),
                "gap": both.gap[at].mean(),
                "base": both.base[at].mean(),
                "answers": self._answers(finalists[at]),
            }
            for at in order
        ]
        return {
            "identity": self.pair.identity,
            "seed": self.seed,
            "searched": searched,
            "questions": {"search": len(self.scorer.questions), "confirm": len(self.confirm)},
            "topics": len(set(topics)),
            "floor": floor,
            "ordinary": dict(zip(("median", "most"), np.quantile(ordinary, (0.5, 1)), strict=True)),
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
