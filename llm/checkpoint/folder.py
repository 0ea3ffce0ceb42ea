"""Our folder format, read and written.

    config.json             {"format": "causerie", "version": 1, "template": "plain",
                             "tokenizer": {"file": "tokenizer.tiktoken", "encoding": "gpt2"},
                             "model": {fields of ModelConfig; those with a default may be left out}}
                            other templates and tokenizers, and their files: wording.py;
                            "quantization": {"head.weight": "q8_0", …} names what is stored in groups
    model.safetensors       parameters under the Decoder's own names, F16, BF16, F32 or F64; a tied head once;
                            groups of 32 (adapt/quant.py) as U8, (out, in / 32 · bytes of a block)
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from llm.adapt.quant import BLOCK_BYTES, GROUP, Format, QuantTensor
from llm.chat.template import ChatTemplate
from llm.checkpoint.policy import dump_defaults, read_defaults
from llm.checkpoint.record import (
    Checkpoint,
    Sample,
    Weight,
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
from llm.checkpoint.wording import Wording, read_conversation, read_tokenizer, write_wording
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
    formats = _formats(top)
    top.done()
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} ids, vocab_size is only {config.vocab_size}"
        )
    weights = path / "model.safetensors"
    headers = _check_header(weights, config, formats)
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
        stored=_stored(headers, formats),
        read=lambda: (
            (name, _grouped(tensor, formats[name]) if name in formats else tensor)
            for name, tensor in read_tensors(weights, headers)
        ),
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


def _formats(top: Fields) -> dict[str, Format]:
    """Name of a parameter → the format of its groups; most folders say nothing and have none."""
    if "quantization" not in top:
        top.skip("quantization")
        return {}
    fields = top.inner("quantization")
    formats = {name: fields.text(name) for name in fields.left()}
    for name, format in formats.items():
        if format not in BLOCK_BYTES:
            fields.refuse(f"{some([name])} must be {' or '.join(BLOCK_BYTES)}, got {format[:64]!r}")
    return cast(dict[str, Format], formats)


def _grouped(data: Tensor, format: Format) -> QuantTensor:
    return QuantTensor(format, (data.shape[0], data.shape[1] // BLOCK_BYTES[format] * GROUP), data)


def _stored(headers: Mapping[str, TensorHeader], formats: Mapping[str, Format]) -> dict[str, int]:
    """How many weights there are of each type."""
    grouped = ((f, headers[name].numel // BLOCK_BYTES[f] * GROUP) for name, f in formats.items())
    return count_types([*grouped, *stored_types(h for name, h in headers.items() if name not in formats)])


def _open_samples(path: Path, tokenizer: Tokenizer) -> list[Sample]:
    return read_samples(path, tokenizer.vocab_size) if path.exists() else []


def _check_header(path: Path, config: ModelConfig, formats: Mapping[str, Format]) -> dict[str, TensorHeader]:
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
    if extra := [name for name in formats if name not in shapes]:
        raise CheckpointError(f"{path.parent}: quantization names {some(extra)}, which the network has not")
    for name, shape in shapes.items():
        if name in formats:
            shape = _grouped_shape(path, name, shape, formats[name])
        if headers[name].shape != shape:
            raise CheckpointError(
                f"{path}: {name} has shape {list(headers[name].shape)}, config.json says {list(shape)}"
            )
        if name in formats and headers[name].dtype != "U8":
            raise CheckpointError(f"{path}: {name} has type {headers[name].dtype}, groups are stored as U8")
        if name not in formats and headers[name].dtype not in READABLE:
            raise refuse_type(path, name, headers[name].dtype)
    return headers


def _grouped_shape(path: Path, name: str, shape: tuple[int, ...], format: Format) -> tuple[int, ...]:
    """Of the bytes of a matrix of that shape."""
    if len(shape) != 2 or shape[1] % GROUP:
        raise CheckpointError(
            f"{path.parent}: quantization: {name} of shape {list(shape)} has no rows of groups of {GROUP}"
        )
    return shape[0], shape[1] // GROUP * BLOCK_BYTES[format]


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
    wording = write_wording(tokenizer, template, defaults)
    weights = _finite_weights(path, model, dtype)
    _write_folder(path, model.config, weights, wording, defaults, samples, card)


def save_weights(path: str | Path, checkpoint: Checkpoint, weights: Mapping[str, Weight], card: str) -> None:
    """The same for a checkpoint whose weights were put in another form; written as they are.

    Args:
        weights: every parameter, finite.

    Raises:
        CheckpointError: as write_wording.
    """
    defaults = checkpoint.defaults
    wording = write_wording(checkpoint.tokenizer, checkpoint.template, defaults)
    _write_folder(Path(path), checkpoint.config, weights, wording, defaults, checkpoint.samples, card)


def _write_folder(
    path: Path,
    network: ModelConfig,
    weights: Mapping[str, Weight],
    wording: Wording,
    defaults: GenerationDefaults,
    samples: Sequence[Sample],
    card: str,
) -> None:
    """See save_folder."""
    config = {"format": FORMAT, "version": VERSION, "model": asdict(network), **wording.fields}
    grouped = {name: weight for name, weight in weights.items() if isinstance(weight, QuantTensor)}
    if grouped:
        config["quantization"] = {name: weight.format for name, weight in grouped.items()}
    tensors = {name: w.data if isinstance(w, QuantTensor) else w for name, w in weights.items()}
    path.mkdir(parents=True, exist_ok=True)
    temporary = Path(
        tempfile.mkdtemp(prefix=".saving-", dir=path)
    )  # inside: a mount point's sibling is elsewhere
    try:
        _write(temporary / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
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
