"""A small vocabulary to train with, a whole one to serve: ids the data never contains share a few rows.

Of a model from scratch that sees 3,400 of 50,257 ids, the other rows carry nothing but "not me". They may as
well be equal: G rows stand for all of them, each counted as often as it is shared, and the loss is exactly
the loss over the whole vocabulary with those rows tied. On two CPU cores that takes about a third off a step.
`expand` writes the rows out again. Only for models from scratch: a pretrained model's unseen rows are not
equal. Refuses to know files.

    >>> small = shared.shrink(model); ...; served = shared.expand(small)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from llm.model import Decoder
from llm.train.batches import IGNORE, Batch
from llm.train.data import Ids


class SharedRows:
    """Which row of the small vocabulary each id has.

    Args:
        seen: ids of the data; each gets a row of its own.
        vocab_size: V of the model that will serve.
        num_shared: G rows for the other ids, dealt out in turn; at most one per other id.
    """

    def __init__(self, seen: Ids, vocab_size: int, num_shared: int) -> None:
        assert num_shared > 0
        own = np.unique(seen).astype(np.int64)  # (S,) ascending
        others = np.setdiff1d(np.arange(vocab_size), own, assume_unique=True)  # (V-S,)
        num_shared = min(num_shared, len(others))
        rows = np.empty(vocab_size, dtype=np.int64)
        rows[own] = np.arange(len(own))
        rows[others] = len(own) + np.arange(len(others)) % max(1, num_shared)
        self.rows = torch.from_numpy(rows)  # (V,) row of each id
        self.num_rows = len(own) + num_shared
        self.log_counts = torch.bincount(self.rows, minlength=self.num_rows).float().log()  # (R,)

    def shrink(self, model: Decoder) -> Decoder:
        """A model of R rows; a shared row starts as its first id's, all else is the model's own."""
        first = torch.full((self.num_rows,), len(self.rows)).scatter_reduce(
            0, self.rows, torch.arange(len(self.rows)), "amin"
        )  # (R,) smallest id of each row
        return self._rebuilt(model, first, self.num_rows)

    def expand(self, model: Decoder) -> Decoder:
        """A model of V rows that gives every id the logits of its row."""
        return self._rebuilt(model, self.rows, len(self.rows))

    def apply(self, batch: Batch) -> Batch:
        """The batch with rows instead of ids; on the CPU."""
        targets = self.rows[batch.targets.clamp(min=0)].where(batch.targets != IGNORE, IGNORE)
        return replace(batch, ids=self.rows[batch.ids], targets=targets)

    @staticmethod
    def _rebuilt(model: Decoder, index: Tensor, vocab_size: int) -> Decoder:
        state = {
            name: tensor[index.to(tensor.device)] if name in ("tokens.weight", "head.weight") else tensor
            for name, tensor in model.state_dict().items()
        }
        with torch.device("meta"):
            other = Decoder(replace(model.config, vocab_size=vocab_size))
        other.load_state_dict(state, assign=True)
        return other.requires_grad_(True)
