"""Tensors to parameters: plain floats bit for bit, groups byte for byte, rows of q and k in their places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from torch import Tensor

from llm.adapt.quant import QuantTensor
from llm.checkpoint.gguf.file import read_gguf
from llm.checkpoint.gguf.tensors import (
    check_shapes,
    find_parameters,
    read_parameters,
    read_rope_factors,
    stored_types,
)
from llm.checkpoint.record import Weight
from llm.config import ModelConfig
from llm.errors import CheckpointError
from tests.checkpoint_writers import LLAMA, gguf_tensors, random_weights, write_gguf

WIDE = replace(LLAMA, width=256, ffn_width=256, num_layers=1)
"""Rows of 256, a super-block of the K types."""
QWEN2 = replace(LLAMA, attention_bias=True, tied_head=False)
QWEN3 = replace(LLAMA, qk_norm=True, head_size=8)
BIASED = replace(LLAMA, attention_bias=True, attention_out_bias=True, ffn_bias=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def read(path: Path, config: ModelConfig, architecture: str = "llama") -> dict[str, Weight]:
    file = read_gguf(path)
    parameters, notes = find_parameters(file)
    check_shapes(file, parameters, config)
    heads = {"q": config.num_heads, "k": config.num_kv_heads} if architecture == "llama" else {}
    return dict(read_parameters(parameters, heads))


def floats(weight: Weight) -> Tensor:
    return weight.dequantize() if isinstance(weight, QuantTensor) else weight


@pytest.mark.parametrize(
    ("architecture", "config"),
    [("llama", LLAMA), ("llama", BIASED), ("qwen2", QWEN2), ("qwen3", QWEN3)],
    ids=["llama", "biased", "qwen2", "qwen3"],
)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "F64"])
def test_plain_floats_are_the_weights_bit_for_bit(
    path: Path, architecture: str, config: ModelConfig, kind: str
) -> None:
    weights = random_weights(config)
    write_gguf(path, config, weights, architecture=architecture, kind=lambda name: kind)
    found = read(path, config, architecture)
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}[kind]
    assert found.keys() == weights.keys()
    for name, weight in found.items():
        assert isinstance(weight, Tensor)
        expected = weights[name].to(dtype if weights[name].ndim == 2 else torch.float32)
        assert weight.dtype == expected.dtype and torch.equal(weight, expected), name


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_groups_keep_their_bytes_and_rows_find_their_places(path: Path, kind: str, architecture: str) -> None:
    """A group lies within a row, so quantising our rows gives the bytes that the file's rows must become."""
    weights = random_weights(LLAMA)
    write_gguf(path, LLAMA, weights, architecture=architecture, kind=lambda name: kind)
    for name, weight in read(path, LLAMA, architecture).items():
        if weights[name].ndim == 1:
            assert isinstance(weight, Tensor) and torch.equal(weight, weights[name])
            continue
        assert isinstance(weight, QuantTensor) and weight.format == kind.lower()
        expected = quants.quantize(weights[name].numpy(), GGMLQuantizationType[kind])
        assert np.array_equal(weight.data.numpy(), expected), name


DEQUANTISED = [
    kind.name
    for kind in GGMLQuantizationType
    if kind in quants._type_traits and kind.name not in ("Q8_0", "Q4_0", "Q4_1", "BF16")
]


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("kind", DEQUANTISED)
def test_every_type_the_package_dequantises(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of random bytes: any of them is a block. Read in chunks of 3 rows, the oracle at once."""
    monkeypatch.setattr("llm.checkpoint.gguf.tensors._CHUNK_WEIGHTS", 3 * 256)
    stored_as = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[stored_as]
    rng, weights = np.random.default_rng(0), random_weights(WIDE)
    packed = {
        name: (kind, rng.integers(0, 256, (tensor.shape[0], tensor.shape[1] // block * size), dtype=np.uint8))
        for name, tensor in gguf_tensors(WIDE, weights, "qwen2").items()
        if tensor.ndim == 2
    }
    write_gguf(path, WIDE, weights, architecture="qwen2", packed=packed)
    found = read(path, WIDE, "qwen2")
    values = {name: quants.dequantize(data, stored_as) for name, (_, data) in packed.items()}
    qkv = np.concatenate([values[f"blk.0.attn_{part}.weight"] for part in "qkv"])
    for name, expected in (
        ("tokens.weight", values["token_embd.weight"]),
        ("blocks.0.ffn.down.weight", values["blk.0.ffn_down.weight"]),
        ("blocks.0.attention.qkv.weight", qkv),
    ):
        weight = found[name]
        assert isinstance(weight, Tensor) and weight.dtype == torch.float32
        assert np.array_equal(weight.numpy(), expected, equal_nan=True)


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1", "Q6_K", "Q8_0", "IQ4_NL"])
def test_types_packed_by_the_package_come_back_close(path: Path, kind: str) -> None:
    """Known weights, so that a misreading shared with the oracle would show."""
    weights = random_weights(WIDE)
    if kind in ("Q6_K", "IQ4_NL"):
        pack = {"Q6_K": pack_q6_k, "IQ4_NL": pack_iq4_nl}[kind]
        tensors = gguf_tensors(WIDE, weights, "llama")
        packed = {name: (kind, pack(t)) for name, t in tensors.items() if t.ndim == 2}
        write_gguf(path, WIDE, weights, packed=packed)
    else:
        write_gguf(path, WIDE, weights, kind=lambda name: kind)
    tolerance = {"Q8_0": 0.01, "Q5_0": 0.08, "Q5_1": 0.08, "Q6_K": 0.06, "IQ4_NL": 0.25}[kind]
    for name, weight in read(path, WIDE).items():
        assert (floats(weight) - weights[name]).abs().max() <= tolerance, name


def pack_q6_k(tensor: Tensor) -> np.ndarray:
    """Super-blocks of 256: low 4 bits (128), high 2 bits (64), 16 scales of one byte, all 1 here, d (f16)."""
    rows = tensor.numpy().reshape(len(tensor), -1, 256)
    d = (np.abs(rows).max(-1, keepdims=True) / 31).astype(np.float16)  # (rows, blocks, 1)
    q = (np.clip(np.rint(rows / d.astype(np.float32)), -32, 31) + 32).astype(np.uint8)
    halves = q.reshape(*q.shape[:2], 2, 4, 32)  # two halves of 128, each four lines of 32
    low, high = halves & 15, halves >> 4
    ql = np.concatenate([low[..., 0:2, :] | low[..., 2:4, :] << 4], axis=-2)  # (rows, blocks, 2, 2, 32)
    qh = high[..., 0, :] | high[..., 1, :] << 2 | high[..., 2, :] << 4 | high[..., 3, :] << 6
    flat = [x.reshape(*q.shape[:2], -1) for x in (ql, qh, np.ones((*q.shape[:2], 16), np.uint8))]
    return np.concatenate([*flat, d.view(np.uint8)], axis=-1).reshape(len(tensor), -1)


def pack_iq4_nl(tensor: Tensor) -> np.ndarray:
    """Blocks of 32: d (f16), then two indices a byte into 16 uneven steps."""
    steps = np.array(quants.IQ4_NL.kvalues, np.float32)
    rows = tensor.numpy().reshape(len(tensor), -1, 32)
    d = (np.abs(rows).max(-1, keepdims=True) / 113).astype(np.float16)
    index = np.abs(rows[..., None] / d.astype(np.float32)[..., None] - steps).argmin(-1).astype(np.uint8)
    nibbles = index[..., :16] | index[..., 16:] << 4
    return np.concatenate([d.view(np.uint8), nibbles], axis=-1).reshape(len(tensor), -1)


def test_q_k_and_v_of_several_types_become_floats(path: Path) -> None:
    weights = random_weights(LLAMA)
    kinds = {"attn_q": "Q4_1", "attn_k": "Q8_0", "attn_v": "F16"}

    def kind(name: str) -> str:
        return "Q8_0" if name == "blk.1.attn_v.weight" else kinds.get(name.split(".")[-2], "Q8_0")

    write_gguf(path, LLAMA, weights, kind=kind)
    found = read(path, LLAMA)
    qkv = found["blocks.0.attention.qkv.weight"]
    assert isinstance(qkv, Tensor) and qkv.dtype == torch.float32
    q, k, v = weights["blocks.0.attention.qkv.weight"].split([64, 32, 32])
    q8_0 = GGMLQuantizationType.Q8_0
    q8 = torch.from_numpy(quants.dequantize(quants.quantize(k.numpy(), q8_0), q8_0))
    assert torch.equal(qkv[64:96], q8) and torch.equal(qkv[96:], v.half().float())
    assert isinstance(found["blocks.0.ffn.up.weight"], QuantTensor)
    groups = found["blocks.1.attention.qkv.weight"]  # all three in groups, not all of one format
    assert isinstance(groups, Tensor) and groups.shape == (128, 64)
    counts = stored_types(find_parameters(read_gguf(path))[0])
    assert counts["q4_1"] == 2 * 64 * 64 and counts["float16"] == 32 * 64
    assert sum(counts.values()) == sum(w.numel() for w in weights.values()) and list(counts)[0] == "q8_0"


def refusal(path: Path, config: ModelConfig = LLAMA) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path, config)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def write_without(path: Path, left_out: str, config: ModelConfig = LLAMA) -> None:
    """A file whose tensors of that name are called something else."""
    write_gguf(path, config, random_weights(config))
    old, new = left_out.encode(), b"x" * len(left_out)
    path.write_bytes(path.read_bytes().replace(old, new))


def test_names_not_in_the_table(path: Path) -> None:
    write_without(path, "ffn_gate")
    assert refusal(path) == "names not recognised, 2 in all: blk.0.xxxxxxxx.weight, blk.1.xxxxxxxx.weight"


def test_old_rotary_tables_are_ignored_with_a_note(path: Path) -> None:
    table = {"blk.0.attn_rot_embd.weight": np.ones(8, np.float32)}
    write_gguf(path, LLAMA, random_weights(LLAMA), extra=table)
    assert find_parameters(read_gguf(path))[1] == ["tensors: ignored blk.0.attn_rot_embd.weight"]
    assert read(path, LLAMA).keys() == random_weights(LLAMA).keys()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (replace(LLAMA, num_layers=3), "block_count is 3, the file has 20 tensors in 2 blocks"),
        (replace(LLAMA, num_layers=1), "block_count is 1, the file has 20 tensors in 2 blocks"),
        (replace(LLAMA, width=128), "token_embd.weight has shape [258, 64], the metadata say [258, 128]"),
        (replace(LLAMA, ffn_width=95), "blk.0.ffn_up.weight has shape [96, 64], the metadata say [95, 64]"),
        (replace(LLAMA, num_kv_heads=4), "blk.0.attn_k.weight has shape [32, 64], the metadata say [64, 64]"),
        (replace(LLAMA, head_size=32), "blk.0.attn_q.weight has shape [64, 64], the metadata say [128, 64]"),
        (replace(LLAMA, num_heads=1 << 24, head_size=1 << 24, num_kv_heads=1 << 24), "blk.0.attn_q.weight"),
        (replace(LLAMA, tied_head=False), "missing, 1 in all: output.weight"),
        (QWEN3, "blk.0.attn_q.weight has shape [64, 64], the metadata say [32, 64]"),
        (replace(LLAMA, qk_norm=True), "missing, 4 in all: blk.0.attn_q_norm.weight, blk.0.attn_k_norm"),
        (BIASED, "missing, 14 in all: blk.0.attn_q.bias, blk.0.attn_k.bias, blk.0.attn_v.bias"),
    ],
)
def test_shapes_that_are_not_the_configurations(path: Path, config: ModelConfig, expected: str) -> None:
    write_gguf(path, LLAMA, random_weights(LLAMA))
    assert refusal(path, config).startswith(expected)


def test_tensors_beyond_the_architecture(path: Path) -> None:
    write_gguf(path, QWEN2, random_weights(QWEN2))
    message = refusal(path, replace(QWEN2, attention_bias=False, tied_head=True))
    assert message.startswith("not part of this architecture: blk.0.attn_q.bias")


@pytest.mark.parametrize("kind", ["Q8_1", "Q8_K", "I8"])
def test_a_type_without_a_reader_is_named_at_opening(path: Path, kind: str) -> None:
    stored_as = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[stored_as]
    data = np.zeros((WIDE.ffn_width, WIDE.width // block * size), np.uint8)
    write_gguf(path, WIDE, random_weights(WIDE), packed={"blk.0.ffn_up.weight": (kind, data)})
    with pytest.raises(CheckpointError, match=rf"tensor blk.0.ffn_up.weight has type {kind}, which cannot"):
        find_parameters(read_gguf(path))


def test_blocks_of_another_version(path: Path) -> None:
    weights = random_weights(LLAMA)
    write_gguf(path, LLAMA, weights, fields={"general.quantization_version": 1})
    find_parameters(read_gguf(path))  # plain floats have no blocks
    write_gguf(path, LLAMA, weights, fields={"general.quantization_version": 1}, kind=lambda name: "Q4_0")
    assert refusal(path) == "general.quantization_version is 1, readable is 2"


def test_rotary_factors(path: Path) -> None:
    def found(factors: np.ndarray | None) -> tuple[float, ...]:
        extra = {} if factors is None else {"rope_freqs.weight": factors}
        write_gguf(path, LLAMA, random_weights(LLAMA), extra=extra)
        file = read_gguf(path)
        assert "rope_freqs.weight" not in find_parameters(file)[0]
        return read_rope_factors(file)

    assert found(None) == ()
    assert found(np.array([1, 2.5, 8], np.float32)) == (1.0, 2.5, 8.0)
    for bad in (np.ones((2, 4), np.float32), np.ones(8, np.float16), np.ones(1 << 15, np.float32)):
        with pytest.raises(CheckpointError, match="rope_freqs.weight has type .* expected F32 and at most"):
            found(bad)


def test_a_name_that_only_looks_like_one(path: Path) -> None:
    for name in ("blk.00.attn_q.weight", "blk.0.output.weight", "attn_q.weight", "output.weight ", "output"):
        write_gguf(path, LLAMA, random_weights(LLAMA), extra={name: np.ones((2, 2), np.float32)})
        assert refusal(path).startswith("names not recognised, 1 in all: ")
