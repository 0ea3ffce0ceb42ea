"""The eager runner: the torch model as it is, on CPU, CUDA or MPS. The oracle of every faster runner.

Refuses to know why these chunks were chosen and what is drawn from the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm.config import EngineConfig
from llm.kv.paged import PagedKV, PagedStep
from llm.model import Decoder
from llm.scheduler import Batch


class EagerRunner:
    """Runs batches on the device and in the dtype the model already has."""

    def __init__(self, model: Decoder, config: EngineConfig) -> None:
        self.model = model
        self.device = model.device
        self.kv = PagedKV(model.config, config, model.device, model.tokens.weight.dtype)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        """See Runner."""
        chunks = batch.chunks
        ids = [token for c in chunks for token in c.sequence.tokens(c.start, c.start + c.length)]
        positions = [position for c in chunks for position in range(c.start, c.start + c.length)]
        step = PagedStep(
            self.kv,
            [c.sequence.block_ids for c in chunks],
            [c.start for c in chunks],
            [c.length for c in chunks],
        )
        hidden = self.model(self._to_device(ids), self._to_device(positions), step)  # (T, C)
        rows, end = [], 0
        for chunk in chunks:
            end += chunk.length
            if chunk.wants_token:
                rows.append(end - 1)
        if len(rows) < len(hidden):
            hidden = hidden[self._to_device(rows)]  # (M, C)
        return self.model.logits(hidden)  # (M, V)

    def _to_device(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long).to(self.device, non_blocking=True)
