"""The weights of a Hugging Face folder: which files, which tensors, and our parameters from them.

    model.safetensors | model.safetensors.index.json and its shards
    pytorch_model.bin | pytorch_model.bin.index.json and its shards      by torch_file.py

Names are exact for each family; what is missing or left over is refused by name, so a bias that config.json
denies is not dropped in silence. Everything is compared by headers before a weight is read. Refuses to know
where config.json's numbers come from.

    >>> weights = find_weights(folder); source = match(folder, config, "llama", weights)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from llm.checkpoint.record import count_types, expected_shapes, some
from llm.checkpoint.safetensors import (
    READABLE,
    TensorHeader,
    read_header,
    read_tensors,
    refuse_type,
    stored_types,
)
from llm.checkpoint.torch_file import check_sizes, check_state, load_torch_file, read_in_turn
from llm.config import ModelConfig
from llm.errors import CheckpointError
from llm.fields import Fields, parse_object, read_bytes

MAX_INDEX_BYTES, MAX_SHARDS = 16 << 20, 4096
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")

LLAMA = {
    "tokens": ("embed_tokens",),
    "norm": ("norm",),
    "head": ("lm_head",),
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.q_norm": ("self_attn.q_norm",),
    "attention.k_norm": ("self_attn.k_norm",),
    "attention.out": ("self_attn.o_proj",),
    "ffn_norm": ("post_attention_layernorm",),
    "ffn.gate": ("mlp.gate_proj",),
    "ffn.up": ("mlp.up_proj",),
    "ffn.down": ("mlp.down_proj",),
}
GPT2 = {
    "tokens": ("wte",),
    "positions": ("wpe",),
    "norm": ("ln_f",),
    "head": ("lm_head",),
    "attention_norm": ("ln_1",),
    "attention.qkv": ("attn.c_attn",),
    "attention.out": ("attn.c_proj",),
    "ffn_norm": ("ln_2",),
    "ffn.up": ("mlp.c_fc",),
    "ffn.down": ("mlp.c_proj",),
}
"""Our names → those of a family's tensors, which stand for one matrix together where there are several."""
_HEAD = "lm_head.weight"
_WRAPPERS = re.compile(r"(?:_orig_mod\.|module\.)*(?:model\.|transformer\.)?")
_BUFFER = re.compile(r"(?:.+\.)?(?:rotary_emb\.inv_freq|attn\.(?:bias|masked_bias))")
"""Causal masks and rotary tables that old versions saved; GPT-2's attention has no other `attn.bias`."""
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of a folder's weights and what their headers say.

    Attributes:
        files: in the order in which they are read.
        headers: of every tensor, by the file's name for it, in the order of its file.
        homes: the file of every tensor.
    """

    files: list[Path]
    headers: dict[str, TensorHeader] = field(default_factory=dict)
    homes: dict[str, Path] = field(default_factory=dict)


def find_weights(folder: Path) -> WeightFiles | None:
    """Read the headers of a folder's weights; None when it has none.

    Raises:
        CheckpointError: a shard that is missing, or outside the folder, or not what the index says.
    """
    for name in SINGLE_FILES:
        if (folder / name).is_file():
            return _read_headers([folder / name])
        if (index := folder / f"{name}.index.json").is_file():
            return _read_index(folder, index)
    return None


def _read_index(folder: Path, index: Path) -> WeightFiles:
    placed = Fields(parse_object(read_bytes(index, MAX_INDEX_BYTES), str(index)), str(index)).inner(
        "weight_map"
    )
    shards = {name: placed.text(name) for name in placed.left()}
    if not 1 <= len(names := sorted(set(shards.values()))) <= MAX_SHARDS:
        placed.refuse(f"must name 1 to {MAX_SHARDS} files, names {len(names)}")
    for name in names:
        if Path(name).name != name or "\\" in name or name in (".", ".."):
            placed.refuse(f"{some([name])} is not a plain file name inside the folder")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder}: missing {len(missing)} of {len(names)} shards: {some(missing)}")
    weights = _read_headers([folder / name for name in names])
    for name, shard in shards.items():
        if weights.homes.get(name) != folder / shard:
            placed.refuse(f"places {some([name])} in {some([shard])}, where it is not")
    return weights


def _read_headers(files: list[Path]) -> WeightFiles:
    weights = WeightFiles(files)
    for file in files:
        for name, header in _header(file).items():
            if name in weights.homes:
                raise CheckpointError(f"{file}: {some([name])} is in {weights.homes[name].name} too")
            weights.headers[name], weights.homes[name] = header, file
    return weights


def _header(file: Path) -> dict[str, TensorHeader]:
    if file.suffix == ".safetensors":
        return read_header(file)
    tensors = check_state(file, load_torch_file(file))
    check_sizes(file, tensors.values())
    return {
        name: TensorHeader(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
    }


def _read(file: Path, wanted: Mapping[str, TensorHeader]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of one file, mapped a stretch at a time."""
    if file.suffix == ".safetensors":
        return read_tensors(file, wanted)
    return read_in_turn(file, wanted, lambda loaded: check_state(file, loaded).__getitem__)


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the files: a parameter of ours, or one of several that are joined along their rows."""

    name: str
    ours: str
    index: int
    of: int
    shape: tuple[int, ...]
    transposed: bool


def plan(config: ModelConfig, model_type: str) -> list[Piece]:
    """The tensors that a folder of this family must have, without wrappers' prefixes."""
    gpt2 = model_type == "gpt2"
    stems, blocks = (GPT2, "h") if gpt2 else (LLAMA, "layers")
    kv = config.num_kv_heads * config.head_dim
    pieces = []
    for ours, shape in expected_shapes(config).items():
        block = _BLOCK.fullmatch(ours)
        stem, _, kind = (block[2] if block else ours).rpartition(".")
        transposed = gpt2 and block is not None and len(shape) == 2  # Conv1D keeps (in, out)
        rows = [shape[0]] if len(stems[stem]) == 1 else [shape[0] - 2 * kv, kv, kv]
        for index, (theirs, count) in enumerate(zip(stems[stem], rows, strict=True)):
            name = f"{blocks}.{block[1]}.{theirs}.{kind}" if block else f"{theirs}.{kind}"
            stored = (count, *shape[1:])
            pieces.append(
                Piece(name, ours, index, len(rows), stored[::-1] if transposed else stored, transposed)
            )
    return pieces


def settle_head(
    folder: Path, config: ModelConfig, model_type: str, weights: WeightFiles
) -> tuple[ModelConfig, list[str]]:
    """What it means that the files hold a head when config.json ties it to the embedding.

    An equal one is not needed, and taken out of `weights`; another one is served as it is, as transformers
    does.

    Returns:
        The configuration, and warnings.
    """
    names = bare_names(folder, weights)
    head, embedding = names.get(_HEAD), names.get(_embedding(model_type))
    if not config.tied_head or head is None or embedding is None:
        return config, []
    if weights.headers[head] == weights.headers[embedding] and torch.equal(
        _one(weights, head), _one(weights, embedding)
    ):
        del weights.headers[head]
        return config, []
    return replace(config, tied_head=False), [
        f"{head} differs from {embedding}, to which config.json ties it: served as it is"
    ]


def _embedding(model_type: str) -> str:
    return f"{(GPT2 if model_type == 'gpt2' else LLAMA)['tokens'][0]}.weight"


def _one(weights: WeightFiles, name: str) -> Tensor:
    """One tensor, mapped."""
    return dict(_read(weights.homes[name], {name: weights.headers[name]}))[name]


def match(
    folder: Path, config: ModelConfig, model_type: str, weights: WeightFiles
) -> tuple[dict[str, int], Callable[[], Iterator[tuple[str, Tensor]]]]:
    """Compare the headers with the configuration.

    Returns:
        The number of weights of each type, and what yields our parameters by name.

    Raises:
        CheckpointError: tensors missing or left over, a wrong shape, or a type weights do not have.
    """
    if config.num_layers > len(weights.headers):
        raise CheckpointError(
            f"{folder}: config.json says {config.num_layers} layers, the weights are only "
            f"{len(weights.headers)} tensors"
        )
    theirs = bare_names(folder, weights)
    if config.tied_head and _HEAD in theirs:
        theirs.setdefault(_embedding(model_type), theirs[_HEAD])  # saved once, under the other name
    pieces = {theirs.get(piece.name, piece.name): piece for piece in plan(config, model_type)}
    if missing := [name for name in pieces if name not in weights.headers]:
        hint = " (config.json does not tie it to the embedding)" if missing == [_HEAD] else ""
        raise CheckpointError(f"{folder}: missing, {len(missing)} in all: {some(missing)}{hint}")
    if extra := [name for name in weights.headers if name not in pieces and not _BUFFER.fullmatch(name)]:
        raise CheckpointError(f"{folder}: config.json has no place for {len(extra)} tensors: {some(extra)}")
    for name, piece in pieces.items():
        header, file = weights.headers[name], weights.homes[name]
        if header.shape != piece.shape:
            raise CheckpointError(
                f"{file}: {name} has shape {list(header.shape)}, config.json says {list(piece.shape)}"
            )
        if header.dtype not in READABLE:
            raise refuse_type(file, name, header.dtype)
    stored = count_types(stored_types(weights.headers[name] for name in pieces))
    return stored, lambda: _parameters(weights, pieces)


def bare_names(folder: Path, weights: WeightFiles) -> dict[str, str]:
    """The tensors' names without wrappers → their names.

    Raises:
        CheckpointError: two tensors differ in their wrappers alone.
    """
    names: dict[str, str] = {}
    for name in weights.headers:
        bare = _WRAPPERS.sub("", name, count=1)
        if bare in names:
            raise CheckpointError(
                f"{folder}: {some([names[bare]])} and {some([name])} are the same parameter"
            )
        names[bare] = name
    return names


def _parameters(weights: WeightFiles, pieces: Mapping[str, Piece]) -> Iterator[tuple[str, Tensor]]:
    waiting: dict[str, dict[int, Tensor]] = {}
    for file in weights.files:
        wanted = {
            name: header
            for name, header in weights.headers.items()
            if name in pieces and weights.homes[name] == file
        }
        for name, tensor in _read(file, wanted):
            piece = pieces[name]
            if tuple(tensor.shape) != piece.shape:
                raise CheckpointError(f"{file}: {name} changed since the checkpoint was opened")
            if piece.of == 1:
                yield piece.ours, tensor.t() if piece.transposed else tensor
                continue
            parts = waiting.setdefault(piece.ours, {})
            parts[piece.index] = tensor.clone()  # the rest may come after the next mapping
            if len(parts) == piece.of:
                yield piece.ours, torch.cat([parts[index] for index in range(piece.of)])
                del waiting[piece.ours]
