"""What a step's output says: tokens drawn, log probabilities read, prompts scored and pooled.

The place where a sampler meets a batch. Refuses to know queues, blocks and text, and how a token is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.batch import Batch, Chunk, Drawn
from llm.grammar import Matcher, next_masks
from llm.runner import StepOutput
from llm.sampler import INVALID, Asked
from llm.sequence import Accepted, Logprob, Sequence

Masks = NDArray[np.uint8]

ROWS_AT_ONCE = 64
"""Rows of a scored prompt that are measured together: torch copies 64 of 150,000 ids, 38 MB, twice."""


def begin_masks(batch: Batch) -> Future[Masks] | None:
    """Start to find out what the grammars of a batch allow next, while the model computes what is probable.

    llguidance and the model both leave the interpreter to others, so where a core is to spare they share
    the time; `llm.bench.grammar` prints what is left of the cost.
    """
    matchers = [cast("Matcher", s.matcher) for s in batch.asking if s.matcher is not None]
    return _mask_thread().submit(next_masks, matchers) if matchers else None


@cache
def _mask_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="grammar")


def draw(output: StepOutput, batch: Batch, vocab_size: int, masks: Future[Masks] | None = None) -> Drawn:
    """Everything the scheduler wants to know of a step.

    Args:
        output: of the runner, for this batch.
        vocab_size: ids that may be drawn.
        masks: what `begin_masks` said of the same batch.
    """
    hidden = list(_pool(output.hidden, batch))
    if not batch.rows:
        return Drawn([], hidden=hidden)
    asked = Asked(batch.asking, batch.places, batch.draws)
    allowed = None if masks is None else masks.result()
    tokens = output.sampler.draw(output.logits, asked, vocab_size, allowed) if batch.asking else []
    return Drawn(
        tokens,
        logprobs=_logprobs(output, asked, tokens, vocab_size),
        accepted=_accept(batch.asking, tokens),
        scores=[_score(output, chunk, first, vocab_size) for chunk, first in batch.scores],
        hidden=hidden,
    )


def _logprobs(output: StepOutput, asked: Asked, tokens: list[int], vocab_size: int) -> list[Logprob | None]:
    num_top = [sequence.params.logprobs for sequence in asked.sequences]
    if all(count is None for count in num_top):
        return []
    return output.sampler.measure(output.logits, asked.rows, tokens, num_top, vocab_size)


def _accept(asking: list[Sequence], tokens: list[int]) -> list[Accepted | None]:
    """Each grammar moves on by its token."""
    if all(sequence.matcher is None for sequence in asking):
        return []
    return [
        None if s.matcher is None or token == INVALID else s.matcher.accept(token)
        for s, token in zip(asking, tokens, strict=True)
    ]


def _score(output: StepOutput, chunk: Chunk, first: int, vocab_size: int) -> tuple[Logprob, ...]:
    """How probable the prompt's own next tokens were at the chunk's scored positions."""
    scored, sequence = chunk.scored, chunk.sequence
    following = sequence.prompt[scored.start + 1 : scored.stop + 1]
    measured: list[Logprob | None] = []
    for start in range(0, len(following), ROWS_AT_ONCE):
        tokens = following[start : start + ROWS_AT_ONCE]
        rows = range(first + start, first + start + len(tokens))
        num_top = [sequence.params.prompt_logprobs] * len(tokens)
        measured += output.sampler.measure(output.logits, rows, tokens, num_top, vocab_size)
    return tuple(logprob for logprob in measured if logprob is not None)


def _pool(hidden: Tensor, batch: Batch) -> Iterator[list[float]]:
    """The sum of each embedding chunk's hidden states."""
    lengths = [chunk.length for chunk in batch.chunks if chunk.sequence.embeds]
    if lengths:
        for part in torch.split(hidden, lengths):
            yield part.cpu().double().sum(0).tolist()
