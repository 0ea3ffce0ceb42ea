"""Our folder format, read and written.

    config.json             {"format": "causerie", "version": 1, "template": "plain",
                             "tokenizer": {"file": "tokenizer.tiktoken", "encoding": "gpt2"},
                             "model": {fields of ModelConfig; those with a default may be left out}}
                            other templates and tokenizers, and their files: wording.py
    model.safetensors       parameters under the Decoder's own names, F16, BF16, F32 or F64; a tied head once
    tokenizer.tiktoken      the vocabulary
    generation_config.json  sampling policy under Hugging Face's names, and default_system
    samples.jsonl           training conversations for the prompt proof
    README.md               the model card

Shapes and types come from the safetensors header and are compared with config.json before a weight is read.
Whatever we can open, in any format, can be saved as one. Refuses to know other formats.

    >>> save_folder("checkpoints/mine", model, tokenizer, template, COURSE_DEFAULTS, samples, card="# Mine")
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from llm.chat.template import ChatTemplate
from llm.checkpoint.policy import dump_defaults, read_defaults
from llm.checkpoint.record import (
    Checkpoint,
    Sample,
    architecture_of,
    count_types,
    expected_shapes,
    file_digest,
    some,
    vocabulary_notes,
)
from llm.checkpoint.safetensors import (
    READABLE,
    TensorHeader,
    read_header,
    read_tensors,
    refuse_type,
    stored_types,
)
from llm.checkpoint.samples import dump_samples, read_samples
from llm.checkpoint.wording import read_conversation, read_tokenizer, write_wording
from llm.config import MAX_DIMENSION, GenerationDefaults, ModelConfig
from llm.errors import CheckpointError
from llm.fields import MAX_JSON_BYTES, Fields, parse_object, read_bytes
from llm.model import Decoder
from llm.tokenizer import Tokenizer

FORMAT, VERSION = "causerie", 1


def open_folder(path: Path) -> Checkpoint:
    """Open a folder in our format.

    Raises:
        CheckpointError: anything that keeps the folder from being served, in one line.
    """
    top = _config_json(path)
    config = _model_config(top.inner("model"))
    tokenizer = read_tokenizer(path, top.inner("tokenizer"))
    template_name = top.text("template")
    top.done()
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} ids, vocab_size is only {config.vocab_size}"
        )
    weights = path / "model.safetensors"
    headers = _check_header(weights, config)
    defaults, notes = read_defaults(path / "generation_config.json")
    template, defaults = read_conversation(path, template_name, tokenizer, defaults)
    return Checkpoint(
        path=path,
        name=path.resolve().name,
        kind="folder",
        architecture=architecture_of(config),
        config=config,
        template=template,
        tokenizer=tokenizer,
        defaults=defaults,
        samples=_open_samples(path / "samples.jsonl", tokenizer),
        notes=notes + vocabulary_notes(tokenizer, config),
        digest=file_digest(weights),
        stored=count_types(stored_types(headers.values())),
        read=lambda: read_tensors(weights, headers),
    )


def _config_json(path: Path) -> Fields:
    where = path / "config.json"
    if not where.is_file():
        raise CheckpointError(f"{path}: a folder without config.json is no checkpoint we can read")
    values = parse_object(read_bytes(where, MAX_JSON_BYTES), str(where))
    top = Fields(values, str(where))
    if (name := top.text("format")) != FORMAT:
        top.refuse(f"format must be {FORMAT!r}, got {name[:64]!r}")
    if (version := top.whole("version", 1, 1 << 31)) != VERSION:
        top.refuse(f"version {version} is newer than the {VERSION} this server reads")
    return top


def _model_config(model: Fields) -> ModelConfig:
    """Fields of ModelConfig, none beyond; one that has a default may be left out or null."""
    readers: dict[str, Callable[[str], object]] = {
        "int": lambda name: model.whole(name, 0 if name == "num_full_layers" else 1, MAX_DIMENSION),
        "bool": model.boolean,
        "float": lambda name: model.number(name, 1e-12, 1e12),
        "tuple[float, ...]": lambda name: model.numbers(name, 1e-12, 1e12),
    }
    values = {}
    for f in fields(ModelConfig):
        if f.default is not MISSING and f.name not in model:
            model.skip(f.name)
        else:
            values[f.name] = readers.get(str(f.type).removesuffix(" | None"), model.text)(f.name)
    model.done()
    try:
        return ModelConfig(**values)  # type: ignore[arg-type]
    except ValueError as error:
        model.refuse(str(error))


def _open_samples(path: Path, tokenizer: Tokenizer) -> list[Sample]:
    return read_samples(path, tokenizer.vocab_size) if path.exists() else []


def _check_header(path: Path, config: ModelConfig) -> dict[str, TensorHeader]:
    """Compare names, shapes and types in the file's header with the configuration. Reads no weight."""
    headers = read_header(path)
    if config.num_layers > len(headers):
        raise CheckpointError(
            f"{path}: num_layers is {config.num_layers}, the file has only {len(headers)} tensors"
        )
    shapes = expected_shapes(config)
    if missing := [name for name in shapes if name not in headers]:
        raise CheckpointError(f"{path}: missing {some(missing)}")
    if extra := [name for name in headers if name not in shapes]:
        raise CheckpointError(f"{path}: unexpected {some(extra)}")
    for name, shape in shapes.items():
        if headers[name].shape != shape:
            raise CheckpointError(
                f"{path}: {name} has shape {list(headers[name].shape)}, config.json says {list(shape)}"
            )
        if headers[name].dtype not in READABLE:
            raise refuse_type(path, name, headers[name].dtype)
    return headers


def save_folder(
    path: str | Path,
    model: Decoder,
    tokenizer: Tokenizer,
    template: ChatTemplate | str,
    defaults: GenerationDefaults,
    samples: Sequence[Sample],
    card: str,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a servable folder, replacing one that is there.

    Files are written to a temporary folder and renamed into place, config.json last: a folder seen for the
    first time is whole or is no checkpoint, and every single file is always whole.

    Args:
        template: or the name of a built-in one.
        card: Markdown for README.md: data, licence, evaluation.
        dtype: of the stored weights.

    Raises:
        CheckpointError: a weight is NaN, infinite, or too large for dtype; or as write_wording.
    """
    path = Path(path)
    weights = _finite_weights(path, model, dtype)
    wording = write_wording(tokenizer, template, defaults)
    config = {"format": FORMAT, "version": VERSION, "model": asdict(model.config), **wording.fields}
    path.mkdir(parents=True, exist_ok=True)
    temporary = Path(
        tempfile.mkdtemp(prefix=".saving-", dir=path)
    )  # inside: a mount point's sibling is elsewhere
    try:
        _write(temporary / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")  # it writes mode 0600
        for name, content in wording.files.items():
            (temporary / name).write_bytes(content)
        _write(temporary / "generation_config.json", dump_defaults(defaults))
        _write(temporary / "samples.jsonl", dump_samples(samples))
        _write(temporary / "README.md", card)
        for file in sorted(temporary.iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, path / file.name)
    finally:
        shutil.rmtree(temporary)


def _finite_weights(path: Path, model: Decoder, dtype: torch.dtype) -> dict[str, Tensor]:
    weights = {name: p.detach().to("cpu", dtype).contiguous() for name, p in model.named_parameters()}
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{path}: not saved: {name} holds weights that are not finite in {dtype}")
    return weights


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
