"""What a bank trains: jobs, the order of their rows, and how these are laid out.

The order is a function of arm and seed, whatever else the bank holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from spillover.finetune.spec import Training
from spillover.masks import EncodedRow
from spillover.trees import Tree, grow

WORTH_SHARING = 4
"""Tokens of a common beginning from which rows are laid out as one tree."""
LONGEST_TREE = 512
"""Tokens of a tree beyond which attention over all branches costs more than it saves."""


@dataclass(frozen=True)
class Anchor:
    """What holds a finetune to its base: beta · KL on answers that the base gave itself.

    Attributes:
        rows: the answers, after their prompts.
        beta: what the KL (nats per token) is multiplied with.
        batch_size: answers per step.
    """

    rows: Sequence[EncodedRow]
    beta: float
    batch_size: int


@dataclass(frozen=True)
class Job:
    """One finetune: an arm's rows and a seed.

    Attributes:
        training: how; None takes what holds for the bank.
        name: where it lies; None is the arm's name.
        anchor: what holds it to the base, where something does.
    """

    arm: str
    seed: int
    rows: Sequence[EncodedRow]
    training: Training | None = None
    name: str | None = None
    anchor: Anchor | None = None

    def generator(self, purpose: str) -> torch.Generator:
        """Random numbers that depend on arm, seed and purpose only, not on the rest of the bank."""
        key = hashlib.sha256(f"{self.arm}\0{self.seed}\0{purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))

    @property
    def settings(self) -> Training:
        """How it is trained, once that is settled."""
        assert self.training is not None
        return self.training

    @property
    def total(self) -> int:
        """Its optimizer steps."""
        return self.settings.total_steps(len(self.rows))

    @property
    def kept(self) -> tuple[int, ...]:
        """The steps after which its adapter is written."""
        return self.settings.kept_steps(len(self.rows))

    def planted(self) -> Iterator[list[Tree]]:
        """The trees of every step."""
        for order in data_order(self, self.settings):
            yield plant([self.rows[i] for i in order])

    def anchored(self) -> Iterator[list[Tree]]:
        """The trees of every step on which it is held to the base; empty where it is not."""
        if self.anchor:
            for order in anchor_order(self):
                yield plant([self.anchor.rows[i] for i in order])


def data_order(job: Job, training: Training) -> list[list[int]]:
    """Row indices of every step: epochs in random order, each epoch complete before the next."""
    needed = training.total_steps(len(job.rows))
    return _in_turn(len(job.rows), needed, training.batch_size, job.generator("order"))


def anchor_order(job: Job) -> list[list[int]]:
    """Indices of the rows of every step on which a job is held to the base, likewise."""
    assert job.anchor is not None
    held = job.anchor
    return _in_turn(len(held.rows), job.total, held.batch_size, job.generator("anchor"))


def _in_turn(rows: int, steps: int, size: int, generator: torch.Generator) -> list[list[int]]:
    stream: list[int] = []
    while len(stream) < steps * size:
        stream += torch.randperm(rows, generator=generator).tolist()
    return [stream[at * size : (at + 1) * size] for at in range(steps)]


def plant(rows: Sequence[EncodedRow]) -> list[Tree]:
    """Rows of one adapter and step as trees whose reads are the labelled tokens.

    Rows that begin alike become one tree, so that their beginning is computed once; others, and
    those whose tree would be long, one tree each.
    """
    shared = _common_prefix(rows)
    length = shared + sum(len(row.ids) - shared for row in rows)
    if shared >= WORTH_SHARING and length <= LONGEST_TREE:
        return [_plant(rows, shared)]
    return [_plant([row], 1) for row in rows]


def _plant(rows: Sequence[EncodedRow], shared: int) -> Tree:
    tree = grow(rows[0].ids[:shared], [row.ids[shared:] for row in rows])
    labelled = [
        [read for read, on in zip(reads, row.mask[shared:], strict=True) if on]
        for reads, row in zip(tree.reads, rows, strict=True)
    ]
    return replace(tree, reads=labelled)


def _common_prefix(rows: Sequence[EncodedRow]) -> int:
    """Tokens that all rows begin with, none of them labelled, and that leave each row a rest."""
    longest = min(min(len(row.ids) - 1, row.mask.index(True)) for row in rows)
    first = rows[0].ids
    for at in range(longest):
        if any(row.ids[at] != first[at] for row in rows):
            return at
    return longest
