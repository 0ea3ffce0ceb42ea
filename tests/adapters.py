"""Adapters with something to say: material for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from llm.adapt.adapter import Adapter
from llm.adapt.lora import new_adapter
from llm.adapt.targets import ALL, choose, find_targets
from llm.config import AdapterRoom, ModelConfig


def random_adapter(
    config: ModelConfig, seed: int = 0, *, targets: str = ALL, rank: int = 3, alpha: float = 6.0
) -> Adapter:
    """One whose B is not zero any more, wide enough to change what a model says."""
    adapter = new_adapter(choose(find_targets(config), targets), rank=rank, alpha=alpha, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    parts = (replace(p, b=torch.randn(p.b.shape, generator=generator) * 0.3) for p in adapter.parts)
    return replace(adapter, parts=tuple(parts))


def room_for(adapters: Mapping[str, Adapter]) -> AdapterRoom:
    """What holds these and no more."""
    ranks = (part.rank for adapter in adapters.values() for part in adapter.parts)
    return AdapterRoom(len(adapters), max(ranks, default=0))
