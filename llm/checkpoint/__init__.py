"""Checkpoints: detect the format, open it, load the weights. Two formats: our folder and a bare state dict.

Opening reads headers and small files and refuses, in one line, what cannot be served; loading copies the
weights to a device. No network, no pickle that runs code, no code from a checkpoint's folder.

    $ python -m llm.checkpoint checkpoints/causette
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from llm.checkpoint.folder import open_folder, save_folder
from llm.checkpoint.pt import open_state_dict, save_state_dict
from llm.checkpoint.record import Checkpoint, Sample, one_line
from llm.checkpoint.samples import prove_prompts
from llm.errors import CheckpointError
from llm.model import Decoder

__all__ = [
    "Checkpoint",
    "Sample",
    "find_checkpoint",
    "load_model",
    "open_checkpoint",
    "prove_prompts",
    "save_folder",
    "save_state_dict",
]


def open_checkpoint(path: str | Path, *, num_heads: int | None = None) -> Checkpoint:
    """Open a file or folder; the format is read from its content.

    Args:
        path: a folder in our format, or a state dict written by torch.save.
        num_heads: query heads of a state dict, whose shapes do not tell; None takes the usual one.

    Raises:
        CheckpointError: nothing there, not a format we read, or not servable; one line that says why.
    """
    path = Path(path)
    if path.is_dir():
        checkpoint = open_folder(path)
        if num_heads is not None and num_heads != checkpoint.config.num_heads:
            raise CheckpointError(
                f"{path}: num_heads is {checkpoint.config.num_heads}, {num_heads} was asked for"
            )
        return checkpoint
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder")
    return open_state_dict(path, num_heads) if _is_torch_file(path) else _refuse_file(path)


def _is_torch_file(path: Path) -> bool:
    """A zip archive, or the pickle that torch.save wrote before version 1.6."""
    return _head(path).startswith((b"PK\x03\x04", b"\x80"))


def _refuse_file(path: Path) -> NoReturn:
    head = _head(path)
    if not head:
        raise CheckpointError(f"{path}: the file is empty")
    if head.startswith(b"GGUF"):
        raise CheckpointError(f"{path}: a GGUF file: not yet supported")
    if head[8:9] == b"{":
        raise CheckpointError(
            f"{path}: a safetensors file: name the folder that holds it and its config.json"
        )
    raise CheckpointError(f"{path}: not a format we read: expected a folder or a file written by torch.save")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def load_model(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Decoder:
    """The network in eval mode, weights copied to the device; nothing stays mapped to the file.

    Raises:
        CheckpointError: a weight is NaN, infinite, or too large for dtype; or the device has no room.
    """
    loaded: dict[str, Tensor] = {}
    for name, tensor in checkpoint.weights():
        try:
            loaded[name] = tensor.to(device, dtype, copy=True)
        except (RuntimeError, MemoryError) as error:  # torch's out-of-memory errors are RuntimeErrors
            raise CheckpointError(
                f"{checkpoint.path}: {name} does not fit on {device}: {one_line(error)}"
            ) from None
        if not bool(loaded[name].isfinite().all()):
            raise CheckpointError(f"{checkpoint.path}: {name} holds weights too large for {dtype}")
    with torch.device("meta"):
        model = Decoder(checkpoint.config)
    model.load_state_dict(loaded, assign=True)
    return model.requires_grad_(False).eval()


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
