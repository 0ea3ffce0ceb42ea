"""The native runner: one C call a step, and no sequence's bits depend on what else is in the batch.

Turns a Batch into arrays of int32, the kernel turns those into logits. Keys and values live here in blocks of
16 tokens. Refuses to know why these chunks were chosen, what is drawn from the logits, and how a step is
computed (kernel/).

    >>> runner = NativeRunner(checkpoint.config, checkpoint.weights(), config)
    >>> runner.run(batch).logits.shape
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.adapt.quant import QuantTensor
from llm.batch import Batch
from llm.config import NO_ADAPTERS, AdapterRoom, EngineConfig, ModelConfig
from llm.errors import OptionError
from llm.hardware import usable_memory
from llm.runner import StepOutput
from llm.runner.native.binding import BLOCK_TOKENS, Cache, Kernel, Step, load
from llm.runner.native.build import built_library
from llm.runner.native.lowrank import AdapterTable
from llm.runner.native.memory import Memory
from llm.runner.native.sampler import NativeSampler
from llm.runner.native.weights import ModelWeights, Quantization


class NativeRunner:
    """Runs batches of one model on the CPU.

    Args:
        model: what the network is.
        parameters: its weights, (our name, weight), each once.
        config: bounds of a step and of the KV pool; its blocks are of 16 tokens.
        quantization: how matrices are kept; see weights.py.
        half_kv: keys and values in float16, else float32.
        num_threads: that compute, the engine's included.
        library: compiled for this CPU; None for the best there is, compiled now if need be.
        adapter_room: for adapters, which are computed in float32.

    Attributes:
        isa: "avx512", "avx2" or "portable": what the library was compiled for.
        weight_bytes: of the weights as served.
        read_bytes: of those that every step reads from end to end.
        formats: how many weights are in each format.
        kernel: for measurements.
        sampler: draws from its logits, on the same threads.

    Raises:
        NativeUnavailable: no library for this machine.
        CheckpointError: weights that the format cannot hold.
        OptionError: no room for the KV cache.
        MemoryError: no room for a step's rows.
    """

    def __init__(
        self,
        model: ModelConfig,
        parameters: Iterable[tuple[str, Tensor | QuantTensor]],
        config: EngineConfig,
        *,
        quantization: Quantization = "auto",
        half_kv: bool = True,
        num_threads: int = 1,
        library: Path | None = None,
        adapter_room: AdapterRoom = NO_ADAPTERS,
    ) -> None:
        assert config.block_size == BLOCK_TOKENS, config.block_size
        functions = load(built_library() if library is None else library)
        self.device = torch.device("cpu")
        self.num_threads = num_threads
        self.half_kv = half_kv
        self.isa = str(functions.kernel_isa().decode())
        weights = ModelWeights(model, parameters, quantization)
        self.weight_bytes, self.read_bytes = weights.num_bytes, weights.read_bytes
        self.formats = weights.formats
        self.shelf = AdapterTable(model, adapter_room)
        weights.model.adapters, weights.model.max_rank = self.shelf.layers, self.shelf.max_rank
        keys, values = _pools(model, config, half_kv)
        cache = Cache(keys.ctypes.data, values.ctypes.data, half_kv, config.total_blocks)
        self.kernel = Kernel(
            functions,
            weights.model,
            cache,
            (weights, keys, values, self.shelf),
            num_threads=num_threads,
            max_rows=config.max_num_batched_tokens,
        )
        self.sampler = NativeSampler(self.kernel)
        self._staging = Staging(model, config, self.shelf.index)

    @property
    def about(self) -> str:
        """See Runner."""
        weights = " and ".join(sorted(self.formats, key=lambda name: -self.formats[name]))
        threads = "1 thread" if self.num_threads == 1 else f"{self.num_threads} threads"
        kv = "float16" if self.half_kv else "float32"
        return f"native runner ({self.isa}, {threads}), {weights} weights, KV in {kv}"

    def run(self, batch: Batch) -> StepOutput:
        """See Runner."""
        if batch.copies:
            self.kernel.copy_blocks(np.array(batch.copies, np.int32))
        logits, hidden = self._staging.fill(batch)
        self.kernel.step(self._staging.step)
        return StepOutput(torch.from_numpy(logits), torch.from_numpy(hidden), self.sampler)


class Staging:
    """A step's arrays, made once: an array and its address cost more to make than a row costs to write."""

    def __init__(
        self, model: ModelConfig, config: EngineConfig, adapters: Mapping[str, int] | None = None
    ) -> None:
        self._index = {} if adapters is None else adapters  # what is on the shelf, as it is now
        self._vocab_size = model.vocab_size
        most = config.max_num_batched_tokens
        self.tokens, self.positions, self.rows, self.hidden_rows, self.adapters = np.zeros(
            (5, most), np.int32
        )
        self.starts = np.zeros(most + 1, np.int32)
        self.tables = np.zeros((most, config.blocks_per_sequence), np.int32)
        self.logits = np.empty((0, model.vocab_size), np.float32)
        self.hidden = np.empty((0, model.width), np.float32)
        self._listed: list[list[int]] = [[] for _ in range(most)]  # what a row of tables was written from
        self._num_listed = [0] * most
        self.step = Step(
            table_width=config.blocks_per_sequence,
            tokens=self.tokens.ctypes.data,
            positions=self.positions.ctypes.data,
            starts=self.starts.ctypes.data,
            tables=self.tables.ctypes.data,
            logit_rows=self.rows.ctypes.data,
            hidden_rows=self.hidden_rows.ctypes.data,
        )

    def fill(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Write the batch into the arrays; where its logits (M, V) and hidden states (E, C) will be.

        Raises:
            IndexError: a token id that the model does not have.
        """
        chunks = batch.chunks
        tokens: list[int] = []
        positions: list[int] = []
        embedding: list[int] = []
        starts = [0]
        for index, chunk in enumerate(chunks):
            sequence, start, stop = chunk.sequence, chunk.start, chunk.start + chunk.length
            tokens += sequence.tokens(start, stop)
            tokens += chunk.draft
            stop += len(chunk.draft)
            positions += range(start, stop)
            starts.append(len(tokens))
            if sequence.embeds:
                embedding += range(starts[-2], starts[-1])
            self._list(index, sequence.block_ids, -(-stop // BLOCK_TOKENS))
        if not 0 <= min(tokens) <= max(tokens) < self._vocab_size:
            raise IndexError(f"token ids {min(tokens)} to {max(tokens)} of {self._vocab_size}")
        for array, values in (
            (self.tokens, tokens),
            (self.positions, positions),
            (self.starts, starts),
            (self.rows, batch.rows),
            (self.hidden_rows, embedding),
        ):
            array[: len(values)] = values
        if self._index:
            self._assign(batch, starts)
        self._make_room(len(batch.rows), len(embedding))
        self.step.num_rows, self.step.num_sequences = len(tokens), len(chunks)
        self.step.num_logits, self.step.num_hidden = len(batch.rows), len(embedding)
        return self.logits[: len(batch.rows)], self.hidden[: len(embedding)]

    def _assign(self, batch: Batch, starts: list[int]) -> None:
        """Each row its sequence's adapter; the kernel looks for none where nobody has one."""
        names = (chunk.sequence.adapter for chunk in batch.chunks)
        owners = [self._index[name] if name else -1 for name in names]
        for owner, start, stop in zip(owners, starts, starts[1:], strict=False):
            self.adapters[start:stop] = owner
        self.step.adapters = self.adapters.ctypes.data if max(owners) >= 0 else None

    def _list(self, index: int, block_ids: list[int], count: int) -> None:
        """A sequence's first blocks into a row of tables. A decoder's are nearly always what stands there
        already: a list of blocks only grows, so what is new is behind what was written from the same list.
        """
        if self._listed[index] is not block_ids:
            self._listed[index], self._num_listed[index] = block_ids, 0
        written = self._num_listed[index]
        if written < count:
            self.tables[index, written:count] = block_ids[written:count]
            self._num_listed[index] = count

    def _make_room(self, num_logits: int, num_hidden: int) -> None:
        """Larger buffers where these are too small; memory that was written before costs no page faults."""
        if num_logits > len(self.logits):
            self.logits = np.empty((num_logits, self.logits.shape[1]), np.float32)
            self.step.logits = self.logits.ctypes.data
        if num_hidden > len(self.hidden):
            self.hidden = np.empty((num_hidden, self.hidden.shape[1]), np.float32)
            self.step.hidden = self.hidden.ctypes.data


def kv_block_bytes(model: ModelConfig, half_kv: bool) -> tuple[int, int]:
    """Bytes of a block's keys and of its values, all layers together; values are padded to 16 numbers."""
    tokens = model.num_layers * model.num_kv_heads * BLOCK_TOKENS * (2 if half_kv else 4)
    return tokens * model.head_dim, tokens * -(-model.head_dim // 16) * 16


def _pools(
    model: ModelConfig, config: EngineConfig, half_kv: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Zeros for keys and values; a page of memory counts once it is written."""
    sizes = [config.total_blocks * size for size in kv_block_bytes(model, half_kv)]
    try:
        if sum(sizes) > usable_memory():
            raise MemoryError
        memory = Memory()
        keys, values = (memory.take(size) for size in sizes)
    except MemoryError:
        raise OptionError(
            f"a KV cache of {config.total_blocks} blocks of {BLOCK_TOKENS} tokens needs "
            f"{sum(sizes) / 1e9:.1f} GB, more than cpu has: lower --max-num-seqs or --max-model-len"
        ) from None
    return keys, values
