"""Files written by torch.save, read without running anything that is in them.

Reading is `torch.load(weights_only=True)`, memory-mapped, without a fallback: a pickle that would run code is
refused, not run. A file comes back as what was saved, its tensors still on disk. Refuses to know names,
networks, and what a training script puts beside the weights.

    >>> state = check_state(path, load_torch_file(path))
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from llm.checkpoint.record import one_line, some
from llm.errors import CheckpointError

MAX_PICKLE_BYTES = 64 << 20
RENEW_BYTES = 32 << 20
"""A mapping is let go after this much of it was read, and with it the pages it holds in memory."""

State = dict[str, Tensor]


def load_torch_file(path: Path) -> object:
    """What torch.save was given. Tensors are on the CPU wherever they were saved from, mapped to the file;
    only the format before torch 1.6 has to be read into memory.

    Raises:
        CheckpointError: unreadable, damaged, or a pickle that asks for more than data.
    """
    archive = _is_archive(path)
    if archive:
        _check_archive(path)
    try:
        with warnings.catch_warnings():  # advice about formats, which our own message gives
            warnings.simplefilter("ignore")
            loaded: object = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # whatever the unpickler trips over is the file's fault
        raise CheckpointError(f"{path}: {_why(error)}") from None
    return loaded


def read_in_turn(
    path: Path, names: Iterable[str], arrange: Callable[[object], Callable[[str], Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of each name, mapping the file anew whenever RENEW_BYTES of it were read.

    Args:
        arrange: what load_torch_file returned → a function from name to tensor.

    Raises:
        CheckpointError: the file is no longer what it was when the names were found.
    """
    tensor_of, num_bytes = None, 0
    for name in names:
        if tensor_of is None:
            tensor_of, num_bytes = arrange(load_torch_file(path)), 0
        try:
            tensor = tensor_of(name)
        except (KeyError, RuntimeError):
            raise CheckpointError(f"{path}: {name} changed since the checkpoint was opened") from None
        num_bytes += tensor.nbytes
        yield name, tensor
        del tensor
        if num_bytes > RENEW_BYTES and _is_archive(path):
            tensor_of = None


def _is_archive(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _check_archive(path: Path) -> None:
    """torch.save stores its records uncompressed; a compressed one could unfold into any amount of memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise CheckpointError(f"{path}: truncated or damaged: {one_line(error)}") from None
    if any(record.filename.endswith("constants.pkl") for record in records):
        raise CheckpointError(f"{path}: a TorchScript archive, which carries code: save model.state_dict()")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(f"{path}: holds compressed records, which torch.save never writes")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise CheckpointError(f"{path}: its records claim more bytes than the file has")
    if any(r.filename.endswith("data.pkl") and r.file_size > MAX_PICKLE_BYTES for r in records):
        raise CheckpointError(f"{path}: data.pkl is larger than the limit of {MAX_PICKLE_BYTES} bytes")


def _why(error: Exception) -> str:
    """torch's paragraphs in one line, without their advice to load the file unsafely."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"its pickle asks for {found[1]}: only tensors, numbers, text, lists and dicts are loaded; "
            "save model.state_dict() alone, settings as plain values (vars(args), not args)"
        )
    if isinstance(error, pickle.UnpicklingError):
        return "not a state dict: its pickle holds something other than tensors; save model.state_dict()"
    return f"cannot be read by torch.load: {one_line(error)}"


def check_state(path: Path, loaded: object) -> State:
    """Only a dict from names to plain tensors gets past here.

    Raises:
        CheckpointError: it is something else.
    """
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, not a state dict")
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: has a key that is no name: {repr(name)[:64]}")
        if not is_tensor(value):
            raise CheckpointError(f"{path}: {some([name])} is a {type(value).__name__}, not a tensor")
        if (
            value.layout != torch.strided
            or value.is_quantized
            or value.is_nested
            or value.device.type != "cpu"
        ):
            raise CheckpointError(f"{path}: {some([name])} is not a dense tensor with data")
    return {name: value.detach() for name, value in loaded.items()}


def is_tensor(value: object) -> bool:
    """A tensor or parameter, and no subclass that behaves otherwise."""
    return type(value) in (Tensor, nn.Parameter)


def check_sizes(path: Path, tensors: Iterable[Tensor]) -> None:
    """A small file may describe a huge tensor (stride 0); twice the file leaves room for a tied head.

    Raises:
        CheckpointError: the tensors claim more.
    """
    claimed = sum(tensor.nbytes for tensor in tensors)
    if claimed > 2 * (size := path.stat().st_size):
        raise CheckpointError(f"{path}: its tensors claim {claimed} bytes, the file has {size}")
