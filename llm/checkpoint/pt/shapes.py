"""From named tensors to a configuration: shapes say most of it, the rest is chosen and noted.

Not in the shapes: the number of heads (heads.py looks further), exact or tanh GELU, the norm's epsilon (1e-5
here), LayerNorm or RMSNorm.
Refuses to know files; every tensor is already known to be dense, on the CPU and no larger than its file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llm.checkpoint.pt.names import Part, course_name, is_buffer, recognise
from llm.checkpoint.record import FLOATS, expected_shapes, some
from llm.config import Activation, ModelConfig
from llm.errors import CheckpointError

COURSE_WIDTH, COURSE_HEAD_SIZE = 128, 32
HEAD_SIZES = (64, 32, 128, 80, 96, 48, 256, 16)
"""Numbers per head that people choose, the most usual first."""
NORM_EPS = 1e-5

Parts = dict[str, dict[Part | None, Tensor]]
"""Our name → one tensor under None, or three under q, k and v. Linear layers are (out, in)."""


@dataclass(frozen=True, slots=True)
class Network:
    """A state dict understood: `parts` hold exactly the parameters of `Decoder(config)`."""

    config: ModelConfig
    parts: Parts
    notes: list[str]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(our name, tensor), q, k and v joined."""
        for name, slots in self.parts.items():
            yield name, joined(slots)


def joined(slots: Mapping[Part | None, Tensor]) -> Tensor:
    """The whole parameter: q, k and v one below the other."""
    return slots[None] if None in slots else torch.cat([slots["q"], slots["k"], slots["v"]])


def arrange(path: Path, state: Mapping[str, Tensor]) -> Callable[[str], Tensor]:
    """For a state dict that was understood before: our name → the parameter."""
    parts, names = _sort(path, state, [])
    _straighten(parts, names, [])
    return lambda name: joined(parts[name])


def read_network(
    path: Path,
    state: Mapping[str, Tensor],
    num_heads: int | None = None,
    activation: Activation | None = None,
) -> Network:
    """Recognise names, infer the configuration, and check every shape against it.

    Args:
        path: for messages.
        num_heads: query heads; None takes the first of `head_counts`.
        activation: of a family of LayerNorm networks that is known; None reads it off the names.

    Raises:
        CheckpointError: names not recognised or missing, shapes that do not fit together.
    """
    notes: list[str] = []
    parts, names = _sort(path, state, notes)
    tanh = _straighten(parts, names, notes)
    _drop_tied_head(parts, notes)
    if activation is None:
        activation = "gelu_tanh" if tanh else "gelu"
        notes.append(f"activation: {'tanh' if tanh else 'exact'} GELU, from the names; shapes do not tell")
        if not _any(parts, "norm.bias"):
            notes.append("norms: no bias, taken as LayerNorm; RMSNorm would look the same")
    config = _infer(path, parts, num_heads, activation, notes)
    check_shapes(path, parts, config)
    return Network(config, parts, notes)


def _sort(path: Path, state: Mapping[str, Tensor], notes: list[str]) -> tuple[Parts, dict[str, str]]:
    """Tensors under our names, and for each of ours the file's name."""
    parts: Parts = {}
    names: dict[str, str] = {}
    ignored: list[str] = []
    unknown: list[str] = []
    for name, tensor in state.items():
        target = recognise(name)
        if target is None:
            (ignored if is_buffer(name, tensor) else unknown).append(name)
            continue
        slots = parts.setdefault(target.name, {})
        if target.part in slots or (slots and (None in slots or target.part is None)):
            raise CheckpointError(f"{path}: {names[target.name]} and {name} are both {target.name}")
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{path}: {name} has type {tensor.dtype}, readable are {some(FLOATS)}")
        slots[target.part], names[target.name] = tensor, name
    if unknown:
        raise CheckpointError(f"{path}: names not recognised, {len(unknown)} in all: {some(unknown)}")
    if ignored:
        notes.append(f"buffers: ignored {some(ignored)}")
    return parts, names


def _straighten(parts: Parts, names: Mapping[str, str], notes: list[str]) -> bool:
    """Undo layouts that are not nn.Linear's; True for names of a family that trains with tanh GELU."""
    first = parts.get(name := "blocks.0.attention.qkv.weight", {}).get(None)
    conv1d = first is not None and ".c_attn." in names[name] and 3 * first.shape[0] == first.shape[-1]
    for ours, slots in parts.items():
        if conv1d and ours.endswith(_LINEAR):
            slots.update({part: tensor.t() for part, tensor in slots.items() if tensor.ndim == 2})
    if (
        (positions := parts.get("positions.weight"))
        and positions[None].ndim == 3
        and len(positions[None]) == 1
    ):
        positions[None] = positions[None][0]  # (1, positions, C) → (positions, C): a bare parameter
    if conv1d:
        notes.append("layout: Conv1D weights (Hugging Face's GPT-2), transposed")
    return conv1d or any("trf_blocks." in theirs for theirs in names.values())


_LINEAR = ("attention.qkv.weight", "attention.out.weight", "ffn.up.weight", "ffn.down.weight")


def _drop_tied_head(parts: Parts, notes: list[str]) -> None:
    """A head equal to the token embedding is the token embedding."""
    head, tokens = parts.get("head.weight"), parts.get("tokens.weight")
    if head and tokens and head[None].shape == tokens[None].shape and torch.equal(head[None], tokens[None]):
        del parts["head.weight"]
        notes.append("head: equal to the token embedding, taken as tied")
    elif not head:
        notes.append("head: none in the file, so the token embedding is used (tied)")


def _infer(
    path: Path, parts: Parts, num_heads: int | None, activation: Activation, notes: list[str]
) -> ModelConfig:
    """Read the configuration off the shapes of the embeddings and of the first block."""
    vocab_size, width = _matrix(path, parts, "tokens.weight")
    num_positions, _ = _matrix(path, parts, "positions.weight")
    qkv_width, _ = _matrix(path, parts, "blocks.0.attention.qkv.weight")
    ffn_width, _ = _matrix(path, parts, "blocks.0.ffn.up.weight")
    heads, kv_heads = _choose_heads(path, width, qkv_width, num_heads, notes)
    try:
        return ModelConfig(
            vocab_size=vocab_size,
            num_positions=num_positions,
            num_layers=1 + max(int(name.split(".")[1]) for name in parts if name.startswith("blocks.")),
            num_heads=heads,
            num_kv_heads=kv_heads,
            width=width,
            ffn_width=ffn_width,
            activation=activation,
            attention_bias=_any(parts, "attention.qkv.bias"),
            attention_out_bias=_any(parts, "attention.out.bias"),
            ffn_bias=_any(parts, "ffn.up.bias") or _any(parts, "ffn.down.bias"),
            norm_bias=_any(parts, "norm.bias"),
            norm_eps=NORM_EPS,
            tied_head="head.weight" not in parts,
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _any(parts: Parts, ending: str) -> bool:
    return any(name.endswith(ending) for name in parts)


def _matrix(path: Path, parts: Parts, name: str) -> tuple[int, int]:
    """Shape of a parameter that every GPT has."""
    if name not in parts:
        hint = _NO_POSITIONS if name == "positions.weight" else ""
        raise CheckpointError(f"{path}: missing {course_name(name)}{hint}")
    shape = _joined_shape(parts[name])
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(f"{path}: {course_name(name)} has shape {list(shape)}, expected two dimensions")
    return shape[0], shape[1]


_NO_POSITIONS = (
    ": only learned positions are supported without a configuration; rotary ones need a Hugging Face folder "
    "or litgpt's model_config.yaml"
)


def _joined_shape(slots: Mapping[Part | None, Tensor]) -> tuple[int, ...]:
    """Shape after q, k and v are joined along their rows; a shape no parameter has when they cannot be."""
    if None in slots:
        return tuple(slots[None].shape)
    tensors = list(slots.values())
    if len(tensors) < 3 or any(t.ndim == 0 or t.shape[1:] != tensors[0].shape[1:] for t in tensors):
        return ()
    return (sum(len(t) for t in tensors), *tensors[0].shape[1:])


def head_counts(width: int, qkv_width: int) -> list[tuple[int, int]]:
    """(query heads, key/value heads) that fit a fused qkv of this many rows, the usual first.

    Heads have one of HEAD_SIZES numbers: at the course's width the course's 32 first, else 64, else 32.
    """
    sizes = [COURSE_HEAD_SIZE, *HEAD_SIZES] if width == COURSE_WIDTH else HEAD_SIZES
    fitting = (_fit(width, qkv_width, width // size) for size in sizes if width % size == 0)
    return list(dict.fromkeys(counts for counts in fitting if counts is not None))


def _fit(width: int, qkv_width: int, heads: int) -> tuple[int, int] | None:
    """This many query heads, and the key/value heads that the other rows are."""
    kv_heads, rest = divmod(qkv_width - width, 2 * (width // heads))
    return None if rest or kv_heads < 1 or heads % kv_heads else (heads, kv_heads)


def _choose_heads(
    path: Path, width: int, qkv_width: int, num_heads: int | None, notes: list[str]
) -> tuple[int, int]:
    """Query heads and key/value heads: as asked for, else the usual."""
    if num_heads is not None and (num_heads < 1 or width % num_heads):
        raise CheckpointError(f"{path}: width {width} is not a multiple of {num_heads} heads")
    if num_heads is None and all(width % size for size in HEAD_SIZES):
        raise CheckpointError(
            f"{path}: width {width} has no usual head size: give the number of heads (--n-head)"
        )
    counts = [_fit(width, qkv_width, num_heads)] if num_heads else head_counts(width, qkv_width)
    if not counts or counts[0] is None:
        asked = f"{num_heads or 'any usual number of'} query heads"
        raise CheckpointError(
            f"{path}: qkv has {qkv_width} rows, not width {width} for {asked} "
            "and as many or fewer for keys and values: another number of heads (--n-head), or another network"
        )
    if num_heads is None:
        heads = counts[0][0]
        notes.append(f"heads: {heads} of {width // heads}, chosen from width {width}; shapes do not tell")
    return counts[0]


def check_shapes(path: Path, parts: Parts, config: ModelConfig) -> None:
    """Exactly the parameters of the configuration, each of its shape.

    Raises:
        CheckpointError: one is missing, in parts, or of another shape.
    """
    blocks = {name.split(".")[1] for name in parts if name.startswith("blocks.")}
    if len(blocks) < config.num_layers:
        raise CheckpointError(
            f"{path}: the last block is {config.num_layers - 1}, but only {len(blocks)} are there"
        )
    shapes = expected_shapes(config)
    if missing := [name for name in shapes if name not in parts]:
        raise CheckpointError(f"{path}: missing, {len(missing)} in all: {some(map(course_name, missing))}")
    if extra := [name for name in parts if name not in shapes]:
        raise CheckpointError(f"{path}: {some(map(course_name, extra))} has no place in such a network")
    for name, shape in shapes.items():
        if (found := parts[name]).keys() not in ({None}, {"q", "k", "v"}):
            absent = sorted({"q", "k", "v"} - {str(part) for part in found})
            raise CheckpointError(f"{path}: {course_name(name)} is missing its {' and '.join(absent)}")
        if _joined_shape(found) != shape:
            raise CheckpointError(
                f"{path}: {course_name(name)} has shape {list(_joined_shape(found))}, expected {list(shape)}"
            )
