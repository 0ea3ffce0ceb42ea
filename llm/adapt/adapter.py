"""What a LoRA adapter is: two thin matrices beside some of a base's. Refuses to know how it is trained
(lora.py), stored (peft.py), which matrices there are (targets.py), and how many rows it is computed for.

    >>> part.target.name, part.rank, part(x).shape
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Target:
    """One matrix that may be adapted: rows [start, stop) of a linear of ours.

    Attributes:
        name: PEFT's, as in a Hugging Face model: "model.layers.0.self_attn.q_proj".
        linear: our module: "blocks.0.attention.qkv".
        width: numbers that go in.
    """

    name: str
    linear: str
    start: int
    stop: int
    width: int

    @property
    def num_rows(self) -> int:
        """Numbers that come out."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What an adapter adds to one target's output.

    Attributes:
        a: (r, in).
        b: (out, r).
        scale: of the product.
    """

    target: Target
    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        return F.linear(F.linear(x, self.a), self.b) * self.scale

    def weight(self) -> Tensor:
        """The same as one matrix, (out, in)."""
        return (self.b @ self.a) * self.scale


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One adapter for one base model.

    Attributes:
        parts: at most one per target.
        base: the base's name, as the adapter's writer knew it; "" when it does not say.
        base_digest: of the base's weights (see Checkpoint.digest), or "".
        digest: of its own file, or "" before there is one.
    """

    parts: tuple[LowRank, ...]
    base: str = ""
    base_digest: str = ""
    digest: str = ""

    def num_parameters(self) -> int:
        """Numbers that are learned."""
        return sum(part.a.numel() + part.b.numel() for part in self.parts)

    def to(self, device: torch.device, dtype: torch.dtype) -> Adapter:
        """The same numbers elsewhere, without gradients."""
        moved = (
            replace(p, a=p.a.detach().to(device, dtype), b=p.b.detach().to(device, dtype)) for p in self.parts
        )
        return replace(self, parts=tuple(moved))

    def by_linear(self) -> dict[str, list[LowRank]]:
        """The parts of each linear of ours."""
        found: dict[str, list[LowRank]] = {}
        for part in self.parts:
            found.setdefault(part.target.linear, []).append(part)
        return found
