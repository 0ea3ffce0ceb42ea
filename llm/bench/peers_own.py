"""Ourselves as a contestant: one runner, driven the way the other programs are.

Prefill in the engine's chunks, or greedy decode steps of one row per stream, whose prompt was computed once
and copied to the other streams' blocks. A step's time holds making the batch and taking the greatest logits.
Runs in a process of its own (see `peers_worker`), so that nobody's threads spin in another's turn.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from llm.batch import Batch, Chunk
from llm.bench.steps import PARAMS, Steps
from llm.checkpoint import open_checkpoint
from llm.load import load_text_model
from llm.sequence import Sequence


def start(options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Options: checkpoint; threads; streams and length, the most there will be; load, what else
    `load_text_model` takes.
    """
    model = load_text_model(
        open_checkpoint(options["checkpoint"]),
        devices="cpu",
        threads=options["threads"],
        max_num_seqs=options["streams"],
        max_model_len=options["length"],
        max_num_batched_tokens=max(512, options["streams"]),
        **options["load"],
    )
    engine = model.engines[0]
    facts = {"name": "causerie", "model": model.fingerprint, "system": engine.runner.about}
    return facts, Own(Steps(engine.runner, engine.config, engine.vocab_size)).measure


class Own:
    """One runner, whose whole pool of blocks is taken."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def measure(self, work: dict[str, Any]) -> dict[str, Any]:
        """{"work": "decode", streams, context, steps} or {"work": "prefill", tokens}."""
        if work["work"] == "decode":
            return {"ms_per_step": self.decode(work["streams"], work["context"], work["steps"])}
        self.steps.time_prefill(min(64, work["tokens"]))
        return {"tokens_per_s": self.prefill(work["tokens"])}

    def prefill(self, num_tokens: int) -> float:
        """Tokens per second, up to the first new one."""
        begin = time.perf_counter()
        for batch in self.steps.prefill(num_tokens):
            token = self.run(batch)
        assert len(token) == 1
        return num_tokens / (time.perf_counter() - begin)

    def decode(self, streams: int, context: int, steps: int) -> float:
        """Median milliseconds of greedy steps, a row per stream, after two that are not counted."""
        length = context + steps + 2
        self.steps.fill(self.steps.num_blocks(streams, length))
        full = [chunk.sequence for chunk in self.steps.decode(streams, length).chunks]
        rows = [Sequence(s.prompt[:context], PARAMS, block_ids=s.block_ids) for s in full]
        for row, sequence in enumerate(rows):
            sequence.output.append(full[row].prompt[row % length])
        seconds = []
        for _ in range(steps + 2):
            begin = time.perf_counter()
            tokens = self.run(Batch([Chunk(s, len(s) - 1, 1) for s in rows]))
            for sequence, token in zip(rows, tokens, strict=True):
                sequence.output.append(token)
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds[2:]) * 1e3

    def run(self, batch: Batch) -> list[int]:
        """The most probable tokens of the rows that ask, found by numpy as in the other workers."""
        logits = self.steps.runner.run(batch).logits  # (M, V)
        tokens: list[int] = logits.float().numpy().argmax(-1).tolist()
        return tokens
