"""A checkpoint's parameters → the structures and panels that the kernel reads.

    quantization   blocks' matrices                         embedding and head
    none           float32                                  float32
    int8           q8_0                                     q8_0
    int4           q4_1; stored 4-bit groups as they are    q8_0; stored 4-bit groups as they are
    auto           stored groups as they are, else q8_0     the same

Groups that are stored are never taken apart and rounded again where they may stay. A head of 4 bits costs ten
times what the rest costs together (KL 0.045 on SmolLM2), so nothing here makes one. Refuses to know threads,
steps and files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.adapt.quant import Fit, Format, QuantTensor, pad_inputs, quantize
from llm.config import ModelConfig
from llm.errors import CheckpointError
from llm.rope import Rotary
from llm.runner.native.binding import ACTIVATIONS, FORMATS, Layer, Matrix, Model
from llm.runner.native.memory import Memory
from llm.runner.native.pack import PackedMatrix, pack

Quantization = Literal["none", "int8", "int4", "auto"]
_TABLES = ("tokens.weight", "head.weight")


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether a parameter is one of those that the table above is about; positions are only looked up."""
    return len(shape) == 2 and name != "positions.weight"


def is_table(name: str) -> bool:
    """Whether a matrix is the embedding or the head."""
    return name in _TABLES


def as_served(
    name: str, weight: Tensor | QuantTensor, quantization: Quantization, fit: Fit = "fitted"
) -> Tensor | QuantTensor:
    """The matrix in the format that the table above says.

    Args:
        fit: how floats become q4_1.

    Raises:
        CheckpointError: weights that the format cannot hold.
    """
    stored = weight.format if isinstance(weight, QuantTensor) else None
    wanted: Format = "q4_1" if quantization == "int4" and not is_table(name) else "q8_0"
    four_bits = stored in ("q4_0", "q4_1")
    if stored is not None and quantization != "none":
        if quantization == "auto" or stored == wanted or (quantization == "int4" and four_bits):
            return weight
    floats = weight.dequantize() if isinstance(weight, QuantTensor) else weight
    if quantization == "none":
        return floats
    try:
        return quantize(pad_inputs(floats), wanted, fit)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None


class ModelWeights:
    """The kernel's view of a network: structures, and the arrays they point to.

    Args:
        config: what the network is; its positions are as many as the rotary tables get.
        parameters: (our name, weight), each once; packed one after the other, so that little more than what
            is served is in memory at a time.
        quantization: see the module.

    Attributes:
        model: for `Kernel`.
        num_bytes: of all arrays.
        read_bytes: without the tables of which a step reads single rows: positions, an untied embedding.
        formats: how many weights are in each format.

    Raises:
        CheckpointError: weights that the format cannot hold.
    """

    def __init__(
        self,
        config: ModelConfig,
        parameters: Iterable[tuple[str, Tensor | QuantTensor]],
        quantization: Quantization,
    ) -> None:
        self.config = config
        self._memory = Memory()
        self._packed: dict[str, PackedMatrix] = {}
        self._floats: dict[str, NDArray[np.float32]] = {}
        self.formats: dict[str, int] = {}
        for name, weight in parameters:
            self._take(name, weight, quantization)
        self._layers = (Layer * config.num_layers)(*map(self._layer, range(config.num_layers)))
        self.model = self._model()
        sizes = {name: packed.panels.nbytes for name, packed in self._packed.items()}
        sizes |= {name: array.nbytes for name, array in self._floats.items()}
        tables = {"positions.weight", "cosines", "sines"} | (set() if config.tied_head else {"tokens.weight"})
        self.num_bytes = sum(sizes.values())
        self.read_bytes = sum(size for name, size in sizes.items() if name not in tables)

    def _take(self, name: str, weight: Tensor | QuantTensor, quantization: Quantization) -> None:
        if not is_matrix(name, weight.shape):
            floats = weight.dequantize() if isinstance(weight, QuantTensor) else weight
            self._floats[name] = padded(floats)
            return
        packed = pack(as_served(name, weight, quantization), self._memory)
        self._packed[name] = packed
        self.formats[packed.format] = self.formats.get(packed.format, 0) + weight.shape[0] * weight.shape[1]

    def _matrix(self, name: str) -> Matrix:
        """By its parameter's name without ".weight"; an empty one when the network has none."""
        packed = self._packed.get(name + ".weight")
        if packed is None:
            return Matrix()
        return Matrix(
            packed.panels.ctypes.data,
            self._address(name + ".bias"),
            FORMATS[packed.format],
            packed.num_out,
            packed.num_in,
        )

    def _address(self, name: str) -> int | None:
        array = self._floats.get(name)
        return None if array is None else array.ctypes.data

    def _layer(self, index: int) -> Layer:
        at = f"blocks.{index}."
        matrices = ("attention.qkv", "attention.out", "ffn.gate", "ffn.up", "ffn.down")
        floats = (
            "attention_norm.weight",
            "attention_norm.bias",
            "ffn_norm.weight",
            "ffn_norm.bias",
            "attention.q_norm.weight",
            "attention.k_norm.weight",
        )
        return Layer(
            *(self._matrix(at + name) for name in matrices),
            *(self._address(at + name) for name in floats),
            self.config.window(index) or 0,
        )

    def _model(self) -> Model:
        config = self.config
        if config.rope_theta is not None:
            positions = torch.arange(config.num_positions)
            for name, table in zip(
                ("cosines", "sines"), Rotary(config)(positions, torch.float32), strict=True
            ):
                self._floats[name] = table.squeeze(-2).contiguous().numpy()  # (positions, D/2)
        return Model(
            num_layers=config.num_layers,
            width=config.width,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            ffn_width=config.ffn_width,
            vocab_size=config.vocab_size,
            layer_norm=config.norm == "layer",
            activation=ACTIVATIONS[config.activation],
            norm_eps=config.norm_eps,
            layers=self._layers,
            embedding=self._matrix("tokens"),
            head=self._matrix("tokens" if config.tied_head else "head"),
            positions=self._address("positions.weight"),
            cosines=self._address("cosines"),
            sines=self._address("sines"),
            norm=self._address("norm.weight"),
            norm_bias=self._address("norm.bias"),
        )


def padded(values: Tensor) -> NDArray[np.float32]:
    """A copy with zeros after a row's last number, up to a multiple of 32: (..., n) → (..., 32 · groups)."""
    rows = values.reshape(-1, values.shape[-1]).float()
    array: NDArray[np.float32] = pad_inputs(rows).clone().numpy().reshape(*values.shape[:-1], -1)
    return array
