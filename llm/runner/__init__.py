"""Batch in, logits out: the only place that moves data between host and device.

`eager` runs the torch model on any device; `native` runs a kernel of our own on CPUs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llm.adapt.adapter import Adapter
from llm.batch import Batch
from llm.sampler import Sampler
from llm.sampler.eager import EagerSampler


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step computed.

    Attributes:
        logits: of `batch.rows`, (M, V), M ≥ 0.
        hidden: final hidden states of the chunks that embed, (E, C), E ≥ 0, their tokens in order.
        sampler: what draws from such logits; torch does from any.
    """

    logits: Tensor
    hidden: Tensor
    sampler: Sampler = EagerSampler()


class AdapterShelf(Protocol):
    """The adapters that a runner computes with, by the names that sequences give."""

    def prepare(self, name: str, adapter: Adapter) -> Callable[[], None]:
        """Copy an adapter to where and how this runner computes: what takes time, on any thread.

        Returns:
            What puts it on the shelf, to be called between two steps.
        """

    def remove(self, name: str) -> None:
        """Between two steps: no sequence has that name any more. Harmless when it is not there."""


class Runner(Protocol):
    """Computes batches of one model on one device and owns the storage behind block ids."""

    device: torch.device

    @property
    def shelf(self) -> AdapterShelf:
        """What it computes with beside the base's weights."""
        ...

    @property
    def about(self) -> str:
        """What computes and in which formats, for people: "eager runner, float32"."""
        ...

    def run(self, batch: Batch) -> StepOutput:
        """Copy the blocks that the batch says, compute every chunk, and return what it wants to know: tensors
        that are good until the next call.
        """
