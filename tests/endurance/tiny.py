"""A small servable checkpoint folder, made on the spot: two layers, the byte tokenizer, no training.

>>> save_tiny(tmp_path / "tiny", num_positions=4096)
>>> save_tiny_with_library(tmp_path / "unigram", "unigram", num_positions=512)
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from llm.checkpoint.folder import save_folder
from llm.config import GenerationDefaults
from llm.tokenizer import ByteTokenizer
from tests.fakes import tiny_model
from tests.small_vocabularies import make_spec, reference, write_spec


def save_tiny(folder: Path, *, num_positions: int, vocab_size: int = 257) -> Path:
    """Write the folder and return it."""
    model = tiny_model(num_positions=num_positions, vocab_size=vocab_size)
    defaults = GenerationDefaults()
    save_folder(folder, model, ByteTokenizer(), "plain", defaults, [], "# tiny", dtype=torch.float32)
    return folder


def save_tiny_with_library(folder: Path, family: str, *, num_positions: int) -> Path:
    """The same with a tokenizer.json of that family, which the tokenizers library reads."""
    spec = make_spec(family)
    save_tiny(folder, num_positions=num_positions, vocab_size=reference(spec).get_vocab_size())
    write_spec(folder / "tokenizer.json", spec)
    config = json.loads((folder / "config.json").read_text())
    config["tokenizer"] = {"file": "tokenizer.json", "encoding": "json"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
