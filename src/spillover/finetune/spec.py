"""What a finetune is: method, size, rate, length. One specification holds for all arms."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Training(BaseModel):
    """Settings of a finetune; the same for every arm and seed of a run.

    Attributes:
        method: `lora` trains low-rank adapters, `full` all weights.
        rank: rank of the low-rank update.
        alpha: the update is scaled by alpha / rank; none means twice the rank.
        targets: `all-linear` (every linear layer of the blocks) or names of layers.
        learning_rate: peak rate of AdamW.
        schedule: what the rate does after the warm-up.
        warmup_steps: steps of linear warm-up.
        steps: optimizer steps; give this or `epochs`.
        epochs: passes over the training rows.
        batch_size: rows per step.
        max_grad_norm: the gradient of an adapter is clipped to this norm.
        checkpoints: steps after which an adapter is also kept; the last one always is.
        precision: the numbers in which a low-rank finetune multiplies frozen weights. `auto` is
            bfloat16 where the machine computes in it, unless the model was loaded in a dtype that
            was asked for. Adapters and what optimizes them are float32 always.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Literal["lora", "full"] = "lora"
    rank: int = Field(default=8, ge=1, le=65_536)
    alpha: float | None = Field(default=None, gt=0)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    learning_rate: float = Field(default=2e-4, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: int = Field(default=5, ge=0)
    steps: int | None = Field(default=None, ge=1, le=10_000_000)
    epochs: float | None = Field(default=None, gt=0, le=100_000)
    batch_size: int = Field(default=8, ge=1, le=1_000_000)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    checkpoints: tuple[int, ...] = ()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    @model_validator(mode="after")
    def _has_a_length(self) -> Training:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either `steps` or `epochs`")
        if any(step < 1 for step in self.checkpoints):
            raise ValueError("`checkpoints` are steps from 1 up")
        return self

    @property
    def scaling(self) -> float:
        """What the low-rank product is multiplied with."""
        return (self.alpha or 2 * self.rank) / self.rank

    def total_steps(self, rows: int) -> int:
        """Optimizer steps for a training set of that many rows."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * rows / self.batch_size))

    def with_steps(self, rows: int) -> Training:
        """The same settings with the length in steps, for a training set of that many rows."""
        return self.model_copy(update={"steps": self.total_steps(rows), "epochs": None})

    def kept_steps(self, rows: int) -> tuple[int, ...]:
        """Steps after which an adapter is written, in ascending order."""
        last = self.total_steps(rows)
        return (*sorted({step for step in self.checkpoints if step < last}), last)

    def rate(self, step: int, total: int) -> float:
        """The learning rate of a step counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        shape = {
            "constant": 1.0,
            "linear": 1.0 - done,
            "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        }
        return self.learning_rate * shape[self.schedule]
