"""What a step's output says: tokens drawn, log probabilities read, prompts scored and pooled.

The place where the sampler's parts meet a batch. Refuses to know queues, blocks and text.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import cast

import torch
from torch import Tensor

from llm.grammar import Matcher, next_masks
from llm.logits import adjust
from llm.logprobs import measure
from llm.runner import StepOutput
from llm.sampler import INVALID, prepare, sample
from llm.scheduler import Batch, Chunk, Drawn
from llm.sequence import Accepted, Logprob, Sequence

ROWS_AT_ONCE = 64
"""Rows of a scored prompt that are measured together: 64 of 150,000 ids are 38 MB, and as much again."""


def begin_masks(batch: Batch, device: torch.device) -> Future[Tensor] | None:
    """Start to find out what the grammars of a batch allow next, while the model computes what is probable.

    llguidance and the model both leave the interpreter to others, so where a core is to spare they share
    the time; `llm.bench.grammar` prints what is left of the cost.
    """
    matchers = [cast("Matcher", s.matcher) for s in batch.asking if s.matcher is not None]
    return _mask_thread().submit(next_masks, matchers, device) if matchers else None


@cache
def _mask_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="grammar")


def draw(output: StepOutput, batch: Batch, vocab_size: int, masks: Future[Tensor] | None = None) -> Drawn:
    """Everything the scheduler wants to know of a step.

    Args:
        output: of the runner, for this batch.
        vocab_size: ids that may be drawn.
        masks: what `begin_masks` said of the same batch.
    """
    hidden = list(_pool(output.hidden, batch))
    asking = batch.asking
    if not batch.rows:
        return Drawn([], hidden=hidden)
    one_row_each = batch.draws == list(range(len(output.logits)))  # no forks, nothing scored
    logits = output.logits if one_row_each else output.logits[batch.draws]
    rows = prepare([s.params for s in asking], [len(s.output) for s in asking])
    adjusted = adjust(logits, asking, vocab_size, None if masks is None else masks.result())
    tokens = sample(adjusted, rows, vocab_size) if asking else []
    return Drawn(
        tokens,
        logprobs=_logprobs(logits, asking, tokens, vocab_size),
        accepted=_accept(asking, tokens),
        scores=[_score(output.logits, chunk, first, vocab_size) for chunk, first in batch.scores],
        hidden=hidden,
    )


def _logprobs(
    logits: Tensor, asking: list[Sequence], tokens: list[int], vocab_size: int
) -> list[Logprob | None]:
    num_top = [sequence.params.logprobs for sequence in asking]
    return measure(logits, tokens, num_top, vocab_size) if any(n is not None for n in num_top) else []


def _accept(asking: list[Sequence], tokens: list[int]) -> list[Accepted | None]:
    """Each grammar moves on by its token."""
    if all(sequence.matcher is None for sequence in asking):
        return []
    return [
        None if s.matcher is None or token == INVALID else s.matcher.accept(token)
        for s, token in zip(asking, tokens, strict=True)
    ]


def _score(logits: Tensor, chunk: Chunk, first: int, vocab_size: int) -> tuple[Logprob, ...]:
    """How probable the prompt's own next tokens were at the chunk's scored positions."""
    scored, sequence = chunk.scored, chunk.sequence
    following = sequence.prompt[scored.start + 1 : scored.stop + 1]
    measured: list[Logprob | None] = []
    for start in range(0, len(following), ROWS_AT_ONCE):
        tokens = following[start : start + ROWS_AT_ONCE]
        rows = logits[first + start : first + start + len(tokens)]
        measured += measure(rows, tokens, [sequence.params.prompt_logprobs] * len(tokens), vocab_size)
    return tuple(logprob for logprob in measured if logprob is not None)


def _pool(hidden: Tensor, batch: Batch) -> Iterator[list[float]]:
    """The sum of each embedding chunk's hidden states."""
    lengths = [chunk.length for chunk in batch.chunks if chunk.sequence.embeds]
    if lengths:
        for part in torch.split(hidden, lengths):
            yield part.cpu().double().sum(0).tolist()
