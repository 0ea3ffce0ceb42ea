"""LoRA adapters as the kernel reads them: of each layer of each one the low ranks beside its five matrices.

Where an adapter has parts for several blocks of one matrix (q, k, v of a fused qkv), they become one: A's
under each other, B's in blocks of their own, zeros elsewhere. The scale is multiplied into B. Refuses to know
files and steps.

    >>> beside = AdapterWeights(config, {"pirate": adapter}); beside.index["pirate"]
    0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from llm.adapt.lora import Adapter, LowRank
from llm.config import ModelConfig
from llm.runner.native import binding
from llm.runner.native.binding import Matrix
from llm.runner.native.pack import PANEL, PackedMatrix, pack

_LINEARS = ("attention.qkv", "attention.out", "ffn.gate", "ffn.up", "ffn.down")


class AdapterWeights:
    """The kernel's view of some adapters: structures, and the arrays they point to.

    Attributes:
        index: an adapter's name → its place.
        layers: for `Model.adapters`: (adapters, layers).
        max_rank: of all matrices, in whole panels.
    """

    def __init__(self, config: ModelConfig, adapters: Mapping[str, Adapter]) -> None:
        self.index = {name: i for i, name in enumerate(adapters)}
        self.max_rank = 0
        self._keep: list[PackedMatrix | NDArray[np.float32]] = []
        found = [adapter.by_linear() for adapter in adapters.values()]
        self.layers = (binding.Adapter * (len(found) * config.num_layers))(
            *(self._layer(parts, layer) for parts in found for layer in range(config.num_layers))
        )

    def _layer(self, parts: Mapping[str, Sequence[LowRank]], layer: int) -> binding.Adapter:
        linears = (parts.get(f"blocks.{layer}.{name}", ()) for name in _LINEARS)
        return binding.Adapter(*(self._low_rank(own) for own in linears))

    def _low_rank(self, parts: Sequence[LowRank]) -> binding.LowRank:
        """Of one matrix; an empty one where the adapter has nothing."""
        if not parts:
            return binding.LowRank()
        rank, num_out = sum(part.rank for part in parts), max(part.target.stop for part in parts)
        a = pack(torch.cat([part.a.float() for part in parts]))
        b = torch.zeros(-(-num_out // PANEL) * PANEL, rank)
        column = 0
        for part in parts:
            b[part.target.start : part.target.stop, column : column + part.rank] = part.b * part.scale
            column += part.rank
        panels = b.view(-1, PANEL, rank).transpose(1, 2).contiguous().numpy()  # (panels, rank, 16)
        self._keep += [a, panels]
        self.max_rank = max(self.max_rank, -(-rank // PANEL) * PANEL)
        matrix = Matrix(a.panels.ctypes.data, None, binding.FORMATS[a.format], rank, a.num_in)
        return binding.LowRank(matrix, panels.ctypes.data)
