"""Batch in, logits out: the only place that moves data between host and device.

`eager` runs the torch model on any device; `native` runs a kernel of our own on CPUs.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

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


class Runner(Protocol):
    """Computes batches of one model on one device and owns the storage behind block ids."""

    device: torch.device

    @property
    def about(self) -> str:
        """What computes and in which formats, for people: "eager runner, float32"."""
        ...

    def run(self, batch: Batch) -> StepOutput:
        """Copy the blocks that the batch says, compute every chunk, and return what it wants to know: tensors
        that are good until the next call.
        """
