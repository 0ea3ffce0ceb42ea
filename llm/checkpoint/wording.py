"""How a folder of ours keeps its tokenizer and chat template: one half writes it, the other reads it back.

    tokenizer, in config.json                                    what is beside it
    {"encoding": "gpt2", "file": "tokenizer.tiktoken"}           ranks and an end of text
    {"encoding": "json", "file": "tokenizer.json"}               tokenizer_config.json: begin and end of text
    {"encoding": "json", …, "control": ["<|eot_id|>"]}           control tokens that neither file marks
    {"encoding": "characters", "characters": "\\n ab"}            nothing: the place of each is its id
    {"encoding": "bytes"}                                        nothing

    template                                                     what is beside it
    "plain", "chatml"                                            nothing
    "jinja"                                                      chat_template.jinja, tokenizer_config.json

A vocabulary that came out of a GGUF file is written as the tokenizer.json it was read as. Refuses to know
weights, and any file that config.json places outside the folder.

    >>> write_wording(checkpoint.tokenizer, checkpoint.template, checkpoint.defaults).fields["template"]
    'jinja'
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from llm.chat.chatml import END, ChatMLTemplate
from llm.chat.jinja import JinjaTemplate
from llm.chat.template import ChatTemplate, PlainTemplate, begin_of, get_template
from llm.checkpoint.dialogue import read_dialogue
from llm.checkpoint.hf.tokenizer import read_settings, read_text, spelling
from llm.config import GenerationDefaults
from llm.errors import CheckpointError
from llm.fields import Fields
from llm.tokenizer import ByteTokenizer, TiktokenTokenizer, Tokenizer, dump_tiktoken, load_tiktoken
from llm.tokenizer.chars import CharTokenizer
from llm.tokenizer.hf import LibraryTokenizer
from llm.tokenizer.json import load_tokenizer_json, roles_to_config

MAX_TOKENIZER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Wording:
    """A tokenizer and a template as a folder holds them.

    Attributes:
        fields: "tokenizer" and "template" of config.json.
        files: by name, what lies beside it.
    """

    fields: dict[str, object]
    files: dict[str, bytes]


def write_wording(
    tokenizer: Tokenizer, template: ChatTemplate | str, defaults: GenerationDefaults
) -> Wording:
    """What a folder says of them.

    Args:
        template: or the name of a built-in one, with the default system message of `defaults`.

    Raises:
        CheckpointError: a vocabulary or a template that was made by hand, of a kind that no file describes.
    """
    spec, files, roles = _write_tokenizer(tokenizer)
    name, source, constants = _write_template(template, tokenizer, defaults)
    if source is not None:
        files["chat_template.jinja"] = source
    if "tokenizer.json" in files or source is not None:  # empty or not: one that was there must not count
        text = json.dumps(constants | roles, indent=2, ensure_ascii=False) + "\n"
        files["tokenizer_config.json"] = text.encode()
    return Wording({"tokenizer": spec, "template": name}, files)


def _write_tokenizer(tokenizer: Tokenizer) -> tuple[dict[str, object], dict[str, bytes], dict[str, object]]:
    """Of a tokenizer: what config.json says, the files, and fields of tokenizer_config.json."""
    if isinstance(tokenizer, ByteTokenizer):
        return {"encoding": "bytes"}, {}, {}
    if isinstance(tokenizer, CharTokenizer):
        characters = "".join(tokenizer.token_bytes(i).decode() for i in range(tokenizer.vocab_size))
        return {"encoding": "characters", "characters": characters}, {}, {}
    if not isinstance(tokenizer, TiktokenTokenizer | LibraryTokenizer):
        raise CheckpointError(f"a folder of ours cannot hold a {type(tokenizer).__name__}")
    if (made_from := tokenizer.description) is not None:
        spec: dict[str, object] = {"file": "tokenizer.json", "encoding": "json"}
        if made_from.roles.control:
            spec["control"] = sorted(made_from.roles.control)
        return spec, {"tokenizer.json": made_from.json}, roles_to_config(made_from.roles)
    if isinstance(tokenizer, LibraryTokenizer):
        raise CheckpointError("a folder of ours cannot hold a LibraryTokenizer without its tokenizer.json")
    spec = {"file": "tokenizer.tiktoken", "encoding": tokenizer.encoding}
    return spec, {"tokenizer.tiktoken": dump_tiktoken(tokenizer)}, {}


def _write_template(
    template: ChatTemplate | str, tokenizer: Tokenizer, defaults: GenerationDefaults
) -> tuple[str, bytes | None, dict[str, object]]:
    """Of a template: its name, its source if it has one, and the spellings the source may use."""
    begin = begin_of(tokenizer)
    if isinstance(template, str):
        template = get_template(template, defaults.default_system, begin)
    if template.default_system != defaults.default_system:
        raise CheckpointError(
            f"a folder of ours has one default system message, not {template.default_system!r} for the "
            f"template and {defaults.default_system!r} for requests"
        )
    if isinstance(template, JinjaTemplate):
        constants: dict[str, object] = {name: text for name, text in template.constants.items() if text}
        return template.name, template.source.encode(), constants
    if isinstance(template, PlainTemplate) and template.begin != begin:
        raise CheckpointError(
            f"a plain conversation begins with {template.begin!r}, the tokenizer's texts with {begin!r}"
        )
    if not isinstance(template, PlainTemplate | ChatMLTemplate):
        raise CheckpointError(f"a folder of ours cannot hold the chat template {template.name!r}")
    return template.name, None, {}


def read_tokenizer(path: Path, spec: Fields) -> Tokenizer:
    """The tokenizer of a folder.

    Args:
        spec: what config.json says about it.

    Raises:
        CheckpointError: it cannot be used, or is not inside the folder.
    """
    encoding = spec.text("encoding")
    if encoding == "bytes":
        spec.done()
        return ByteTokenizer()
    if encoding == "characters":
        characters = spec.text("characters")
        spec.done()
        try:
            return CharTokenizer(characters)
        except ValueError as error:
            spec.refuse(f"characters: {error}")
    file = _file_inside(path, spec)
    control = spec.items("control") if encoding == "json" and "control" in spec else []
    spec.done()
    if not all(isinstance(text, str) for text in control):
        spec.refuse("control must be a list of strings")
    if encoding == "json":
        return load_tokenizer_json(file, config=read_settings(path), control=[str(t) for t in control])[0]
    return load_tiktoken(file, encoding)


def _file_inside(path: Path, spec: Fields) -> Path:
    name = spec.text("file")
    file = path / name
    if Path(name).name != name or "\\" in name or not file.resolve().is_relative_to(path.resolve()):
        spec.refuse(f"file must be a plain file name inside the folder, got {name[:64]!r}")
    if not file.is_file():
        spec.refuse(f"file {name[:64]!r} is not there")
    if file.stat().st_size > MAX_TOKENIZER_BYTES:
        spec.refuse(f"file {name[:64]!r} is larger than the limit of {MAX_TOKENIZER_BYTES} bytes")
    return file


def read_conversation(
    path: Path, name: str, tokenizer: Tokenizer, defaults: GenerationDefaults
) -> tuple[ChatTemplate, GenerationDefaults]:
    """The template of that name, and the policy with what ends a reply in it.

    Raises:
        CheckpointError: no such template, or one that cannot be used.
    """
    known = frozenset(i for i in defaults.stop_token_ids if 0 <= i < tokenizer.vocab_size)
    system, defaults = defaults.default_system, replace(defaults, stop_token_ids=known)
    if name == JinjaTemplate.name:
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
            return get_template(name[:64], system, begin_of(tokenizer)), defaults
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}, chatml, jinja") from None
    return template, replace(defaults, stop=defaults.stop or stop, stop_token_ids=ends | known)
