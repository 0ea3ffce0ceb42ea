"""The native runner: one C call a step, and no sequence's bits depend on what else is in the batch.

Turns a Batch into arrays of int32, the kernel turns those into logits. Keys and values live here in blocks of
16 tokens. Refuses to know why these chunks were chosen, what is drawn from the logits, and how a step is
computed (kernel/).

    >>> runner = NativeRunner(checkpoint.config, checkpoint.weights(), config)
    >>> runner.run(batch).logits.shape
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.adapt.quant import QuantTensor
from llm.config import EngineConfig, ModelConfig
from llm.errors import OptionError
from llm.hardware import usable_memory
from llm.runner import StepOutput
from llm.runner.native.build import built_library
from llm.runner.native.library import BLOCK_TOKENS, Cache, Kernel, Step, load
from llm.runner.native.memory import Memory
from llm.runner.native.weights import ModelWeights, Quantization
from llm.scheduler import Batch


class NativeRunner:
    """Runs batches of one model on the CPU.

    Args:
        model: what the network is.
        parameters: its weights, (our name, weight), each once.
        config: bounds of a step and of the KV pool; its blocks are of 16 tokens.
        quantization: how matrices are kept; see weights.py.
        half_kv: keys and values in float16, else float32.
        num_threads: that compute, the engine's included.
        isa: "avx512", "avx2" or "portable"; None for the best of this CPU.

    Attributes:
        isa: of the library in use.
        weight_bytes: of the weights as served.
        formats: how many weights are in each format.
        kernel: for measurements.

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
        isa: str | None = None,
    ) -> None:
        assert config.block_size == BLOCK_TOKENS, config.block_size
        library = load(built_library(isa))
        self.device = torch.device("cpu")
        self.num_threads = num_threads
        self.half_kv = half_kv
        self.isa = str(library.kernel_isa().decode())
        self._model, self._config = model, config
        weights = ModelWeights(model, parameters, quantization)
        self.weight_bytes, self.formats = weights.num_bytes, weights.formats
        keys, values = _pools(model, config, half_kv)
        cache = Cache(keys.ctypes.data, values.ctypes.data, half_kv, config.total_blocks)
        self.kernel = Kernel(
            library,
            weights.model,
            cache,
            (weights, keys, values),
            num_threads=num_threads,
            max_rows=config.max_num_batched_tokens,
        )
        self._logits = np.empty((0, model.vocab_size), np.float32)
        self._hidden = np.empty((0, model.width), np.float32)

    @property
    def about(self) -> str:
        """See Runner."""
        weights = " and ".join(sorted(self.formats, key=lambda name: -self.formats[name]))
        threads = "1 thread" if self.num_threads == 1 else f"{self.num_threads} threads"
        kv = "float16" if self.half_kv else "float32"
        return f"native runner ({self.isa}, {threads}), {weights} weights, KV in {kv}"

    def run(self, batch: Batch) -> StepOutput:
        """See Runner."""
        chunks = batch.chunks
        if batch.copies:
            self.kernel.copy_blocks(np.array(batch.copies, np.int32))
        tokens = _ints(chain.from_iterable(c.sequence.tokens(c.start, c.stop) for c in chunks))
        positions = _ints(chain.from_iterable(range(c.start, c.stop) for c in chunks))
        if not 0 <= tokens.min() <= tokens.max() < self._model.vocab_size:
            raise IndexError(f"token ids {tokens.min()} to {tokens.max()} of {self._model.vocab_size}")
        starts = np.zeros(len(chunks) + 1, np.int32)
        np.cumsum([c.length for c in chunks], out=starts[1:])
        tables = _tables([c.sequence.block_ids for c in chunks], [-(-c.stop // BLOCK_TOKENS) for c in chunks])
        rows = np.array(batch.rows, np.int32)
        embedding = [
            range(first, first + c.length)
            for first, c in zip(starts.tolist(), chunks, strict=False)
            if c.sequence.embeds
        ]
        hidden_rows = _ints(chain.from_iterable(embedding))
        self._logits = _room(self._logits, len(rows))
        self._hidden = _room(self._hidden, len(hidden_rows))
        self.kernel.step(
            Step(
                num_rows=len(tokens),
                num_sequences=len(chunks),
                table_width=tables.shape[1],
                num_logits=len(rows),
                num_hidden=len(hidden_rows),
                tokens=tokens.ctypes.data,
                positions=positions.ctypes.data,
                starts=starts.ctypes.data,
                tables=tables.ctypes.data,
                logit_rows=rows.ctypes.data,
                hidden_rows=hidden_rows.ctypes.data,
                logits=self._logits.ctypes.data,
                hidden=self._hidden.ctypes.data,
            )
        )
        return StepOutput(
            torch.from_numpy(self._logits[: len(rows)]), torch.from_numpy(self._hidden[: len(hidden_rows)])
        )


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


def _ints(values: Iterable[int]) -> NDArray[np.int32]:
    return np.fromiter(values, np.int32)


def _tables(block_ids: list[list[int]], num_blocks: list[int]) -> NDArray[np.int32]:
    """Each sequence's blocks in a row, as many as it has tokens for: (B, the most)."""
    tables = np.zeros((len(block_ids), max(num_blocks)), np.int32)
    for row, ids, count in zip(tables, block_ids, num_blocks, strict=True):
        row[:count] = ids[:count]
    return tables


def _room(buffer: NDArray[np.float32], num_rows: int) -> NDArray[np.float32]:
    """The buffer, or a larger one: memory that was written before costs no page faults."""
    return buffer if num_rows <= len(buffer) else np.empty((num_rows, buffer.shape[1]), np.float32)
