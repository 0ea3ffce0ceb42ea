"""The tensors of a GGUF file as our Decoder's parameters: names, shapes, types, and the numbers on call.

Plain floats are mapped; Q8_0, Q4_0 and Q4_1 are handed on as stored (adapt/quant.py); every other type that
the gguf package dequantises becomes float32. The llama architecture stores the rows of q and k in interleaved
pairs, ours are two halves: rows are put back whole, stored bytes and all. Refuses to know metadata.

    >>> parameters, ignored = find_parameters(read_gguf(Path("model.gguf")))
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from llm.adapt.quant import BLOCK_BYTES, QuantTensor
from llm.checkpoint.gguf.file import GgufFile, TensorInfo
from llm.checkpoint.pt.names import Part, Target
from llm.checkpoint.record import Weight, count_types, expected_shapes, some
from llm.config import ModelConfig
from llm.errors import CheckpointError

Parameters = dict[str, dict[Part | None, TensorInfo]]
"""Our name → one tensor under None, or some of three under q, k and v."""

_NAME = re.compile(r"(?:blk\.(0|[1-9]\d{0,4})\.)?(\w+)\.(weight|bias)")
_TOP = {"token_embd": Target("tokens"), "output_norm": Target("norm"), "output": Target("head")}
_IN_BLOCK = {
    "attn_norm": Target("attention_norm"),
    "attn_q": Target("attention.qkv", "q"),
    "attn_k": Target("attention.qkv", "k"),
    "attn_v": Target("attention.qkv", "v"),
    "attn_q_norm": Target("attention.q_norm"),
    "attn_k_norm": Target("attention.k_norm"),
    "attn_output": Target("attention.out"),
    "ffn_norm": Target("ffn_norm"),
    "ffn_gate": Target("ffn.gate"),
    "ffn_up": Target("ffn.up"),
    "ffn_down": Target("ffn.down"),
}
_ROPE_FACTORS = "rope_freqs.weight"
_TABLE = re.compile(r"blk\.\d+\.attn_rot_embd\.weight")
"""Old files carry the rotary frequencies of each layer, which rope.freq_base gives."""
_LAYER_PARAMETERS = 7
"""Of ours at least: two norms, qkv and out of attention, gate, up and down of the feed-forward layer."""

_FLOATS = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
    GGMLQuantizationType.F64: torch.float64,
}
_GROUPS = {GGMLQuantizationType[name.upper()]: name for name in BLOCK_BYTES}
_BLOCKS_VERSION = 2
"""Of the blocks' layout, general.quantization_version; only files older than GGUF had another."""
_MAX_FACTORS = 1 << 14
_CHUNK_WEIGHTS = 1 << 20
"""Dequantised at a time; the package's temporaries are several times the 4 MiB that come out."""


def find_parameters(file: GgufFile) -> tuple[Parameters, list[str]]:
    """The tensors under our names, in the file's order, and notes about those that are not needed.

    Raises:
        CheckpointError: a name that is not in the table, or a type without a reader.
    """
    path, parameters = file.paths[0], Parameters()
    known = {name: _recognise(name) for name in file.tensors if name != _ROPE_FACTORS}
    tables = [name for name, target in known.items() if target is None and _TABLE.fullmatch(name)]
    unknown = [name for name, target in known.items() if target is None and name not in tables]
    if unknown:
        raise CheckpointError(f"{path}: names not recognised, {len(unknown)} in all: {some(unknown)}")
    for name, target in known.items():
        if target is not None:
            _check_type(file, name)
            parameters.setdefault(target.name, {})[target.part] = file.tensors[name]
    return parameters, [f"tensors: ignored {some(tables)}"] if tables else []


def _recognise(name: str) -> Target | None:
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    block, stem, kind = found.groups()
    target = (_TOP if block is None else _IN_BLOCK).get(stem)
    start = "" if block is None else f"blocks.{block}."
    return target and Target(f"{start}{target.name}.{kind}", target.part)


def _check_type(file: GgufFile, name: str) -> None:
    """Every type is tried on one block of zeros, so that none is found unreadable halfway through."""
    kind = file.tensors[name].kind
    if kind in _FLOATS:
        return
    if (version := file.fields.get("general.quantization_version", _BLOCKS_VERSION)) != _BLOCKS_VERSION:
        raise CheckpointError(
            f"{file.paths[0]}: general.quantization_version is {repr(version)[:64]}, "
            f"readable is {_BLOCKS_VERSION}"
        )
    try:
        _dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        raise CheckpointError(
            f"{file.paths[0]}: tensor {some([name])} has type {kind.name}, which cannot be dequantised here"
        ) from None


def check_shapes(file: GgufFile, parameters: Parameters, config: ModelConfig) -> None:
    """Exactly the parameters of `Decoder(config)`, each of its shape.

    A few are compared before the Decoder is drawn up, so that nobody multiplies dimensions merely claimed.

    Raises:
        CheckpointError: a tensor that is missing, too many, or of another shape.
    """
    path, width = file.paths[0], config.width
    blocks = len({name.split(".")[1] for name in parameters if name.startswith("blocks.")})
    if blocks != config.num_layers or len(parameters) < _LAYER_PARAMETERS * blocks:
        raise CheckpointError(
            f"{path}: block_count is {config.num_layers}, the file has {len(file.tensors)} tensors "
            f"in {blocks} blocks"
        )
    qkv, up = (_num_rows(config)[None], width), (config.ffn_width, width)
    few = {"tokens.weight": (config.vocab_size, width)}
    few |= {"blocks.0.attention.qkv.weight": qkv, "blocks.0.ffn.up.weight": up}
    _compare(path, parameters, config, few)
    expected = expected_shapes(config)
    if extra := sorted(parameters.keys() - expected.keys()):
        raise CheckpointError(f"{path}: not part of this architecture: {some(map(_gguf_name, extra))}")
    _compare(path, parameters, config, expected)


def _num_rows(config: ModelConfig) -> dict[Part | None, int]:
    """Rows of q, k and v, and of the three joined."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {"q": q, "k": kv, "v": kv, None: q + 2 * kv}


def _compare(
    path: Path, parameters: Parameters, config: ModelConfig, expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Each tensor's shape with what the configuration says."""
    missing: list[str] = []
    for name, shape in expected.items():
        for part in _parts(name):
            wanted = shape if part is None else (_num_rows(config)[part], *shape[1:])
            info = parameters.get(name, {}).get(part)
            if info is None:
                missing.append(_gguf_name(name, part))
            elif info.shape != wanted:
                raise CheckpointError(
                    f"{path}: {info.name} has shape {list(info.shape)}, the metadata say {list(wanted)}"
                )
    if missing:
        raise CheckpointError(f"{path}: missing, {len(missing)} in all: {some(missing)}")


def _parts(name: str) -> tuple[Part | None, ...]:
    """How our parameter is stored: q, k and v apart."""
    return ("q", "k", "v") if ".attention.qkv." in name else (None,)


def _gguf_name(ours: str, part: Part | None = None) -> str:
    """The file's name of our parameter, or of one part of it."""
    head, _, kind = ours.rpartition(".")
    block, stem = (head.split(".", 2)[1:]) if head.startswith("blocks.") else ("", head)
    table = _IN_BLOCK if block else _TOP
    part = part or _parts(ours)[0]
    theirs = next((name for name, target in table.items() if target == Target(stem, part)), stem)
    return f"blk.{block}.{theirs}.{kind}" if block else f"{theirs}.{kind}"


def stored_types(parameters: Parameters) -> dict[str, int]:
    """How many weights the file holds in each type, by torch's name or the quantisation's."""
    infos = [info for slots in parameters.values() for info in slots.values()]
    return count_types((_type_name(info.kind), math.prod(info.shape)) for info in infos)


def _type_name(kind: GGMLQuantizationType) -> str:
    return str(_FLOATS[kind]).removeprefix("torch.") if kind in _FLOATS else kind.name.lower()


def read_rope_factors(file: GgufFile) -> tuple[float, ...]:
    """What divides each rotary frequency (Llama 3.1 and later), or ().

    Raises:
        CheckpointError: not a row of float32, or longer than any head.
    """
    if (info := file.tensors.get(_ROPE_FACTORS)) is None:
        return ()
    if info.kind != GGMLQuantizationType.F32 or len(info.shape) != 1 or info.shape[0] > _MAX_FACTORS:
        raise CheckpointError(
            f"{info.path}: {info.name} has type {info.kind.name} and shape {list(info.shape)}, "
            f"expected F32 and at most {_MAX_FACTORS} numbers"
        )
    return tuple(info.map().view(torch.float32).tolist())


def read_parameters(
    parameters: Parameters, interleaved: Mapping[Part | None, int]
) -> Iterator[tuple[str, Weight]]:
    """(our name, weight), q, k and v joined: as stored when all three are stored alike, else as floats.

    Args:
        interleaved: heads of the parts whose rows are stored in pairs.

    Raises:
        CheckpointError: the file is no longer what it was.
    """
    for name, slots in parameters.items():
        weights = []
        for part in _parts(name):
            weight = _read_tensor(slots[part])
            weights.append(_separate(weight, interleaved[part]) if part in interleaved else weight)
        yield name, weights[0] if len(weights) == 1 else _join(weights)


def _read_tensor(info: TensorInfo) -> Weight:
    data = info.map()  # (nbytes,)
    if info.kind in _FLOATS:
        return data.view(_FLOATS[info.kind]).view(info.shape)
    rows = data.view(math.prod(info.shape[:-1]), -1)  # (rows, bytes of one)
    if info.kind in _GROUPS and len(info.shape) == 2:
        return QuantTensor(_GROUPS[info.kind], (info.shape[0], info.shape[1]), rows)
    out = _anonymous(len(rows), info.shape[-1])
    step = max(1, _CHUNK_WEIGHTS // info.shape[-1])
    for start in range(0, len(rows), step):
        chunk = _dequantize(rows[start : start + step].numpy(), info.kind)
        out[start : start + step] = torch.from_numpy(chunk)
    return out.view(info.shape)


def _anonymous(rows: int, columns: int) -> Tensor:
    """Float32 (rows, columns) in memory of its own, which goes back to the system with the tensor.

    From malloc it would stay in the process, in holes between the weights that are kept: measured, half as
    much again as the weights.
    """
    memory = mmap.mmap(-1, rows * columns * 4)
    return torch.frombuffer(memory, dtype=torch.float32).view(rows, columns)


def _dequantize(rows: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[np.float32]:
    """(rows, bytes of one) → (rows, weights of one). Scales that are NaN or infinite make such weights."""
    with np.errstate(all="ignore"):
        return quants.dequantize(rows, kind)


def _separate(weight: Weight, num_heads: int) -> Weight:
    """Rows 2i and 2i + 1 of each head become its rows i and i + D/2: (H·D, ...) → (H·D, ...)."""
    pairs = torch.arange(weight.shape[0]).view(num_heads, -1, 2)  # (H, D/2, 2)
    order = pairs.transpose(1, 2).flatten()  # (H·D,)
    return weight.select_rows(order) if isinstance(weight, QuantTensor) else weight[order]


def _join(weights: list[Weight]) -> Weight:
    """Rows of all, in order."""
    groups = [weight for weight in weights if isinstance(weight, QuantTensor)]
    if len(groups) == len(weights) and len({group.format for group in groups}) == 1:
        return QuantTensor.join(groups)
    return torch.cat([w.dequantize() if isinstance(w, QuantTensor) else w for w in weights])
