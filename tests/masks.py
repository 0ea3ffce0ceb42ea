"""Grammars' masks on logits, by the way that a step takes."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from llm.config import SamplingParams
from llm.grammar import Matcher, expand, next_masks
from llm.sampler import Asked
from llm.sampler.logits import adjust
from llm.sequence import Sequence


def forbid(logits: Tensor, matchers: Rows[Matcher | None]) -> None:
    """-inf over what may not come next, in place; rows without a matcher stay as they are."""
    ruled = [matcher for matcher in matchers if matcher is not None]
    if not ruled:
        return
    size = ruled[0].vocab_size
    asking = [Sequence([0], SamplingParams(1), matcher=matcher) for matcher in matchers]
    adjusted = adjust(logits, Asked.next(asking), size, expand(next_masks(ruled), logits.device))
    rows = torch.tensor([matcher is not None for matcher in matchers])
    logits[:, :size] = adjusted[:, :size].to(logits.dtype)
    logits[rows, size:] = -torch.inf  # padding, which the sampler leaves out
