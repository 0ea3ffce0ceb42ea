"""Rows of several adapters, and of none, in one forward pass over one base.

Each linear computes the base for all rows at once; then, adapter by adapter, the rows that want one get its
two thin products on top. `AdaptedLinear` is the slow twin: one adapter at a time, for all rows. Refuses to
know sequences and how rows came together.

    >>> shelf = Shelf(model, {"pirate": adapter})
    >>> hidden = model(ids, positions, cache, shelf.project([("", 3), ("pirate", 1)]))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from llm.adapt.lora import Adapter, LowRank
from llm.model import Decoder, Project, plainly


class Shelf:
    """The adapters that one model on one device serves with, by name; "" is the base alone."""

    def __init__(self, model: Decoder, adapters: Mapping[str, Adapter]) -> None:
        self._device = model.device
        self._parts: dict[nn.Module, dict[str, list[LowRank]]] = {}
        for name, adapter in adapters.items():
            placed = adapter.to(model.device, model.tokens.weight.dtype)
            for linear, parts in placed.by_linear().items():
                self._parts.setdefault(model.get_submodule(linear), {})[name] = parts

    def project(self, runs: Sequence[tuple[str, int]]) -> Project:
        """How this batch's linears are computed.

        Args:
            runs: of the batch's rows in order: whose adapter, and how many rows.
        """
        rows: dict[str, list[int]] = {}
        start = 0
        for name, count in runs:
            if name:
                rows.setdefault(name, []).extend(range(start, start + count))
            start += count
        if not rows:
            return plainly
        everyone = {name for name, places in rows.items() if len(places) == start}
        places = {name: torch.tensor(of).to(self._device) for name, of in rows.items()}

        def project(linear: nn.Linear, x: Tensor) -> Tensor:
            y: Tensor = linear(x)  # (T, rows of the matrix)
            for name, parts in self._parts.get(linear, {}).items():
                if name in everyone:
                    for part in parts:
                        y[:, part.target.start : part.target.stop] += part(x)
                elif name in places:
                    own = x[places[name]]  # (n, in)
                    for part in parts:
                        columns = y[:, part.target.start : part.target.stop]
                        columns.index_add_(0, places[name], part(own))
            return y

        return project
