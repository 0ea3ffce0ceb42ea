"""Equal requests through a whole engine: when each stream's tokens came, and what the runner had of the time.

    >>> measure(engine, num_streams=4, num_prompt=64, num_new=64, vocab_size=257).tokens_per_s

Greedy, every reply as long as asked: nothing stops it. Refuses to know command lines and what is printed.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass

import torch

from llm.batch import Batch
from llm.config import SamplingParams
from llm.engine import Engine
from llm.grammar import Grammar
from llm.runner import Runner, StepOutput
from llm.sequence import Sequence, TokenEvent


@dataclass(frozen=True, slots=True)
class Run:
    """One level of one round.

    Attributes:
        times: when each stream's tokens came, in seconds since the submission.
        seconds: the whole run.
        runner_seconds: of these, what the runner took; the rest is the host's: scheduling, sampling, events.
        num_steps: batches computed.
    """

    times: list[list[float]]
    seconds: float
    runner_seconds: float
    num_steps: int

    @property
    def tokens_per_s(self) -> float:
        return sum(map(len, self.times)) / max(t[-1] for t in self.times)

    @property
    def ttft_ms(self) -> float:
        return statistics.median(t[0] for t in self.times) * 1e3

    @property
    def gap_ms(self) -> float:
        """0 when replies of one token have none."""
        gaps = [b - a for t in self.times for a, b in zip(t, t[1:], strict=False)]
        return statistics.median(gaps) * 1e3 if gaps else 0.0

    @property
    def host_ms(self) -> float:
        """Per step, what is not the runner's."""
        return (self.seconds - self.runner_seconds) / self.num_steps * 1e3

    @property
    def host_share(self) -> float:
        return 1 - self.runner_seconds / self.seconds


class Stopwatch:
    """A runner that counts the seconds and the steps of another.

    A device that computes while Python goes on is waited for: the sampler, next in line, would do so anyway.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.device = runner.device
        self.about, self.shelf = runner.about, runner.shelf
        self.seconds = 0.0
        self.num_steps = 0

    def run(self, batch: Batch) -> StepOutput:
        """See Runner."""
        start = time.perf_counter()
        output = self.runner.run(batch)
        finish(self.device)
        self.seconds += time.perf_counter() - start
        self.num_steps += 1
        return output


def finish(device: torch.device) -> None:
    """Wait until the device has computed what it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def measure(
    engine: Engine,
    num_streams: int,
    num_prompt: int,
    num_new: int,
    vocab_size: int,
    grammar: Grammar | None = None,
) -> Run:
    """Drive the engine's steps in this thread until `num_streams` equal requests are done.

    Args:
        grammar: what every reply follows; it must not end one early.
    """
    times: dict[int, list[float]] = defaultdict(list)

    def keep(events: list[TokenEvent]) -> None:
        now = time.perf_counter() - start
        for event in events:
            times[event.sequence_id].append(now)

    engine.emit = keep
    generator = torch.Generator().manual_seed(num_streams)
    prompts = torch.randint(vocab_size, (num_streams, num_prompt), generator=generator).tolist()
    params = SamplingParams(max_tokens=num_new, temperature=0.0)
    runner = engine.runner
    engine.runner = watch = Stopwatch(runner)
    try:
        start = time.perf_counter()
        for prompt in prompts:
            matcher = None if grammar is None else grammar.matcher()
            engine.scheduler.add(Sequence(prompt, params, matcher=matcher))
        while engine.step():
            pass
        seconds = time.perf_counter() - start
    finally:
        engine.runner = runner
    assert all(len(t) == num_new for t in times.values()), "a stream ended early"
    return Run(list(times.values()), seconds, watch.seconds, watch.num_steps)
