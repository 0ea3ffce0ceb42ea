"""The sampler in torch: logits of any type on any device. The oracle of every faster one."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.grammar.matcher import expand
from llm.sampler import Asked
from llm.sampler.draws import prepare, sample
from llm.sampler.logits import adjust
from llm.sampler.logprobs import measure
from llm.sequence import Logprob


class EagerSampler:
    """See Sampler. Keeps nothing between steps."""

    def draw(
        self, logits: Tensor, asked: Asked, vocab_size: int, masks: NDArray[np.uint8] | None = None
    ) -> list[int]:
        """See Sampler."""
        chosen = _rows(logits, asked.rows)  # (M, V)
        bias = None if masks is None else expand(masks, logits.device)
        adjusted = adjust(chosen, asked, vocab_size, bias)
        rows = prepare([sequence.params for sequence in asked.sequences], asked.positions)
        return sample(adjusted, rows, vocab_size)

    def measure(
        self,
        logits: Tensor,
        rows: Rows[int],
        tokens: Rows[int],
        num_top: Rows[int | None],
        vocab_size: int,
    ) -> list[Logprob | None]:
        """See Sampler."""
        return measure(_rows(logits, rows), tokens, num_top, vocab_size)


def _rows(logits: Tensor, rows: Rows[int]) -> Tensor:
    """(·, V) → (M, V), the same tensor where every row is asked for once: no forks, nothing scored."""
    chosen = list(rows)
    return logits if chosen == list(range(len(logits))) else logits[torch.tensor(chosen, dtype=torch.long)]
