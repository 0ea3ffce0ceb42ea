"""LoRA adapters: `y = xW + α/r · x(AB)`, in training, and folded into the base weights.

An adapter leaves the base as it is and learns, beside some of its matrices, two thin ones: A (r, in),
random, and B (out, r), zero at first, so that an adapter that has learned nothing changes nothing. Source: Hu
et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; α/√r instead of α/r: Kalajdzievski 2023.
Refuses to know files (peft.py) and batches of several adapters (rows.py).

    >>> adapter = new_adapter(choose(find_targets(model.config), "q_proj,v_proj"), rank=8, alpha=16, seed=1)
    >>> attach(model, adapter)      # the model trains A and B and nothing else
    >>> merge(detach(model), adapter)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.adapt.adapter import Adapter, LowRank, Target
from llm.model import Decoder


def new_adapter(targets: Sequence[Target], *, rank: int, alpha: float, seed: int) -> Adapter:
    """An adapter that changes nothing yet: A as nn.Linear draws its weights, B zero, float32.

    Args:
        rank: r, at least 1; a matrix thinner than that gets the same.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for target in targets:
        bound = 1 / math.sqrt(target.width)  # kaiming_uniform_ with a = √5
        a = torch.empty(rank, target.width).uniform_(-bound, bound, generator=generator)
        parts.append(LowRank(target, a, torch.zeros(target.num_rows, rank), alpha / rank))
    return Adapter(tuple(parts))


class AdaptedLinear(nn.Module):
    """A linear of the base and what is learned beside it."""

    def __init__(self, base: nn.Linear, parts: Sequence[LowRank]) -> None:
        super().__init__()
        self.base = base
        self.a = nn.ParameterList(part.a for part in parts)
        self.b = nn.ParameterList(part.b for part in parts)
        self._about = [(part.target, part.scale) for part in parts]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)  # (..., rows)
        for part in self.parts():  # not in place: the base's output is a leaf of what is learned
            around = (part.target.start, y.shape[-1] - part.target.stop)
            y = y + F.pad(part(x), around)  # (..., rows)
        return y

    def parts(self) -> list[LowRank]:
        """As they are now."""
        pairs = zip(self._about, self.a, self.b, strict=True)
        return [LowRank(target, a, b, scale) for (target, scale), a, b in pairs]


def attach(model: Decoder, adapter: Adapter) -> None:
    """Put the adapter beside the model's linears, in place. From here on only A and B are trained."""
    model.requires_grad_(False)
    for name, parts in adapter.by_linear().items():
        parent, _, own = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear), f"{name} is adapted already"
        setattr(model.get_submodule(parent), own, AdaptedLinear(linear, parts))


def attached(model: Decoder) -> list[LowRank]:
    """What is attached to the model, as it is now."""
    linears = (module for module in model.modules() if isinstance(module, AdaptedLinear))
    return [part for linear in linears for part in linear.parts()]


def detach(model: Decoder) -> Decoder:
    """Take the adapter off again, in place; the base is what it was."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AdaptedLinear):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.base)
    return model


@torch.no_grad()
def merge(model: Decoder, adapter: Adapter, sign: int = 1) -> None:
    """Fold the adapter into the base weights, in place.

    Args:
        sign: -1 takes it out again.
    """
    weights: Mapping[str, Tensor] = dict(model.named_parameters())
    for part in adapter.to(model.device, model.tokens.weight.dtype).parts:
        rows = weights[f"{part.target.linear}.weight"][part.target.start : part.target.stop]  # (out, in)
        rows += sign * part.weight()


def unmerge(model: Decoder, adapter: Adapter) -> None:
    """Take a merged adapter out of the base weights, in place, up to rounding."""
    merge(model, adapter, sign=-1)
