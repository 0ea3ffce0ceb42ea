"""llama.cpp as a contestant, through the ctypes of llama-cpp-python, at the best setting found.

Flash attention on, a KV cache of its own per sequence (not unified), float16 in it, batches of 512. A step's
time holds filling the batch and taking the greatest logit of each row. Runs in the environment of
llama-cpp-python (see `peers_worker`), so it imports nothing of this project.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy

UBATCH = 512


def start(options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Options: model, a GGUF file; threads."""
    llama = importlib.import_module("llama_cpp")
    quiet = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    loaded = llama.llama_model_load_from_file(options["model"].encode(), llama.llama_model_default_params())
    if loaded is None:
        raise ValueError(f"llama.cpp cannot load {options['model']}")
    contestant = Llama(llama, loaded, options["threads"], quiet)
    system = " ".join(llama.llama_print_system_info().decode().replace(" = 1", "").split())
    facts = {"name": f"llama.cpp {llama.__version__}", "model": Path(options["model"]).name, "system": system}
    return facts, contestant.measure


class Llama:
    """One model, and a context for each piece of work."""

    def __init__(self, llama: Any, model: Any, threads: int, quiet: Any) -> None:
        self.llama = llama
        self.model = model
        self.threads = threads
        self.quiet = quiet  # the library holds a bare pointer to it
        self.vocab_size: int = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def measure(self, work: dict[str, Any]) -> dict[str, Any]:
        """{"work": "decode", streams, context, steps} or {"work": "prefill", tokens}."""
        if work["work"] == "decode":
            session = Session(self, work["streams"], work["context"] + work["steps"] + 2)
            try:
                return {"ms_per_step": session.decode(work["context"], work["steps"])}
            finally:
                session.close()
        session = Session(self, 1, work["tokens"] + 1)
        try:
            session.prefill(range(min(64, work["tokens"])))
            session.forget()
            begin = time.perf_counter()
            session.prefill(range(work["tokens"]))
            session.argmax(-1)
            return {"tokens_per_s": work["tokens"] / (time.perf_counter() - begin)}
        finally:
            session.close()


class Session:
    """A context of some sequences, and a batch to fill."""

    def __init__(self, owner: Llama, streams: int, length: int) -> None:
        self.owner = owner
        self.llama = llama = owner.llama
        self.streams = streams
        params = llama.llama_context_default_params()
        params.n_ctx = streams * -(-length // 256) * 256  # a sequence's share is rounded up to this anyway
        params.n_batch = params.n_ubatch = UBATCH
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = owner.threads
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.kv_unified = False
        self.context = llama.llama_init_from_model(owner.model, params)
        if self.context is None:
            raise ValueError(f"llama.cpp makes no context of {params.n_ctx} tokens")
        self.batch = llama.llama_batch_init(UBATCH, 0, 1)

    def close(self) -> None:
        self.llama.llama_batch_free(self.batch)
        self.llama.llama_free(self.context)

    def forget(self) -> None:
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)

    def run(self, rows: Iterable[tuple[int, int, int, bool]]) -> None:
        """Compute (token, position, sequence, wants logits) rows, at most UBATCH."""
        batch, size = self.batch, 0
        for size, (token, position, sequence, wanted) in enumerate(rows, 1):
            batch.token[size - 1] = token
            batch.pos[size - 1] = position
            batch.n_seq_id[size - 1] = 1
            batch.seq_id[size - 1][0] = sequence
            batch.logits[size - 1] = wanted
        batch.n_tokens = size
        if status := self.llama.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode returned {status}")

    def prefill(self, positions: range) -> None:
        """A prompt into sequence 0; the logits of its last token are wanted."""
        for first in range(0, len(positions), UBATCH):
            chunk = positions[first : first + UBATCH]
            self.run((self.token(p), p, 0, p == positions[-1]) for p in chunk)

    def token(self, position: int) -> int:
        """Of a made-up prompt."""
        return (position * 7919 + 1) % self.owner.vocab_size

    def argmax(self, row: int) -> int:
        """The greatest logit's place, as numpy finds it."""
        logits = self.llama.llama_get_logits_ith(self.context, row)
        return int(numpy.ctypeslib.as_array(logits, (self.owner.vocab_size,)).argmax())

    def decode(self, context: int, steps: int) -> float:
        """Median milliseconds of greedy steps, a row per sequence, after two that are not counted.

        The prompt is computed once and its keys and values are copied to the other sequences.
        """
        self.prefill(range(context))
        memory = self.llama.llama_get_memory(self.context)
        for sequence in range(1, self.streams):
            self.llama.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        tokens = [self.token(context + sequence) for sequence in range(self.streams)]
        seconds = []
        for position in range(context, context + steps + 2):
            begin = time.perf_counter()
            self.run((token, position, sequence, True) for sequence, token in enumerate(tokens))
            tokens = [self.argmax(row) for row in range(self.streams)]
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds[2:]) * 1e3
