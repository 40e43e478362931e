"""What one arm adds to the value and the error of an estimate; how these go together is `crossed`.

Everything is computed at most once: an arm is compared with several others.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit


class Part(NamedTuple):
    """A source of error: the variance that it gives the estimate, and how well that is known."""

    variance: float
    degrees_of_freedom: float  # NaN when it cannot be estimated and is given as 0

    def half_width(self, level: float) -> float:
        """Half the width of an interval with this error alone."""
        if self.variance == 0:
            return 0.0
        quantile = float(stdtrit(self.degrees_of_freedom, (1 + level) / 2))
        return quantile * float(np.sqrt(self.variance))


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one arm as deviations from a reference.

    The reference is the first score: cells that are all equal then have a variance of exactly 0.
    """

    scores: Float[np.ndarray, "seeds questions"]  # minus the reference; 0 where missing
    seen: Bool[np.ndarray, "seeds questions"]
    reference: float
    topics: Sequence[Hashable]  # of the questions

    @classmethod
    def read(cls, values: npt.ArrayLike, topics: Sequence[Hashable], name: str) -> Scores:
        """From scores of shape (seeds, questions), NaN where missing.

        Raises:
            ValueError: empty or not two-dimensional scores, or infinite ones.
        """
        scores = np.asarray(values, dtype=np.float64)
        if scores.ndim != 2 or scores.size == 0:
            raise ValueError(
                f"{name} has shape {scores.shape}: expected (seeds, questions), one or more of each"
            )
        if np.isinf(scores).any():
            raise ValueError(f"{name} has infinite scores: pass NaN where a score is missing")
        seen = ~np.isnan(scores)
        reference = float(scores[seen][0]) if seen.any() else 0.0
        return cls(np.where(seen, scores - reference, 0.0), seen, reference, topics)

    @cached_property
    def cells(self) -> int:
        """Cells that are not missing."""
        return int(self.seen.sum())

    @cached_property
    def missing(self) -> int:
        """Cells that are missing."""
        return self.seen.size - self.cells

    @cached_property
    def range(self) -> tuple[float, float] | None:
        """The least and the greatest score; None where there is none."""
        scores = self.reference + self.scores[self.seen]
        return (float(scores.min()), float(scores.max())) if scores.size else None

    @cached_property
    def n_seeds(self) -> int:
        """Seeds with at least one cell."""
        return int(self.seen.any(axis=1).sum())

    @cached_property
    def asked(self) -> Bool[np.ndarray, " questions"]:
        """Whether a question has at least one cell."""
        return np.asarray(self.seen.any(axis=0))

    @cached_property
    def mean(self) -> float:
        """Over all cells; NaN where there is none."""
        return self.reference + self._mean if self.cells else float("nan")

    @cached_property
    def _mean(self) -> float:
        return float(self.scores.sum() / self.cells)

    @cached_property
    def seed_means(self) -> Float[np.ndarray, " seeds"]:
        """Mean of each seed over its questions; NaN for a seed without any."""
        return self.reference + _divide(self.scores.sum(1), self.seen.sum(1), empty=float("nan"))

    @cached_property
    def by_seed(self) -> Part:
        """The error from the seeds."""
        return clustered(self._contributions(1), self.seen.sum(1) / self.cells)

    @cached_property
    def by_question(self) -> Float[np.ndarray, " questions"]:
        """What each question adds to the mean's deviation: sum 0."""
        return self._contributions(0)

    @cached_property
    def shares(self) -> Float[np.ndarray, " questions"]:
        """The share of the cells that each question has."""
        return np.asarray(self.seen.sum(0) / self.cells)

    def _contributions(self, over: int) -> Float[np.ndarray, " n"]:
        """What each seed (over axis 1) or question (over 0) adds to the mean's deviation: sum 0."""
        sums = self.scores.sum(over) - self._mean * self.seen.sum(over)
        return np.asarray(sums / self.cells)

    def _residuals(self) -> Float[np.ndarray, "seeds questions"]:
        """What each cell adds beyond what its seed and its question do."""
        by_seed = _divide(self.scores.sum(1), self.seen.sum(1))[:, None]
        by_question = _divide(self.scores.sum(0), self.seen.sum(0))[None, :]
        additive = by_seed + by_question - self._mean
        return np.where(self.seen, self.scores - additive, 0.0) / self.cells

    def mean_if_missing_were(self, score: float) -> float:
        """The mean over all cells, had each missing one this score."""
        total = self.scores.sum() + self.missing * (score - self.reference)
        return self.reference + float(total / self.seen.size)

    def membership(self, by_topic: bool) -> Float[np.ndarray, "questions clusters"]:
        """One-hot clusters of the questions: their topics, or themselves."""
        return self._topics if by_topic else np.eye(len(self.topics))

    @cached_property
    def _topics(self) -> Float[np.ndarray, "questions clusters"]:
        codes: dict[Hashable, int] = {}
        columns = [codes.setdefault(topic, len(codes)) for topic in self.topics]
        return np.eye(len(codes))[columns]

    def overlap(self, by_topic: bool) -> Part:
        """What both the seed part and the question part contain, clustered by both."""
        return self._topic_overlap if by_topic else self._question_overlap

    @cached_property
    def _topic_overlap(self) -> Part:
        return self._overlap(self.membership(True))

    @cached_property
    def _question_overlap(self) -> Part:
        return self._overlap(self.membership(False))

    def _overlap(self, membership: Float[np.ndarray, "questions clusters"]) -> Part:
        free_seeds = self.n_seeds - 1
        roots = np.sqrt(np.sum((self._residuals() @ membership) ** 2, axis=0))  # (clusters,)
        found = clustered(roots, self.seen.sum(0) @ membership / self.cells)
        return Part(
            found.variance * (free_seeds + 1) / free_seeds,
            found.degrees_of_freedom * free_seeds,
        )


def clustered(sums: Float[np.ndarray, " clusters"], shares: Float[np.ndarray, " clusters"]) -> Part:
    """Variance of a mean from its contributions summed by cluster, with CR2 weights.

    Source: Bell and McCaffrey (2002), with the identity as working covariance of the cells (Imbens
    and Kolesár 2016). With equal shares: K / (K - 1) times the sum of squares, K - 1 degrees of
    freedom. With a single cluster nothing can be estimated, and the variance is given as 0.
    """
    kept = shares > 0
    sums, shares = sums[kept], shares[kept]
    if len(shares) < 2:
        return Part(0.0, float("nan"))
    # The weighted sums are linear in the clusters' own, whose working variances are their shares.
    linear = (np.eye(len(shares)) - shares[:, None]) / np.sqrt(1 - shares)[:, None]
    covariance = (linear * shares) @ linear.T  # (clusters, clusters)
    degrees_of_freedom = float(np.trace(covariance) ** 2 / np.sum(covariance**2))
    return Part(float(np.sum(sums**2 / (1 - shares))), degrees_of_freedom)


def _divide(
    sums: Float[np.ndarray, " n"], counts: Int[np.ndarray, " n"], empty: float = 0.0
) -> Float[np.ndarray, " n"]:
    """Means, with ``empty`` where there is nothing to average."""
    return np.where(counts > 0, sums / np.maximum(counts, 1), empty)
