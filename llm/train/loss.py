"""Cross entropy of the rows that have a target, over the whole vocabulary or over a sample of it.

A vocabulary of 50,257 makes the head the dearest layer of a small model. `head_loss` therefore takes only the
hidden states of positions with a target. With `Candidates` it also scores only some columns: every id the
data contains, exactly, plus K random others that stand for all the rest. Refuses to know data files,
optimisers and steps' order.

    >>> loss = head_loss(model, hidden, batch)
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm.model import Decoder
from llm.train.batches import IGNORE, Batch
from llm.train.data import Ids


class Candidates:
    """The columns a sampled softmax scores: ids seen in the data, and K of the others, drawn anew each step.

    The others' logits are raised by log(N / K), N being their number, so that K of them weigh as much as all
    in the normalising sum. Source: Jean et al. 2015, "On Using Very Large Target Vocabulary for Neural
    Machine Translation", section 3; Bengio and Senécal 2008 for the correction.

    Args:
        seen: ids that may be targets, in any order, duplicates welcome.
        vocab_size: V; the others are the ids below it that are not in `seen`.
        num_negatives: K; at most all others are taken.
        seed: with the step's number it fixes the draw.
    """

    def __init__(self, seen: Ids, vocab_size: int, num_negatives: int, seed: int) -> None:
        self.seen = np.unique(seen).astype(np.int64)  # (S,) ascending
        assert self.seen.size and 0 <= self.seen[0] and self.seen[-1] < vocab_size
        self.others = np.setdiff1d(np.arange(vocab_size), self.seen, assume_unique=True)  # (N,)
        self.num_negatives = min(num_negatives, len(self.others))
        self.seed = seed

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Columns of this step.

        Returns:
            ids (S+K,) int64, the seen ones first, and what to add to their logits (S+K,) float32.
        """
        random = np.random.default_rng([self.seed, step])
        drawn = random.choice(self.others, self.num_negatives, replace=False)  # (K,)
        added = torch.zeros(len(self.seen) + len(drawn))  # (S+K,)
        if len(drawn):
            added[len(self.seen) :] = math.log(len(self.others) / len(drawn))
        return torch.from_numpy(np.concatenate((self.seen, drawn))), added

    def columns(self, targets: Tensor) -> Tensor:
        """Places of target ids (M,) among the drawn columns."""
        places = np.searchsorted(self.seen, targets.cpu().numpy())
        return torch.from_numpy(places).to(targets.device)


def head_loss(
    model: Decoder,
    hidden: Tensor,
    batch: Batch,
    candidates: Candidates | None = None,
    step: int = 0,
    log_counts: Tensor | None = None,
) -> Tensor:
    """Weighted mean of -log p(target) over the positions that have one.

    Args:
        hidden: (B, T, C) from the model, on the batch's device.
        batch: at least one target; on that device.
        candidates: None for the whole vocabulary.
        step: which draw of the candidates.
        log_counts: (V,) log of how many ids each row stands for, when rows are shared; without candidates.

    Returns:
        A scalar in float32, or float64 where the model is, nats per token.
    """
    wanted = batch.targets != IGNORE  # (B, T)
    rows, targets, weights = (
        hidden[wanted],
        batch.targets[wanted],
        batch.weights[wanted],
    )  # (M, C), (M,), (M,)
    assert len(targets), "a batch without targets teaches nothing"
    if candidates is None:
        logits = _precise(model.logits(rows))  # (M, V)
        if log_counts is not None:
            logits = logits + log_counts
    else:
        head = model.tokens.weight if model.head is None else model.head.weight  # (V, C)
        ids, added = (part.to(hidden.device) for part in candidates.draw(step))
        logits = _precise(F.linear(rows, head[ids])) + added  # (M, S+K)
        targets = candidates.columns(targets)
    losses = F.cross_entropy(logits, targets, reduction="none")  # (M,)
    weights = weights.to(losses.dtype)
    return (losses * weights).sum() / weights.sum()


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
