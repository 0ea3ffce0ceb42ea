"""The eager runner: the torch model as it is, on CPU, CUDA or MPS. The oracle of every faster runner.

Refuses to know why these chunks were chosen and what is drawn from the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm.adapt.rows import Shelf
from llm.batch import Batch
from llm.config import EngineConfig
from llm.kv.paged import PagedKV, PagedStep
from llm.model import Decoder
from llm.runner import StepOutput

FEW_ROWS = 8
"""Rows up to which a CPU multiplies the head from the left."""


class EagerRunner:
    """Runs batches on the device and in the dtype the model already has."""

    def __init__(self, model: Decoder, config: EngineConfig) -> None:
        self.model = model
        self.shelf = Shelf(model)
        self.device = model.device
        self.kv = PagedKV(model.config, config, model.device, model.tokens.weight.dtype)

    @property
    def about(self) -> str:
        """See Runner."""
        return f"eager runner, {str(self.model.tokens.weight.dtype).removeprefix('torch.')}"

    @torch.inference_mode()
    def run(self, batch: Batch) -> StepOutput:
        """See Runner."""
        chunks = batch.chunks
        self.kv.copy(batch.copies)
        ids = [token for c in chunks for token in c.tokens]
        positions = [position for c in chunks for position in c.positions]
        sizes = [len(c.positions) for c in chunks]
        step = PagedStep(
            self.kv,
            [c.sequence.block_ids for c in chunks],
            [c.start for c in chunks],
            sizes,
        )
        project = self.shelf.project([(c.sequence.adapter, n) for c, n in zip(chunks, sizes, strict=True)])
        hidden = self.model(self._to_device(ids), self._to_device(positions), step, project)  # (T, C)
        embedded = torch.split(hidden, sizes)
        wanted = [part for c, part in zip(chunks, embedded, strict=True) if c.sequence.embeds]
        asked = hidden if len(batch.rows) == len(hidden) else hidden[self._to_device(batch.rows)]  # (M, C)
        return StepOutput(self._logits(asked), torch.cat(wanted) if wanted else hidden[:0])

    def _logits(self, hidden: Tensor) -> Tensor:
        """The model's logits, (M, C) → (M, V), the head times columns where that is faster.

        Rows times a transposed matrix reads it slowly on a CPU when the rows are few: one row by a head of
        50257 × 192 takes 6 ms, two columns 2.7 ms (float32, one Zen 4 core); from 16 rows on they are equal.
        """
        num_rows = len(hidden)
        if self.device.type != "cpu" or not 0 < num_rows <= FEW_ROWS:
            return self.model.logits(hidden)
        columns = hidden.repeat(2, 1) if num_rows == 1 else hidden
        return (self.model.head_weight @ columns.t())[:, :num_rows].t().contiguous()

    def _to_device(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long).to(self.device, non_blocking=True)
