"""Batches: conversations padded to one length, or text cut into windows.

Which batch belongs to which step is a pure function of (seed, step): a resumed run sees the same data without
a saved position. Refuses to know files, templates, models and devices.

    >>> batches = ChatBatches(examples, batch_size=64, seed=1); batches[0].ids.shape
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm.train.data import Example, Ids

IGNORE = -100
"""Target of a position that has none: padding, or a token the model is not taught to write."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step learns from.

    Attributes:
        ids: (B, T) input ids, int64; padding is id 0 after the last token, which no earlier token sees.
        targets: (B, T) the id that follows each, or IGNORE.
        weights: (B, T) float32 share of each target in the loss; 0 where the target is IGNORE.
        segments: (B, T) which of its row's sequences each token belongs to, -1 for padding; None where a row
            is one sequence.
        positions: (B, T) each token's place in its sequence; None for 0, 1, 2…
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor
    segments: Tensor | None = None
    positions: Tensor | None = None

    @property
    def num_targets(self) -> int:
        """Tokens the loss looks at."""
        return int((self.targets != IGNORE).sum())

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def split(self, num_rows: int) -> list[Batch]:
        """Its rows in parts of so many, each cut after its last target; the last part may have fewer.

        Attention is causal, so what stands after a row's last target has no say in the loss.
        """
        parts = []
        for start in range(0, len(self.ids), num_rows):
            wanted = (self.targets[start : start + num_rows] != IGNORE).any(0)  # (T,)
            length = int(wanted.nonzero().max()) + 1 if bool(wanted.any()) else 0
            if length:
                parts.append(self._each(lambda t, i=start, n=length: t[i : i + num_rows, :n]))  # type: ignore[misc]
        return parts

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            change(self.ids),
            change(self.targets),
            change(self.weights),
            None if self.segments is None else change(self.segments),
            None if self.positions is None else change(self.positions),
        )


class Batches(Protocol):
    """Batches by step number, without end: step n is the same batch every time it is asked for."""

    def __getitem__(self, step: int) -> Batch: ...

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every example is seen once."""


def collate(examples: Sequence[Example], prompt_weight: float = 0.0) -> Batch:
    """Pad conversations to the longest of them.

    Args:
        examples: at least one, each of at least two ids.
        prompt_weight: weight of the targets the model is not taught to write; 0 leaves them out.
    """
    length = max(len(example.ids) for example in examples) - 1
    ids = np.zeros((len(examples), length), dtype=np.int64)  # (B, T)
    targets = np.full((len(examples), length), IGNORE, dtype=np.int64)  # (B, T)
    weights = np.zeros((len(examples), length), dtype=np.float32)  # (B, T)
    for row, example in enumerate(examples):
        count = len(example.ids) - 1
        ids[row, :count] = example.ids[:-1]
        targets[row, :count], weights[row, :count] = targets_of(example, prompt_weight)
    return Batch(torch.from_numpy(ids), torch.from_numpy(targets), torch.from_numpy(weights))


def targets_of(
    example: Example, prompt_weight: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """What follows each id but the last, or IGNORE, and its weight in the loss: both (n-1,)."""
    weight = np.where(example.trained[1:], 1.0, prompt_weight).astype(np.float32)
    return np.where(weight > 0, example.ids[1:], IGNORE).astype(np.int64), weight


class ChatBatches:
    """Conversations in batches of like length.

    Each epoch shuffles the examples, sorts runs of 32 batches by length, so that little is padding, and
    shuffles the batches again.

    Args:
        examples: at least one.
        batch_size: conversations per batch; the last batch of an epoch may have fewer.
        seed: of the shuffles.
        prompt_weight: as in `collate`.
    """

    RUN = 32

    def __init__(
        self, examples: Sequence[Example], batch_size: int, seed: int, prompt_weight: float = 0.0
    ) -> None:
        assert examples and batch_size > 0
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.prompt_weight = prompt_weight
        self._lengths = np.array([len(example.ids) for example in examples])
        self._epoch = -1
        self._order: list[npt.NDArray[np.intp]] = []

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        return collate([self.examples[i] for i in self._order[index]], self.prompt_weight)

    def _shuffle(self, epoch: int) -> list[npt.NDArray[np.intp]]:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.examples))
        run = self.RUN * self.batch_size
        batches = []
        for start in range(0, len(order), run):
            part = order[start : start + run]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        return [batches[i] for i in random.permutation(len(batches))]


class TextBatches:
    """Windows of one long stream of ids, every target trained.

    Args:
        ids: all documents, one after another.
        window: T, inputs per row; the stream needs window + 1 ids.
        batch_size: rows per batch.
        seed: of the shuffles; each epoch also cuts at another offset, leaving out less than a window.
    """

    def __init__(self, ids: Ids, window: int, batch_size: int, seed: int) -> None:
        assert len(ids) > window > 0 and batch_size > 0
        self.ids = ids
        self.window = window
        self.batch_size = batch_size
        self.seed = seed

    @property
    def steps_per_epoch(self) -> int:
        return -(-self._num_windows // self.batch_size)

    @property
    def _num_windows(self) -> int:
        return (len(self.ids) - 1) // self.window

    def __getitem__(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        random = np.random.default_rng([self.seed, epoch])
        slack = len(self.ids) - 1 - self._num_windows * self.window
        offset = int(random.integers(slack + 1))
        chosen = random.permutation(self._num_windows)[
            index * self.batch_size : (index + 1) * self.batch_size
        ]
        starts = offset + chosen * self.window  # (B,)
        rows = self.ids[starts[:, None] + np.arange(self.window + 1)].astype(np.int64)  # (B, T+1)
        ids, targets = torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())
        return Batch(ids, targets, torch.ones(ids.shape))
