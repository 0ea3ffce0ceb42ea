"""Activation checkpointing: a block's inner values are not kept for the backward pass but computed again.

Costs a second forward pass of each block and saves all of a block's activations but its input: the longest
windows and the widest models fit. The gradients are the same. Refuses to know data and optimisers.
"""

from __future__ import annotations

from functools import partial

from torch.utils.checkpoint import checkpoint

from llm.model import Decoder


def recompute_activations(model: Decoder) -> None:
    """From now on the model's blocks are computed again on the way back. Its parameters keep their names."""
    for block in model.blocks:
        again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = again
