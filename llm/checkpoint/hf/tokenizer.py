"""The vocabulary and the chat template of a Hugging Face folder: which of its files counts.

    tokenizer.json | vocab.json and merges.txt where their split is known | tokenizer.tiktoken
    chat_template.jinja | chat_template in tokenizer_config.json | chat_template.json

A SentencePiece tokenizer.model alone is refused: reading it takes a library that this server does without.
Refuses to know weights and what a template does.

    >>> tokenizer, notes = open_tokenizer(folder, 50257, "gpt2", settings)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llm.checkpoint.vocabulary import SHIPPED_TOKENIZER
from llm.errors import CheckpointError
from llm.fields import MAX_JSON_BYTES, Fields, parse_object, read_bytes
from llm.tokenizer import Tokenizer, load_tiktoken
from llm.tokenizer.json import load_tokenizer_json, load_vocab_merges

MAX_SETTINGS_BYTES = 8 << 20
MAX_SPELLING_CHARS = 256
GPT2_IDS = 50257


def read_settings(path: Path) -> dict[str, object]:
    """tokenizer_config.json of a folder; empty without one."""
    file = path / "tokenizer_config.json"
    return read_object(file, MAX_SETTINGS_BYTES) if file.exists() else {}


def read_object(file: Path, limit: int = MAX_JSON_BYTES) -> dict[str, object]:
    """A file that is one JSON object of at most `limit` bytes."""
    return parse_object(read_bytes(file, limit), str(file))


def open_tokenizer(
    path: Path, vocab_size: int, model_type: str, settings: Mapping[str, object]
) -> tuple[Tokenizer, list[str]]:
    """The folder's vocabulary, and notes on where it is from.

    Args:
        vocab_size: rows of the embedding; a tokenizer with more ids is refused.
        settings: tokenizer_config.json.

    Raises:
        CheckpointError: no vocabulary we can read, or one that does not fit.
    """
    notes: list[str] = []
    if (file := path / "tokenizer.json").is_file():
        tokenizer, notes = load_tokenizer_json(file, config=settings)
    elif (merges := path / "merges.txt").is_file() and _splits_as_known(model_type, settings):
        file = path / "vocab.json"
        tokenizer, notes = load_vocab_merges(file, merges, config=settings)
    elif (file := path / "tokenizer.tiktoken").is_file():
        tokenizer = load_tiktoken(file)
    elif model_type == "gpt2" and vocab_size == GPT2_IDS and not (path / "tokenizer.model").is_file():
        tokenizer, file = load_tiktoken(SHIPPED_TOKENIZER), SHIPPED_TOKENIZER
        notes = ["tokenizer: the folder has none, and as many rows as GPT-2's own, which is taken"]
    else:
        raise CheckpointError(f"{path}: {_nothing_readable(path)}")
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{path}: {file.name} has {tokenizer.vocab_size} ids, the embedding only {vocab_size} rows"
        )
    return tokenizer, [f"tokenizer: {file}", *notes]


def _nothing_readable(path: Path) -> str:
    if (path / "merges.txt").is_file():
        return "vocab.json and merges.txt do not say how text is split: add the model's tokenizer.json"
    if (path / "tokenizer.model").is_file():
        return (
            "only a SentencePiece tokenizer.model: with transformers installed, "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes the tokenizer.json it needs"
        )
    return "no tokenizer: neither tokenizer.json, nor vocab.json with merges.txt, nor tokenizer.tiktoken"


def _splits_as_known(model_type: str, settings: Mapping[str, object]) -> bool:
    """Whether vocab.json and merges.txt are enough: they do not say how text is split into pieces."""
    if model_type == "gpt2":
        return True
    return model_type in ("qwen2", "qwen3") and str(settings.get("tokenizer_class")).startswith("Qwen2")


def find_template(path: Path, settings: dict[str, object]) -> tuple[str | None, list[str]]:
    """The chat template's source, None when there is none, and a note on where it is from.

    Raises:
        CheckpointError: a file that holds no template where one must be.
    """
    if (file := path / "chat_template.jinja").is_file():
        return read_text(file), [f"template: {file}"]
    if settings.get("chat_template") is not None:
        file = path / "tokenizer_config.json"
        return _chosen(Fields(settings, str(file))), [f"template: in {file}"]
    if (file := path / "chat_template.json").is_file():
        return _chosen(Fields(read_object(file), str(file))), [f"template: in {file}"]
    return None, []


def read_text(file: Path) -> str:
    """A template's file, as text."""
    try:
        return read_bytes(file, MAX_JSON_BYTES).decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{file}: not UTF-8") from None


def _chosen(fields: Fields) -> str:
    """The field chat_template: one template, or the one called default of a list."""
    value = fields.take("chat_template")
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        fields.refuse("chat_template must be a string or a list of objects")
    for item in value:
        template = Fields(item, f"{fields.where}: chat_template")
        if template.text("name") == "default":
            return template.text("template")
    fields.refuse("chat_template has no template called default")


def spelling(settings: Mapping[str, object], name: str) -> str:
    """A token's text, written as a string or as an object with its content; "" when there is none."""
    value = settings.get(name)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and len(value) <= MAX_SPELLING_CHARS else ""


def id_of(tokenizer: Tokenizer, text: str) -> set[int]:
    """The id of a token by its text, when it is one token."""
    if text in tokenizer.control:
        return {tokenizer.control[text]}
    ids = tokenizer.encode(text) if text else []
    return set(ids) if len(ids) == 1 else set()
