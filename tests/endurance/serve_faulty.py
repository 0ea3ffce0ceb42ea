"""A server process whose device misbehaves: python -m tests.endurance.serve_faulty --fault raise:11 ...

    --fault KIND:N         at forward pass N, counted from the start, the warm-up's included:
        raise              an exception, as a bug in a model would
        memory             the device has no memory left
        lost               the device will not compute again
        kill               the engine's thread ends
        freeze             the pass never returns
        nap:SECONDS        the pass returns so much later (KIND:N:SECONDS)
    --step-seconds S       every forward pass takes at least so long
    --gather N             the second forward pass waits until N replies run or wait
    anything else          is the server's own

It prints `fault` when it happens. The model is a tiny real one. Refuses to know what the server makes of it.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from llm.batch import Batch
from llm.engine import Engine
from llm.runner import StepOutput
from server.__main__ import listen_on, run
from server.logs import configure
from server.settings import load_settings
from tests.fakes import tiny_model, tiny_text_model

NUM_POSITIONS = 4096
FAULT = "fault"
"""The line that says it has happened."""


class Killed(BaseException):
    """Nothing that a step is prepared for."""


@dataclass(frozen=True)
class Fault:
    """What happens, at which forward pass, and for how long if that matters."""

    kind: str
    at: int
    seconds: float = 0.0

    @classmethod
    def of(cls, text: str) -> Fault:
        kind, at, *seconds = text.split(":")
        return cls(kind, int(at), *map(float, seconds))

    def happen(self) -> None:
        print(FAULT, flush=True)
        if self.kind == "raise":
            raise ValueError("the sixth layer is on fire")
        if self.kind == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if self.kind == "lost":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self.kind == "kill":
            raise Killed
        assert self.kind in ("freeze", "nap"), self.kind
        threading.Event().wait(self.seconds if self.kind == "nap" else None)


def misbehave(engine: Engine, fault: Fault | None, step_seconds: float, gather: int) -> None:
    """Put the fault in the way of the engine's forward passes."""
    run_batch: Callable[[Batch], StepOutput] = engine.runner.run
    num_passes = 0

    def run_faulty(batch: Batch) -> StepOutput:
        nonlocal num_passes
        num_passes += 1
        while num_passes == 2 and num_present(engine) < gather:
            time.sleep(0.001)
        if step_seconds:
            time.sleep(step_seconds)
        if fault is not None and num_passes == fault.at:
            fault.happen()
        return run_batch(batch)

    engine.runner.run = run_faulty  # type: ignore[method-assign]


def num_present(engine: Engine) -> int:
    stats = engine.stats()
    return stats.num_running + stats.num_waiting


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--fault", type=Fault.of)
    parser.add_argument("--step-seconds", type=float, default=0.0)
    parser.add_argument("--gather", type=int, default=0)
    asked, rest = parser.parse_known_args()
    settings = load_settings(rest)
    configure(settings.uvicorn_log_level, settings.log_format)
    decoder = tiny_model(num_positions=NUM_POSITIONS)
    bounds = {"max_model_len": NUM_POSITIONS, "max_num_seqs": settings.max_num_seqs, "block_size": 16}
    model = tiny_text_model(decoder, **bounds)
    misbehave(model.engines[0], asked.fault, asked.step_seconds, asked.gather)
    with listen_on(settings.host, settings.port) as listener:
        return run(settings, [model], listener)


if __name__ == "__main__":
    sys.exit(main())
