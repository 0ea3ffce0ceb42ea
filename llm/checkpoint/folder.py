"""Our folder format, read and written.

    config.json             {"format": "causerie", "version": 1, "template": "plain",
                             "tokenizer": {"file": "tokenizer.tiktoken", "encoding": "gpt2"},
                             "model": {fields of ModelConfig; those with a default may be left out}}
                            template is "plain", "chatml" or "jinja", which is in chat_template.jinja;
                            tokenizer may be {"file": "tokenizer.json", "encoding": "json"} or
                            {"encoding": "bytes"}
    model.safetensors       parameters under the Decoder's own names, F16, BF16, F32 or F64; a tied head once
    tokenizer.tiktoken      the vocabulary; beside a tokenizer.json, tokenizer_config.json may say its roles
    generation_config.json  sampling policy under Hugging Face's names, and default_system
    samples.jsonl           training conversations for the prompt proof
    README.md               the model card

Shapes and types come from the safetensors header and are compared with config.json before a weight is read.
Refuses to know other formats, and any file that config.json places outside the folder.

    >>> save_folder("checkpoints/mine", model, tokenizer, "plain", COURSE_DEFAULTS, samples, card="# Mine")
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from llm.chat.chatml import END, ChatMLTemplate
from llm.chat.template import ChatTemplate, get_template
from llm.checkpoint.dialogue import read_dialogue
from llm.checkpoint.hf.tokenizer import read_settings, read_text, spelling
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
from llm.config import MAX_DIMENSION, GenerationDefaults, ModelConfig
from llm.errors import CheckpointError
from llm.fields import MAX_JSON_BYTES, Fields, parse_object, read_bytes
from llm.model import Decoder
from llm.tokenizer import END_OF_TEXT, ByteTokenizer, TiktokenTokenizer, Tokenizer, load_tiktoken
from llm.tokenizer.json import load_tokenizer_json

FORMAT, VERSION = "causerie", 1
MAX_TOKENIZER_BYTES = 64 << 20


def open_folder(path: Path) -> Checkpoint:
    """Open a folder in our format.

    Raises:
        CheckpointError: anything that keeps the folder from being served, in one line.
    """
    top = _config_json(path)
    config = _model_config(top.inner("model"))
    tokenizer = _open_tokenizer(path, top.inner("tokenizer"))
    template_name = top.text("template")
    top.done()
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} ids, vocab_size is only {config.vocab_size}"
        )
    weights = path / "model.safetensors"
    headers = _check_header(weights, config)
    defaults, notes = read_defaults(path / "generation_config.json")
    template, defaults = _conversation(path, template_name, tokenizer, defaults)
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


def _open_tokenizer(path: Path, spec: Fields) -> Tokenizer:
    encoding = spec.text("encoding")
    if encoding == "bytes":
        spec.done()
        return ByteTokenizer()
    name = spec.text("file")
    spec.done()
    file = path / name
    if Path(name).name != name or "\\" in name or not file.resolve().is_relative_to(path.resolve()):
        spec.refuse(f"file must be a plain file name inside the folder, got {name[:64]!r}")
    if not file.is_file():
        spec.refuse(f"file {name[:64]!r} is not there")
    if file.stat().st_size > MAX_TOKENIZER_BYTES:
        spec.refuse(f"file {name[:64]!r} is larger than the limit of {MAX_TOKENIZER_BYTES} bytes")
    if encoding == "json":
        return load_tokenizer_json(file, config=read_settings(path))[0]
    return load_tiktoken(file, encoding)


def _conversation(
    path: Path, name: str, tokenizer: Tokenizer, defaults: GenerationDefaults
) -> tuple[ChatTemplate, GenerationDefaults]:
    """The template of that name, and the policy with what ends a reply in it."""
    system = defaults.default_system
    if name == "jinja":
        file, settings = path / "chat_template.jinja", read_settings(path)
        dialogue = read_dialogue(
            str(path),
            read_text(file),
            tokenizer,
            bos_token=spelling(settings, "bos_token"),
            eos_token=spelling(settings, "eos_token"),
            default_system=system,
        )
        template: ChatTemplate = dialogue.template
        stop, ends = dialogue.stop, dialogue.stop_token_ids
    elif name == ChatMLTemplate.name:
        template = chatml = ChatMLTemplate(system, tokenizer.control)
        stop, ends = chatml.stops, frozenset({tokenizer.control[END]} if END in tokenizer.control else ())
    else:
        try:
            return get_template(name[:64], system), defaults
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}, chatml, jinja") from None
    ends = ends | defaults.stop_token_ids
    return template, replace(defaults, stop=defaults.stop or stop, stop_token_ids=ends)


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
    template_name: str,
    defaults: GenerationDefaults,
    samples: Sequence[Sample],
    card: str,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a servable folder, replacing one that is there.

    Files are written to a temporary folder and renamed into place, config.json last: a folder seen for the
    first time is whole or is no checkpoint, and every single file is always whole.

    Args:
        card: Markdown for README.md: data, licence, evaluation.
        dtype: of the stored weights.

    Raises:
        CheckpointError: a weight is NaN, infinite, or too large for dtype; or the vocabulary is of a kind
            that a folder of ours cannot hold.
    """
    path = Path(path)
    weights = _finite_weights(path, model, dtype)
    get_template(template_name)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "model": asdict(model.config),
        "tokenizer": tokenizer_spec(tokenizer),
        "template": template_name,
    }
    path.mkdir(parents=True, exist_ok=True)
    temporary = Path(
        tempfile.mkdtemp(prefix=".saving-", dir=path)
    )  # inside: a mount point's sibling is elsewhere
    try:
        _write(temporary / "config.json", json.dumps(config, indent=2) + "\n")
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")  # it writes mode 0600
        if isinstance(tokenizer, TiktokenTokenizer):
            (temporary / "tokenizer.tiktoken").write_bytes(_dump_ranks(tokenizer))
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


def tokenizer_spec(tokenizer: Tokenizer) -> dict[str, str]:
    """What config.json says about a tokenizer that a folder of ours can hold.

    Raises:
        CheckpointError: it is not a plain list of ranks with an end of text: such a one came from a file.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return {"encoding": "bytes"}
    plain = {END_OF_TEXT: tokenizer.vocab_size - 1}
    if not isinstance(tokenizer, TiktokenTokenizer) or tokenizer.control != plain:
        raise CheckpointError(
            "a folder of ours is saved with GPT-2's kind of vocabulary: ranks and one end of text, "
            f"not {type(tokenizer).__name__} with {len(tokenizer.control)} control tokens"
        )
    return {"file": "tokenizer.tiktoken", "encoding": tokenizer.encoding}


def _dump_ranks(tokenizer: TiktokenTokenizer) -> bytes:
    """The tokenizer's ranks in tiktoken's format, in order; the end-of-text marker is implied."""
    tokens = (tokenizer.token_bytes(rank) for rank in range(tokenizer.vocab_size - 1))
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
