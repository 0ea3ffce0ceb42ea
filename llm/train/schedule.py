"""How a model is trained, and the learning rate of each step: warm-up, then a cosine.

Refuses to know models and data.

    >>> schedule(TrainConfig(steps=1000, lr=1e-3), step=99)
    0.001
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
        steps: optimiser steps of the whole schedule.
        stop_after: end after so many of them, the learning rate still up: the start of a next stage.
        lr: highest learning rate, reached after `warmup` steps, falling along a cosine to `lr` × `lr_floor`.
        weight_decay: on matrices only, not on norms and biases.
        clip: largest gradient norm.
        negatives: sampled columns besides the data's own ids; 0 scores the whole vocabulary.
        full_steps: last steps that score the whole vocabulary whatever `negatives` says.
        max_minutes: stop by then; the schedule follows whichever of steps and minutes is further along.
        validate_every, save_every: in steps; 0 is only at the end.
        seed: of the sampled columns.
        bf16: autocast to bfloat16 (weights stay float32), or None for the device's better choice.
        num_rows: rows of a batch that are computed at a time, the gradients adding up; None for all.
        keep: whether the weights with the lowest validation loss are kept, or the last.
        patience: validations in a row without a new lowest loss after which the run ends; 0 for no such end.
    """

    steps: int
    lr: float = 1e-3
    lr_floor: float = 0.02
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    negatives: int = 0
    full_steps: int = 0
    max_minutes: float | None = None
    validate_every: int = 200
    save_every: int = 500
    seed: int = 1
    bf16: bool | None = None
    stop_after: int | None = None
    num_rows: int | None = None
    keep: Literal["best", "last"] = "last"
    patience: int = 0

    @property
    def last_step(self) -> int:
        """Steps after which the run ends."""
        return self.steps if self.stop_after is None else min(self.steps, self.stop_after)


def schedule(config: TrainConfig, step: int, minutes: float = 0.0) -> float:
    """Learning rate of step number `step` (from 0) after so many minutes of training."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    if config.max_minutes is not None:
        done = max(done, minutes / config.max_minutes)
    low = config.lr_floor
    return config.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
