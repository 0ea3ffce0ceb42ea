"""The loop: one thread per device that turns submitted sequences into token events.

Sequences come in through `submit` and `abort` from any thread; events leave through one `emit` call per
step, made on the engine's thread. Token ids in, TokenEvents out: the engine never sees text, tokenizers,
sockets or an event loop.

    >>> engine = Engine(EagerRunner(model, config), config, vocab_size, emit=print); engine.start()
    >>> engine.submit(Sequence([1, 2, 3], SamplingParams(max_tokens=8)))
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from llm.batch import Batch
from llm.config import EngineConfig
from llm.drawing import begin_masks, draw
from llm.errors import DeviceLost, EngineStopped
from llm.runner import Runner, StepOutput
from llm.runner.faults import fault_of, release_memory
from llm.scheduler import Scheduler
from llm.sequence import Sequence, TokenEvent

log = logging.getLogger(__name__)

Emit = Callable[[list[TokenEvent]], None]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for health and load. `num_tokens` were drawn, `num_prompt_tokens` computed (again after a
    preemption); `seconds_since_step` counts from the last step, or from when an idle engine was given work.
    Of `num_drafted` tokens that were guessed and computed `num_accepted` came. Of the free blocks
    `num_cached_blocks` hold what may be found again; of `num_cache_queries` tokens of prompts that were
    looked up `num_cache_hits` were found.
    `cpu_seconds` are the thread's own, up to the last step, and `runner_cpu_seconds` those of them in which
    it computed the model: the rest planned, drew and told.
    """

    device: str
    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int
    num_steps: int
    num_tokens: int
    num_prompt_tokens: int
    num_preemptions: int
    seconds_since_step: float
    alive: bool
    num_cached_blocks: int = 0
    num_cache_queries: int = 0
    num_cache_hits: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    cpu_seconds: float = 0.0
    runner_cpu_seconds: float = 0.0

    def stalled(self, seconds: float) -> bool:
        """Whether there is work, and has been no step for that long."""
        return self.num_running + self.num_waiting > 0 and self.seconds_since_step > seconds


class Engine:
    """Continuous batching of one model on one device.

    Args:
        runner: computes batches; owns the KV storage.
        config: bounds of a step and of the block pool.
        vocab_size: ids that may be drawn; a padded head's other rows never are.
        emit: receives each step's events on the engine's thread; must not block.
        device: for the log and the statistics.
    """

    def __init__(
        self, runner: Runner, config: EngineConfig, vocab_size: int, emit: Emit, device: str = "cpu"
    ) -> None:
        self.runner = runner
        self.config = config
        self.vocab_size = vocab_size
        self.emit = emit
        self.device = device
        self.scheduler = Scheduler(config)
        self.num_steps = 0
        self.num_prompt_tokens = 0
        self.cpu_seconds = 0.0
        self.runner_cpu_seconds = 0.0
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._inbox_lock = threading.Lock()
        self._stopped = False
        self._is_idle = True
        self._last_step = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"engine-{device}", daemon=True)

    def step(self) -> bool:
        """One turn: choose, compute, sample, commit. False when there is nothing to do."""
        batch = self.scheduler.schedule()
        if batch is None:
            return False
        started = time.monotonic()
        try:
            masks = begin_masks(batch)  # on another thread, while the model computes
            drawn = draw(self._compute(batch), batch, self.vocab_size, masks)
        except Exception as error:
            self._fail(batch, error)
            return True
        self._count(batch, started)
        self.emit(self.scheduler.commit(batch, drawn))  # a finished sequence gets exactly one last event
        return True

    def _compute(self, batch: Batch) -> StepOutput:
        begun = time.thread_time()
        output = self.runner.run(batch)
        self.runner_cpu_seconds += time.thread_time() - begun
        return output

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; from here on it belongs to the engine's thread.

        Raises:
            EngineStopped: the engine takes no more work.
        """
        self._post(lambda: self.scheduler.add(sequence))

    def abort(self, sequence: Sequence) -> None:
        """End a sequence before the next step; its last event says ABORT. Harmless when it has ended."""
        try:
            self._post(lambda: self.emit(self.scheduler.abort(sequence)))
        except EngineStopped:
            return  # stopping has ended it

    def call(self, work: Callable[[], None]) -> Future[None]:
        """Do this on the engine's thread, between two steps and after what was posted before. What it raises
        is for the caller to know, and no matter to the engine.

        Raises:
            EngineStopped: the engine takes no more work.
        """
        done: Future[None] = Future()

        def run() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                work()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._post(run)
        return done

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Abort every sequence and end the thread. False when that took longer than `timeout` seconds: a
        forward pass does not return.
        """
        with self._inbox_lock:
            self._stopped = True
            self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)
            return not self._thread.is_alive()
        self._end_all()  # it never ran, or has done so already
        return True

    def stats(self) -> EngineStats:
        """A snapshot; the numbers are read without a lock and may be one step apart."""
        return EngineStats(
            device=self.device,
            num_running=len(self.scheduler.running),
            num_waiting=self.scheduler.num_waiting + self._inbox.qsize(),
            num_free_blocks=self.scheduler.blocks.num_free,
            num_blocks=self.scheduler.blocks.num_blocks,
            num_steps=self.num_steps,
            num_tokens=self.scheduler.num_tokens,
            num_prompt_tokens=self.num_prompt_tokens,
            num_preemptions=self.scheduler.num_preemptions,
            seconds_since_step=time.monotonic() - self._last_step,
            alive=self._thread.is_alive() and not self._stopped,
            num_drafted=self.scheduler.speculation.num_drafted,
            num_accepted=self.scheduler.speculation.num_accepted,
            num_cached_blocks=self.scheduler.blocks.num_cached,
            num_cache_queries=self.scheduler.tables.num_queries,
            num_cache_hits=self.scheduler.tables.num_hits,
            cpu_seconds=self.cpu_seconds,
            runner_cpu_seconds=self.runner_cpu_seconds,
        )

    def _count(self, batch: Batch, started: float) -> None:
        self.num_steps += 1
        self.num_prompt_tokens += sum(
            min(chunk.stop, len(chunk.sequence.prompt)) - chunk.start
            for chunk in batch.chunks
            if chunk.start < len(chunk.sequence.prompt)
        )
        self._last_step = time.monotonic()
        self.cpu_seconds = time.thread_time()
        self.scheduler.learn(batch, self._last_step - started)

    def _fail(self, batch: Batch, error: Exception) -> None:
        """End the batch's sequences; when the device is lost, the engine too."""
        fault = fault_of(error)
        log.exception("%s: a step of %d tokens failed", self.device, batch.num_tokens, exc_info=error)
        self.emit(self.scheduler.fail(batch, fault, "the model failed; the server log says why"))
        if issubclass(fault, DeviceLost):
            raise DeviceLost(f"{self.device} will not compute again") from error
        traceback.clear_frames(error.__traceback__)  # they hold the step's tensors
        release_memory(self.runner.device)
        self._last_step = time.monotonic()

    def _post(self, work: Callable[[], None]) -> None:
        with self._inbox_lock:
            if self._stopped:
                raise EngineStopped("the engine takes no more work: it is stopping or has stopped")
            if self._is_idle:
                self._last_step = time.monotonic()  # an idle engine has not been stalled
            self._inbox.put(work)

    def _run(self) -> None:
        """The thread: serve the inbox, step, and sleep only when both are empty."""
        busy = False
        try:
            while self._serve_inbox(wait=not busy):
                busy = self.step()
        except BaseException as error:
            log.critical("%s: the engine's thread ends: %r", self.device, error, exc_info=error)
            raise
        finally:
            self._end_all()

    def _serve_inbox(self, *, wait: bool) -> bool:
        """Do what was posted; False when asked to stop."""
        while True:
            try:
                self._is_idle = wait
                work = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            self._is_idle = False
            if work is None:
                return False
            work()
            wait = False

    def _end_all(self) -> None:
        with self._inbox_lock:
            self._stopped = True
        while not self._inbox.empty():
            work = self._inbox.get()
            if work is not None:
                work()
        self.emit([event for s in list(self.scheduler.sequences()) for event in self.scheduler.abort(s)])
