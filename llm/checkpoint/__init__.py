"""Checkpoints: detect the format, open it, load the weights.

    a folder    ours (config.json with format), Hugging Face's (config.json with model_type), litgpt's
                (lit_model.pth, model_config.yaml), or one that holds a single GGUF or torch file
    a file      GGUF, or whatever torch.save wrote: a bare state dict, nanoGPT's, litgpt's

Opening reads headers and small files and refuses, in one line, what cannot be served; loading copies the
weights to a device. No network, no pickle that runs code, no code from a checkpoint's folder.

    $ causerie inspect checkpoints/causette
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llm.adapt.quant import QuantTensor
from llm.checkpoint.folder import open_folder, save_folder
from llm.checkpoint.gguf.open import open_gguf
from llm.checkpoint.hf.open import open_hf_folder
from llm.checkpoint.hf.weights import SINGLE_FILES
from llm.checkpoint.litgpt.open import open_litgpt
from llm.checkpoint.pt.open import open_state_dict, save_state_dict
from llm.checkpoint.record import Checkpoint, Sample, Weight, is_finite, one_line, some
from llm.checkpoint.samples import prove_prompts
from llm.errors import CheckpointError
from llm.fields import MAX_JSON_BYTES, parse_object, read_bytes
from llm.model import Decoder

__all__ = [
    "Checkpoint",
    "Sample",
    "find_checkpoint",
    "load_model",
    "locate_checkpoint",
    "open_checkpoint",
    "prove_prompts",
    "save_folder",
    "save_state_dict",
]


def open_checkpoint(path: str | Path, *, num_heads: int | None = None) -> Checkpoint:
    """Open a file or folder; the format is read from its content.

    Args:
        path: see above; a weights file of a folder with its config.json stands for the folder.
        num_heads: query heads of a state dict, whose shapes do not tell; None takes the usual one.

    Raises:
        CheckpointError: nothing there, not a format we read, or not servable; one line that says why.
    """
    path = Path(path)
    if path.is_file() and _PART_OF_A_FOLDER.fullmatch(path.name) and (path.parent / "config.json").is_file():
        path = path.parent
    if path.is_dir():
        checkpoint = _open_directory(path, num_heads)
    elif path.is_file():
        checkpoint = _open_file(path, num_heads)
    else:
        raise CheckpointError(f"{path}: no such file or folder")
    if num_heads is not None and num_heads != checkpoint.config.num_heads:
        raise CheckpointError(
            f"{path}: num_heads is {checkpoint.config.num_heads}, {num_heads} was asked for"
        )
    return checkpoint


_PART_OF_A_FOLDER = re.compile(
    r"config\.json|(?:model|pytorch_model)[-\w]*\.(?:safetensors|bin)(?:\.index\.json)?"
)
_LATER_PART = re.compile(r".+-(?!0*1-of-)\d{5}-of-\d{5}\.gguf")


def _open_directory(path: Path, num_heads: int | None) -> Checkpoint:
    """By the files in it, the most telling first."""
    names = _file_names(path)
    weights = any(name in names for file in SINGLE_FILES for name in (file, f"{file}.index.json"))
    if "config.json" in names and _is_ours(path / "config.json"):
        return open_folder(path)
    if "lit_model.pth" in names and not weights:
        return open_litgpt(path, num_heads)
    if "config.json" in names and weights:
        return open_hf_folder(path)
    if "adapter_config.json" in names:
        raise CheckpointError(
            f"{path}: a LoRA adapter, not a model: merge it into its base model, serve that"
        )
    for ending in (".gguf", ".pt", ".pth"):
        found = [name for name in names if name.endswith(ending) and not _LATER_PART.fullmatch(name)]
        if len(found) > 1:
            raise CheckpointError(f"{path}: holds {len(found)} models, name one: {some(found)}")
        if found:
            return replace(_open_file(path / found[0], num_heads), name=path.resolve().name)
    if "config.json" in names:
        return open_hf_folder(path)
    raise CheckpointError(
        f"{path}: no checkpoint in this folder: looked for config.json and its weights, lit_model.pth, "
        "a .gguf, .pt or .pth file"
    )


def _file_names(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.iterdir() if entry.is_file())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _is_ours(file: Path) -> bool:
    """Whether a config.json is of our format; one that says neither is judged as ours."""
    values = parse_object(read_bytes(file, MAX_JSON_BYTES), str(file))
    return "format" in values or not ("model_type" in values or "architectures" in values)


def _open_file(path: Path, num_heads: int | None) -> Checkpoint:
    """By its first bytes."""
    head = _head(path)
    if head.startswith(b"GGUF"):
        return open_gguf(path)
    if head.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or the pickle of before torch 1.6
        return open_state_dict(path, num_heads)
    if not head:
        raise CheckpointError(f"{path}: the file is empty")
    if head[8:9] == b"{":
        raise CheckpointError(
            f"{path}: a safetensors file: name the folder that holds it and its config.json"
        )
    raise CheckpointError(
        f"{path}: not a format we read: expected a folder, a GGUF file or a file written by torch.save"
    )


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def load_model(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Decoder:
    """The network in eval mode, weights copied to the device; nothing stays mapped to the file.

    One weight at a time: beyond what is served, memory holds the weight that is being copied.

    Raises:
        CheckpointError: a weight is NaN, infinite, or too large for dtype; or the device has no room.
    """
    loaded: dict[str, Tensor] = {}
    for name, weight in checkpoint.weights():
        try:
            loaded[name] = _place(weight, device, dtype)
        except (RuntimeError, MemoryError) as error:  # torch's out-of-memory errors are RuntimeErrors
            raise CheckpointError(
                f"{checkpoint.path}: {name} does not fit on {device}: {one_line(error)}"
            ) from None
        if dtype is not torch.float64 and not is_finite(loaded[name]):
            raise CheckpointError(f"{checkpoint.path}: {name} holds weights too large for {dtype}")
    with torch.device("meta"):
        model = Decoder(checkpoint.config)
    model.load_state_dict(loaded, assign=True)
    return model.requires_grad_(False).eval()


def _place(weight: Weight, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A copy of its own on the device, in rows; groups are unpacked."""
    placed = torch.empty(weight.shape, device=device, dtype=dtype)
    if isinstance(weight, QuantTensor):
        weight.dequantize_into(placed)
    else:
        placed.copy_(weight)
    return placed


def locate_checkpoint(path: Path, root: Path) -> Path:
    """The path itself, or the pulled checkpoint of that name.

    Args:
        root: the folder that holds checkpoints/.

    Raises:
        CheckpointError: neither is there.
    """
    pulled = root / "checkpoints" / path
    for found in (path, pulled):
        if found.exists():
            return found
    raise CheckpointError(
        f"{path}: no such file or folder, here or in {pulled.parent}; `causerie pull NAME` fetches one"
    )


def find_checkpoint(root: Path) -> tuple[Path, str]:
    """The checkpoint to serve when none is named, and why that one: a line for the log.

    Args:
        root: the folder that holds checkpoints/.

    Raises:
        CheckpointError: there is none.
    """
    folder = root / "checkpoints"
    if (path := folder / "model_sft.pt").is_file():
        return path, f"{path} is there: your own fine-tuned model"
    if (path := folder / "model.pt").is_file():
        return path, (
            f"{path} is there and model_sft.pt is not: WARNING, this looks like a base model, "
            "so its answers will not be assistant-shaped"
        )
    if (path := folder / "causette" / "config.json").is_file():
        return path.parent, f"the default checkpoint: neither model_sft.pt nor model.pt is in {folder}"
    raise CheckpointError(
        f"{folder}: no model_sft.pt, no model.pt, no causette: name a checkpoint with --checkpoint"
    )
