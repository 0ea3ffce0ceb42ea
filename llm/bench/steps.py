"""A runner alone, without scheduler and sampler: decode steps over streams and contexts, prefills.

    >>> steps = Steps(engine.runner, engine.config, vocab_size=257)
    >>> steps.fill(steps.num_blocks(4, 512)); steps.time_decode(4, 512)

Sequences and their block ids are made up here. Blocks are dealt in random order, as they lie after hours of
serving. What a block holds does not matter for the time, only that it is numbers some prompt left: NaN and
zeros may be slower or faster. Refuses to know command lines, ceilings and the time of day.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from llm.batch import Batch, Chunk
from llm.bench.streams import finish
from llm.config import EngineConfig, SamplingParams
from llm.runner import Runner
from llm.sequence import Sequence as Tokens

PARAMS = SamplingParams(max_tokens=1, temperature=0.0)
FEWEST, MOST = 3, 64
"""Decode steps of one measurement, whatever they take; between them a span of time decides."""


class Steps:
    """Batches for one idle runner, whose whole pool of blocks is taken.

    Args:
        runner: nothing else uses it meanwhile.
        config: the one it was made with.
        vocab_size: ids that prompts are made of.
    """

    def __init__(self, runner: Runner, config: EngineConfig, vocab_size: int) -> None:
        self.runner = runner
        self.config = config
        generator = torch.Generator().manual_seed(0)
        self._blocks: list[int] = torch.randperm(config.total_blocks, generator=generator).tolist()
        ids = torch.randint(vocab_size, (config.max_model_len,), generator=generator)
        self._tokens: list[int] = ids.tolist()

    def num_blocks(self, num_streams: int, context: int) -> int:
        """Blocks that hold `context` tokens of each stream."""
        return num_streams * -(-context // self.config.block_size)

    def fill(self, num_blocks: int) -> None:
        """Leave a prompt's keys and values in the first blocks to be dealt: computed once, then copied."""
        length = min(self.config.max_model_len, num_blocks * self.config.block_size)
        for batch in self.prefill(length):
            self.runner.run(batch)
        filled = self._blocks[: self.num_blocks(1, length)]
        for start in range(len(filled), num_blocks, len(filled)):
            targets = self._blocks[start : min(start + len(filled), num_blocks)]
            copies = list(zip(filled, targets, strict=False))
            self.runner.run(Batch(self.decode(1, length).chunks, copies))

    def decode(self, num_streams: int, context: int, adapters: Sequence[str] = ("",)) -> Batch:
        """A step in which each stream's last token sees `context` tokens, itself included; the adapters take
        turns.
        """
        per_stream = self.num_blocks(1, context)
        prompt = self._tokens[:context]
        tables = (self._blocks[i * per_stream : (i + 1) * per_stream] for i in range(num_streams))
        sequences = (
            Tokens(prompt, PARAMS, adapter=adapters[i % len(adapters)], block_ids=table)
            for i, table in enumerate(tables)
        )
        return Batch([Chunk(sequence, context - 1, 1) for sequence in sequences])

    def prefill(self, num_tokens: int) -> list[Batch]:
        """One prompt in the engine's chunks; the logits of its last token alone are wanted."""
        table = self._blocks[: self.num_blocks(1, num_tokens)]
        sequence = Tokens(self._tokens[:num_tokens], PARAMS, block_ids=table)
        size = self.config.max_num_batched_tokens
        starts = range(0, num_tokens, size)
        return [Batch([Chunk(sequence, start, min(size, num_tokens - start))]) for start in starts]

    def time_decode(
        self, num_streams: int, context: int, span: float = 0.2, adapters: Sequence[str] = ("",)
    ) -> float:
        """Median seconds of the same step, done again for about `span` seconds after a first one."""
        batch = self.decode(num_streams, context, adapters)
        self._time(batch)
        seconds: list[float] = []
        while len(seconds) < FEWEST or (sum(seconds) < span and len(seconds) < MOST):
            seconds.append(self._time(batch))
        return statistics.median(seconds)

    def time_prefill(self, num_tokens: int) -> float:
        """Seconds of all chunks."""
        return sum(self._time(batch) for batch in self.prefill(num_tokens))

    def _time(self, batch: Batch) -> float:
        start = time.perf_counter()
        self.runner.run(batch)
        finish(self.runner.device)
        return time.perf_counter() - start
