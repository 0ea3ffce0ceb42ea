"""Packing: several short conversations in one row, each seeing only itself and counted from position 0.

A row's tokens carry the number of their conversation (`Batch.segments`) and their place in it
(`Batch.positions`); `attention.Apart` keeps them from seeing each other. The slow twin is `collate`, one
conversation per row: same loss, same gradients. Refuses to know files, models and devices.

    >>> batches = PackedBatches(examples, window=512, batch_size=8, seed=1)
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from llm.train.batches import IGNORE, Batch, targets_of
from llm.train.data import Example


def pack(lengths: Sequence[int], window: int) -> list[list[int]]:
    """Which conversations share a row: best fit, the longest first.

    Args:
        lengths: tokens of each, at most `window`.
        window: tokens of a row.

    Returns:
        Indices of each row; every index is in one of them.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, row), ascending
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        assert 0 < lengths[i] <= window, f"{lengths[i]} tokens in rows of {window}"
        at = bisect.bisect_left(rooms, (lengths[i], -1))
        if at == len(rooms):
            rows.append([])
            rooms.append((window, len(rows) - 1))
        room, row = rooms.pop(at)
        rows[row].append(i)
        bisect.insort(rooms, (room - lengths[i], row))
    return rows


def collate_packed(rows: Sequence[Sequence[Example]], prompt_weight: float = 0.0) -> Batch:
    """Rows of several conversations, padded to the longest.

    Args:
        rows: at least one, each with examples of at least two ids.
        prompt_weight: as in `collate`.
    """
    length = max(sum(len(example.ids) - 1 for example in row) for row in rows)
    shape = len(rows), length
    ids, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)  # (B, T)
    targets, segments = np.full(shape, IGNORE, dtype=np.int64), np.full(shape, -1, dtype=np.int64)  # (B, T)
    weights = np.zeros(shape, dtype=np.float32)  # (B, T)
    for r, row in enumerate(rows):
        start = 0
        for number, example in enumerate(row):
            count = len(example.ids) - 1
            part = np.s_[r, start : start + count]
            ids[part], positions[part], segments[part] = example.ids[:-1], np.arange(count), number
            targets[part], weights[part] = targets_of(example, prompt_weight)
            start += count
    return Batch(*map(torch.from_numpy, (ids, targets, weights, segments, positions)))


class PackedBatches:
    """Conversations packed into rows once, and the rows shuffled each epoch.

    Args:
        examples: at least one, each of at most window + 1 ids.
        window: T, tokens per row.
        batch_size: rows per batch; the last batch of an epoch may have fewer.
        seed: of the shuffles.
        prompt_weight: as in `collate`.
    """

    def __init__(
        self, examples: Sequence[Example], window: int, batch_size: int, seed: int, prompt_weight: float = 0.0
    ) -> None:
        assert examples and batch_size > 0
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.prompt_weight = prompt_weight
        self.rows = pack([len(example.ids) - 1 for example in examples], window)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        order: npt.NDArray[np.intp] = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
        rows = [[self.examples[i] for i in self.rows[row]] for row in chosen]
        return collate_packed(rows, self.prompt_weight)
