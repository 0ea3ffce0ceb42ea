"""OpenVINO GenAI as a contestant: its continuous batching pipeline, driven step by step.

A decode step is one `step()` of the pipeline once every request has its first token, so its scheduler and
sampler are in the figure; nothing smaller can be timed from outside. KV cache and kernels are its defaults,
its prefix cache is off. Runs in the environment of openvino-genai (see `peers_worker`), so it imports nothing
of this project.
"""

from __future__ import annotations

import importlib
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import numpy

BATCHED_TOKENS = 512
MANY_TOKENS = 4096
"""New tokens asked of a request that is dropped when its steps are timed."""


def start(options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Options: model, a folder that `optimum-cli export openvino` wrote; threads; cache_gb."""
    openvino, genai = importlib.import_module("openvino"), importlib.import_module("openvino_genai")
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = BATCHED_TOKENS
    scheduler.cache_size = options["cache_gb"]
    scheduler.enable_prefix_caching = False
    threads = {"INFERENCE_NUM_THREADS": options["threads"]}
    pipeline = genai.ContinuousBatchingPipeline(options["model"], scheduler, "CPU", threads)
    facts = {"name": f"OpenVINO GenAI {genai.__version__}", "model": Path(options["model"]).name}
    return facts, OpenVino(openvino, genai, pipeline).measure


class OpenVino:
    """One pipeline, idle between pieces of work."""

    def __init__(self, openvino: Any, genai: Any, pipeline: Any) -> None:
        self.openvino = openvino
        self.genai = genai
        self.pipeline = pipeline
        self.ids = itertools.count()

    def measure(self, work: dict[str, Any]) -> dict[str, Any]:
        """{"work": "decode", streams, context, steps} or {"work": "prefill", tokens}."""
        if work["work"] == "decode":
            return {"ms_per_step": self.decode(work["streams"], work["context"], work["steps"])}
        self.prefill(min(64, work["tokens"]))
        begin = time.perf_counter()
        self.prefill(work["tokens"])
        return {"tokens_per_s": work["tokens"] / (time.perf_counter() - begin)}

    def add(self, num_tokens: int, max_new_tokens: int) -> Any:
        """A greedy request that nothing stops; every prompt is another."""
        number = next(self.ids)
        prompt = [[(p * 7919 + number) % 49000 + 1 for p in range(num_tokens)]]
        config = self.genai.GenerationConfig(max_new_tokens=max_new_tokens, ignore_eos=True, do_sample=False)
        return self.pipeline.add_request(
            number, self.openvino.Tensor(numpy.array(prompt, numpy.int64)), config
        )

    def prefill(self, num_tokens: int) -> None:
        """A prompt and its first token."""
        handle = self.add(num_tokens, 1)
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        handle.read()

    def decode(self, streams: int, context: int, steps: int) -> float:
        """Median milliseconds of steps in which every stream decodes, after two that are not counted."""
        handles = [self.add(context, MANY_TOKENS) for _ in range(streams)]
        waiting = list(handles)
        while waiting:
            if not self.pipeline.has_non_finished_requests():
                raise RuntimeError(f"{len(waiting)} of {streams} requests ended without a token")
            self.pipeline.step()
            waiting = [handle for handle in waiting if not handle.can_read()]
        seconds = []
        for _ in range(steps + 2):
            begin = time.perf_counter()
            self.pipeline.step()
            seconds.append(time.perf_counter() - begin)
        for handle in handles:
            handle.stop()
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        return statistics.median(seconds[2:]) * 1e3
