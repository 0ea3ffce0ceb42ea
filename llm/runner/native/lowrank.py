"""LoRA adapters as the kernel reads them: of each layer of each one the low ranks beside its five matrices.

Where an adapter has parts for several blocks of one matrix (q, k, v of a fused qkv), they become one: A's
under each other, B's in blocks of their own, zeros elsewhere. The scale is multiplied into B. The table has
its size from the start, since the kernel holds its address; adapters take places in it and leave them between
steps, when no thread reads it. Refuses to know files and steps.

    >>> table = AdapterTable(config, AdapterRoom(2, 8)); table.prepare("pirate", adapter)(); table.index
    {'pirate': 0}
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from llm.adapt.adapter import Adapter, LowRank, Target
from llm.config import AdapterRoom, ModelConfig
from llm.runner.native import binding
from llm.runner.native.binding import Matrix
from llm.runner.native.memory import Memory
from llm.runner.native.pack import PANEL, PackedMatrix, pack, panel_bytes

_Arrays = list[PackedMatrix | NDArray[np.float32]]
_MOST_PARTS = 3
"""Of one matrix: q, k and v."""


class AdapterTable:
    """The adapters that one kernel computes with: structures, and the arrays they point to.

    Attributes:
        index: an adapter's name → its place.
        layers: for `Model.adapters`: (adapters, layers).
        max_rank: that any matrix may come to, in whole panels.
    """

    def __init__(self, config: ModelConfig, room: AdapterRoom) -> None:
        self.index: dict[str, int] = {}
        self.max_rank = _whole_panels(_MOST_PARTS * room.max_rank)
        self.layers = (binding.Adapter * (room.num_adapters * config.num_layers))()
        self._num_layers = config.num_layers
        self._rows = rows_of(config)
        self._free = list(reversed(range(room.num_adapters)))
        self._keep: dict[str, _Arrays] = {}

    def prepare(self, name: str, adapter: Adapter) -> Callable[[], None]:
        """See AdapterShelf."""
        keep: _Arrays = []
        found, memory = adapter.by_linear(), Memory()  # one region for all: each is of whole large pages
        layers = [self._layer(found, layer, keep, memory) for layer in range(self._num_layers)]

        def put() -> None:
            place = self._free.pop()
            start = place * self._num_layers
            self.layers[start : start + self._num_layers] = layers
            self.index[name], self._keep[name] = place, keep

        return put

    def remove(self, name: str) -> None:
        """See AdapterShelf."""
        if (place := self.index.pop(name, None)) is None:
            return
        size = self._num_layers * ctypes.sizeof(binding.Adapter)
        ctypes.memset(ctypes.addressof(self.layers) + place * size, 0, size)
        self._free.append(place)
        del self._keep[name]

    def _layer(
        self, found: Mapping[str, Sequence[LowRank]], layer: int, keep: _Arrays, memory: Memory
    ) -> binding.Adapter:
        own = ((found.get(f"blocks.{layer}.{name}", ()), rows) for name, rows in self._rows.items())
        return binding.Adapter(*(self._low_rank(parts, rows, keep, memory) for parts, rows in own))

    def _low_rank(
        self, parts: Sequence[LowRank], num_out: int, keep: _Arrays, memory: Memory
    ) -> binding.LowRank:
        """Of one matrix; an empty one where the adapter has nothing."""
        if not parts:
            return binding.LowRank()
        rank = sum(part.rank for part in parts)
        assert _whole_panels(rank) <= self.max_rank, (rank, self.max_rank)
        a = pack(torch.cat([part.a.float() for part in parts]), memory)
        b = torch.zeros(_whole_panels(num_out), rank)
        column = 0
        for part in parts:
            b[part.target.start : part.target.stop, column : column + part.rank] = part.b * part.scale
            column += part.rank
        panels = memory.take(4 * b.numel()).view(np.float32)  # (panels, rank, 16)
        torch.from_numpy(panels).view(-1, rank, PANEL).copy_(b.view(-1, PANEL, rank).transpose(1, 2))
        keep += [a, panels]
        matrix = Matrix(a.panels.ctypes.data, None, binding.FORMATS[a.format], rank, a.num_in)
        return binding.LowRank(matrix, panels.ctypes.data)


def rows_of(config: ModelConfig) -> dict[str, int]:
    """Outputs of a layer's matrices, in the order of `Adapter`'s members. The kernel reads a row of B for
    each, whichever of them an adapter has something for.
    """
    qkv = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    width, ffn = config.width, config.ffn_width
    return {
        "attention.qkv": qkv,
        "attention.out": width,
        "ffn.gate": ffn,
        "ffn.up": ffn,
        "ffn.down": width,
    }


def table_bytes(config: ModelConfig, parts: Iterable[tuple[Target, int]]) -> int:
    """What the low ranks of an adapter take: its targets, each with its rank."""
    ranks: dict[tuple[str, int], int] = {}
    for target, rank in parts:
        matrix = target.linear, target.width
        ranks[matrix] = ranks.get(matrix, 0) + rank
    rows = rows_of(config)
    return sum(
        -(-rank // PANEL) * panel_bytes("f32", width)
        + 4 * _whole_panels(rows[linear.split(".", 2)[2]]) * rank
        for (linear, width), rank in ranks.items()
    )


def _whole_panels(count: int) -> int:
    return -(-count // PANEL) * PANEL
