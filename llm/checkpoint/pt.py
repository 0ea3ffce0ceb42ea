"""Bare state dicts: `torch.save(model.state_dict(), path)`, as training scripts write them.

Reading is `torch.load(weights_only=True)`, memory-mapped, without a fallback: a pickle that would run code is
refused, not run. names.py and shapes.py make a network of the tensors. Refuses to know training wrappers
({"model": ..., "optimizer": ...}) and networks that are not a GPT.

    >>> save_state_dict("model_sft.pt", model)      # the course's names
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from llm.chat.template import PlainTemplate
from llm.checkpoint.names import course_name, recognise
from llm.checkpoint.record import Checkpoint, file_digest, one_line, some, vocabulary_notes
from llm.checkpoint.shapes import NORM_EPS, read_network
from llm.config import COURSE_DEFAULTS, ModelConfig
from llm.errors import CheckpointError
from llm.model import Decoder
from llm.tokenizer import TiktokenTokenizer, load_tiktoken

SHIPPED_TOKENIZER = Path(__file__).parents[2] / "checkpoints" / "causette" / "tokenizer.tiktoken"
MAX_PICKLE_BYTES = 64 << 20

State = dict[str, Tensor]


def open_state_dict(path: Path, num_heads: int | None = None) -> Checkpoint:
    """Open a bare state dict.

    Args:
        num_heads: query heads, which no shape tells; None takes the usual number, see `read_network`.

    Raises:
        CheckpointError: anything that keeps the file from being served, in one line.
    """
    state = _load(path)
    _check_sizes(path, state)
    network = read_network(path, state, num_heads)
    config = network.config
    tokenizer, notes = _open_tokenizer(path, config)
    return Checkpoint(
        path=path,
        name=path.stem,
        kind="state dict",
        config=config,
        template=PlainTemplate(COURSE_DEFAULTS.default_system),
        tokenizer=tokenizer,
        defaults=COURSE_DEFAULTS,
        samples=[],
        notes=network.notes + notes + vocabulary_notes(tokenizer, config),
        digest=file_digest(path),
        read=network.weights,
    )


def save_state_dict(path: str | Path, model: Decoder) -> None:
    """Write the model as the course would, a tied head included. The file appears whole or not at all.

    Raises:
        CheckpointError: the model has a switch that no shape tells, so the file would load as another model.
    """
    path = Path(path)
    config = model.config
    if config.activation != "gelu" or config.norm_eps != NORM_EPS:
        raise CheckpointError(
            f"{path}: not saved: a bare state dict cannot say activation {config.activation} "
            f"and norm_eps {config.norm_eps:g}; save a folder"
        )
    state = {course_name(name): p.detach().cpu() for name, p in model.named_parameters()}
    state.setdefault("head.weight", state["tok_emb.weight"])
    temporary = path.with_name(f".{path.name}.saving")
    torch.save(state, temporary)
    temporary.replace(path)


def _load(path: Path) -> State:
    """The file's tensors by their own names, memory-mapped where the format allows."""
    with path.open("rb") as file:
        archive = file.read(4) == b"PK\x03\x04"
    if archive:
        _check_archive(path)
    try:
        with warnings.catch_warnings():  # advice about formats, which our own message gives
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # whatever the unpickler trips over is the file's fault
        raise CheckpointError(f"{path}: {_why(error)}") from None
    return _check_tensors(path, loaded)


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
        return f"its pickle asks for {found[1]}: only tensors are loaded; save model.state_dict()"
    if isinstance(error, pickle.UnpicklingError):
        return "not a state dict: its pickle holds something other than tensors; save model.state_dict()"
    return f"cannot be read by torch.load: {one_line(error)}"


def _check_tensors(path: Path, loaded: object) -> State:
    """Only a dict from names to plain tensors gets past here."""
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, not a state dict")
    if any(isinstance(value, dict) for value in loaded.values()):
        raise CheckpointError(
            f"{path}: a training wrapper ({some(loaded)}): not yet supported; save model.state_dict() alone"
        )
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: has a key that is no name: {repr(name)[:64]}")
        if type(value) not in (Tensor, nn.Parameter):
            raise CheckpointError(f"{path}: {some([name])} is a {type(value).__name__}, not a tensor")
        if (
            value.layout != torch.strided
            or value.is_quantized
            or value.is_nested
            or value.device.type != "cpu"
        ):
            raise CheckpointError(f"{path}: {some([name])} is not a dense tensor with data")
    return {name: value.detach() for name, value in loaded.items()}


def _check_sizes(path: Path, state: State) -> None:
    """A small file may describe a huge tensor (stride 0); twice the file leaves room for a tied head."""
    claimed = sum(tensor.nbytes for name, tensor in state.items() if recognise(name))
    if claimed > 2 * (size := path.stat().st_size):
        raise CheckpointError(f"{path}: its tensors claim {claimed} bytes, the file has {size}")


def _open_tokenizer(path: Path, config: ModelConfig) -> tuple[TiktokenTokenizer, list[str]]:
    """The vocabulary beside the file, else the one that ships with the default checkpoint."""
    beside = path.with_name("tokenizer.tiktoken")
    file = beside if beside.is_file() else SHIPPED_TOKENIZER
    if not file.is_file():
        raise CheckpointError(f"{path}: no vocabulary: neither {beside} nor {SHIPPED_TOKENIZER} is there")
    tokenizer = load_tiktoken(file)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{path}: {file} has {tokenizer.vocab_size} ids, the embedding only {config.vocab_size} rows"
        )
    return tokenizer, [f"tokenizer: {file}"]
