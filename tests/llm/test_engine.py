"""The engine's thread: work in from anywhere, events out, and an end for every sequence whatever happens."""

from __future__ import annotations

import queue
import threading
import time
import weakref

import pytest
import torch

from llm.batch import Batch
from llm.config import EngineConfig, SamplingParams
from llm.engine import Engine
from llm.errors import DeviceLost, EngineStopped, OutOfMemory
from llm.runner import StepOutput
from llm.runner.eager import EagerRunner
from llm.sequence import FinishReason, Sequence, TokenEvent
from tests.fakes import tiny_model

CONFIG = EngineConfig(max_model_len=64, max_num_seqs=4, max_num_batched_tokens=64, block_size=4)


class FlakyRunner(EagerRunner):
    """Raises on batches that hold a sequence whose prompt starts with 13."""

    def run(self, batch: Batch) -> StepOutput:
        if any(chunk.sequence.prompt[0] == 13 for chunk in batch.chunks):
            raise RuntimeError("out of luck")
        return super().run(batch)


class Listener:
    """Events in arrival order, readable from the test's thread."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[TokenEvent] = queue.SimpleQueue()

    def __call__(self, events: list[TokenEvent]) -> None:
        for event in events:
            self.inbox.put(event)

    def until_finished(self, count: int) -> dict[int, TokenEvent]:
        last: dict[int, TokenEvent] = {}
        while len(last) < count:
            event = self.inbox.get(timeout=30)
            if event.finish is not None:
                assert event.sequence_id not in last, "two last events"
                last[event.sequence_id] = event
        return last


def greedy(first: int, max_tokens: int = 4) -> Sequence:
    return Sequence([first, 2, 3], SamplingParams(max_tokens=max_tokens, temperature=0.0))


def test_a_failed_forward_pass_fails_that_batch_and_the_next_request_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener = Listener()
    engine = Engine(FlakyRunner(tiny_model(), CONFIG), CONFIG, 257, listener)
    engine.start()
    poison = greedy(13)
    engine.submit(poison)
    assert listener.until_finished(1)[poison.id].finish is FinishReason.ERROR
    assert "out of luck" in caplog.text, "the log has the cause"
    healthy = greedy(1)
    engine.submit(healthy)
    event = listener.until_finished(1)[healthy.id]
    assert event.finish is FinishReason.LENGTH
    assert engine.stats().num_free_blocks == CONFIG.total_blocks
    engine.stop()


def test_stop_aborts_every_sequence_and_refuses_more() -> None:
    listener = Listener()
    engine = Engine(EagerRunner(tiny_model(), CONFIG), CONFIG, 257, listener)
    sequences = [greedy(1, max_tokens=60) for _ in range(6)]
    for sequence in sequences:
        engine.submit(sequence)  # before the thread runs: none can have finished
    engine.stop()
    assert {e.finish for e in listener.until_finished(6).values()} == {FinishReason.ABORT}
    with pytest.raises(EngineStopped):
        engine.submit(greedy(1))
    engine.abort(sequences[0])
    assert listener.inbox.empty(), "an abort after the end says nothing"
    engine.scheduler.check_integrity()


def test_stopping_a_running_engine_returns_and_leaves_no_block_held() -> None:
    listener = Listener()
    engine = Engine(EagerRunner(tiny_model(), CONFIG), CONFIG, 257, listener)
    engine.start()
    engine.submit(greedy(1, max_tokens=60))
    assert listener.inbox.get(timeout=30).token_id is not None
    engine.stop()
    assert not engine.stats().alive
    assert engine.scheduler.blocks.num_free == CONFIG.total_blocks


def test_abort_frees_the_blocks_before_the_next_step() -> None:
    listener = Listener()
    engine = Engine(EagerRunner(tiny_model(), CONFIG), CONFIG, 257, listener)
    sequence = greedy(1, max_tokens=60)
    engine.submit(sequence)
    assert engine._serve_inbox(wait=True)
    for _ in range(3):
        engine.step()
    assert engine.scheduler.blocks.num_free < CONFIG.total_blocks
    engine.abort(sequence)
    assert engine._serve_inbox(wait=True)
    assert engine.scheduler.blocks.num_free == CONFIG.total_blocks
    assert engine.step() is False
    assert listener.until_finished(1)[sequence.id].finish is FinishReason.ABORT


def test_a_batch_is_shared_by_sequences_that_arrived_at_different_times() -> None:
    engine = Engine(EagerRunner(tiny_model(), CONFIG), CONFIG, 257, lambda events: None)
    first, second = greedy(1, max_tokens=8), greedy(2, max_tokens=8)
    engine.scheduler.add(first)
    engine.step()
    engine.scheduler.add(second)
    engine.step()
    assert (len(first.output), len(second.output)) == (2, 1)
    engine.step()
    assert (len(first.output), len(second.output)) == (3, 2)
    assert engine.stats().num_running == 2


class BusyRunner(EagerRunner):
    """Computes for a while on top."""

    def run(self, batch: Batch) -> StepOutput:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        return super().run(batch)


def test_the_time_of_its_thread_is_told_and_how_much_of_it_the_model_took() -> None:
    engine = Engine(BusyRunner(tiny_model(), CONFIG), CONFIG, 257, lambda events: None)
    before = time.thread_time()
    engine.scheduler.add(greedy(1, max_tokens=3))
    while engine.step():
        pass
    stats = engine.stats()
    assert stats.num_steps * 0.02 <= stats.runner_cpu_seconds <= stats.cpu_seconds - before
    assert stats.cpu_seconds <= time.thread_time()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_draws_what_the_cpu_draws() -> None:
    replies = []
    for device in ("cpu", "cuda"):
        model = tiny_model(dtype=torch.float64).to(device)
        listener = Listener()
        engine = Engine(EagerRunner(model, CONFIG), CONFIG, 257, listener, device)
        sequences = [
            Sequence([i, 5], SamplingParams(max_tokens=20, temperature=0.9, seed=i)) for i in range(6)
        ]
        for sequence in sequences:
            engine.scheduler.add(sequence)
        while engine.step():
            pass
        replies.append([s.output for s in sequences])
    assert replies[0] == replies[1]


def test_a_failed_batch_does_not_put_the_engine_to_sleep(caplog: pytest.LogCaptureFixture) -> None:
    """What waits behind it runs without anything new being posted."""
    config = EngineConfig(max_model_len=64, max_num_seqs=1, max_num_batched_tokens=64, block_size=4)
    listener = Listener()
    engine = Engine(FlakyRunner(tiny_model(), config), config, 257, listener)
    poison, healthy = greedy(13), greedy(1)
    engine.submit(poison)
    engine.submit(healthy)
    engine.start()
    ends = listener.until_finished(2)
    assert (ends[poison.id].finish, ends[healthy.id].finish) == (FinishReason.ERROR, FinishReason.LENGTH)
    engine.stop()
    engine.scheduler.check_integrity()


class DyingRunner(EagerRunner):
    """Takes its thread with it."""

    def run(self, batch: Batch) -> StepOutput:
        raise SystemExit


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that is the point here
def test_when_the_thread_dies_every_sequence_ends_and_no_more_are_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener = Listener()
    engine = Engine(DyingRunner(tiny_model(), CONFIG), CONFIG, 257, listener)
    sequences = [greedy(i) for i in range(6)]
    for sequence in sequences:
        engine.submit(sequence)
    engine.start()
    assert {e.finish for e in listener.until_finished(6).values()} == {FinishReason.ABORT}
    with pytest.raises(EngineStopped):
        engine.submit(greedy(1))
    assert not engine.stats().alive
    assert "thread ends" in caplog.text
    engine.stop()
    engine.scheduler.check_integrity()


class FrozenRunner(EagerRunner):
    """Its forward pass returns when told."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.entered, self.go_on = threading.Event(), threading.Event()

    def run(self, batch: Batch) -> StepOutput:
        self.entered.set()
        assert self.go_on.wait(60)
        return super().run(batch)


def test_a_frozen_engine_says_so_and_can_be_left_behind() -> None:
    runner = FrozenRunner(tiny_model(), CONFIG)
    engine = Engine(runner, CONFIG, 257, Listener())
    engine.start()
    assert not engine.stats().stalled(0.0), "idle is not stalled, however long"
    engine.submit(greedy(1))
    assert runner.entered.wait(60)
    while not engine.stats().stalled(0.001):
        pass
    assert not engine.stats().stalled(60.0)
    assert not engine.stop(timeout=0.01)
    runner.go_on.set()
    assert engine.stop(timeout=60)


def test_work_that_nobody_takes_up_counts_as_a_stall() -> None:
    engine = Engine(EagerRunner(tiny_model(), CONFIG), CONFIG, 257, Listener())
    engine._last_step -= 1000  # it has been idle for long
    engine.submit(greedy(1))  # its thread was never started
    assert not engine.stats().stalled(30.0), "it counts from when the work came"
    while not engine.stats().stalled(0.001):
        pass


class LostRunner(EagerRunner):
    """Its device goes at the second step."""

    num_passes = 0

    def run(self, batch: Batch) -> StepOutput:
        self.num_passes += 1
        if self.num_passes == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().run(batch)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that is the point here
def test_a_lost_device_fails_its_batch_and_ends_the_engine() -> None:
    config = EngineConfig(max_model_len=64, max_num_seqs=1, max_num_batched_tokens=64, block_size=4)
    listener = Listener()
    engine = Engine(LostRunner(tiny_model(), config), config, 257, listener)
    running, waiting = greedy(1), greedy(2)
    engine.submit(running)
    engine.submit(waiting)
    engine.start()
    ends = listener.until_finished(2)
    assert isinstance(ends[running.id].error, DeviceLost)
    assert ends[waiting.id].finish is FinishReason.ABORT
    engine.stop()
    assert not engine.stats().alive


class FullRunner(EagerRunner):
    """Has no memory for three sequences."""

    def run(self, batch: Batch) -> StepOutput:
        if len(batch.chunks) > 2:
            raise torch.OutOfMemoryError("no memory")
        return super().run(batch)


def test_without_memory_the_batch_ends_and_a_smaller_one_runs(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()
    engine = Engine(FullRunner(tiny_model(), CONFIG), CONFIG, 257, listener)
    batch = [greedy(i) for i in range(3)]
    for sequence in batch:
        engine.submit(sequence)
    engine.start()
    ends = listener.until_finished(3)
    assert all(isinstance(end.error, OutOfMemory) for end in ends.values())
    assert len({id(end.error) for end in ends.values()}) == 3, "each its own: raising one changes it"
    engine.submit(after := greedy(1))
    assert listener.until_finished(1)[after.id].finish is FinishReason.LENGTH
    engine.stop()
    engine.scheduler.check_integrity()


class Activation:
    """Something large that a forward pass holds."""


class HoardingRunner(EagerRunner):
    """Runs out of memory while it holds something."""

    held: weakref.ref[Activation]

    def run(self, batch: Batch) -> StepOutput:
        activation = Activation()
        self.held = weakref.ref(activation)
        raise torch.OutOfMemoryError("no memory")


def test_what_a_failed_pass_held_is_let_go_before_memory_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = HoardingRunner(tiny_model(), CONFIG)
    engine = Engine(runner, CONFIG, 257, Listener())
    engine.scheduler.add(greedy(1))
    was_held: list[bool] = []
    monkeypatch.setattr("llm.engine.release_memory", lambda _: was_held.append(runner.held() is not None))
    assert engine.step()
    assert was_held == [False], "torch can give back only what nobody holds"
