"""Rows of several adapters, and of none, in one forward pass over one base.

Each linear computes the base for all rows at once; then, adapter by adapter, the rows that want one get its
two thin products on top. `AdaptedLinear` is the slow twin: one adapter at a time, for all rows. Refuses to
know sequences and how rows came together.

    >>> shelf = Shelf(model); shelf.prepare("pirate", adapter)()
    >>> hidden = model(ids, positions, cache, shelf.project([("", 3), ("pirate", 1)]))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from llm.adapt.adapter import Adapter, LowRank
from llm.model import Decoder, Project, plainly


class Shelf:
    """The adapters that one model on one device serves with, by name; "" is the base alone."""

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self._parts: dict[nn.Module, dict[str, list[LowRank]]] = {}

    def prepare(self, name: str, adapter: Adapter) -> Callable[[], None]:
        """See AdapterShelf."""
        placed = adapter.to(self._model.device, self._model.tokens.weight.dtype).by_linear()

        def put() -> None:
            for linear, parts in placed.items():
                self._parts.setdefault(self._model.get_submodule(linear), {})[name] = parts

        return put

    def remove(self, name: str) -> None:
        """See AdapterShelf."""
        for by_name in self._parts.values():
            by_name.pop(name, None)

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
        places = {name: torch.tensor(of).to(self._model.device) for name, of in rows.items()}

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
