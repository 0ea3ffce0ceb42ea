"""Batch in, logits out: the only place that moves data between host and device.

`eager` runs the torch model on any device; others join behind the same call.
"""

from typing import Protocol

from torch import Tensor

from llm.scheduler import Batch


class Runner(Protocol):
    """Computes batches of one model on one device and owns the storage behind block ids."""

    def run(self, batch: Batch) -> Tensor:
        """Compute every chunk and return the logits of the M sequences in `batch.asking`, (M, V), M ≥ 0."""
