"""Which tokenizer a torch file goes with: the one that lies beside it, else GPT-2's, which we ship.

    tokenizer.tiktoken      byte-level ranks
    tokenizer.json          a `tokenizers` file
    meta.pkl                nanoGPT's characters, when there is one for each row of the embedding

Refuses to know what the tensors are, but for the number of rows.
"""

from __future__ import annotations

from pathlib import Path

from llm.checkpoint.characters import read_characters
from llm.errors import CheckpointError
from llm.tokenizer import Tokenizer, load_tiktoken
from llm.tokenizer.chars import CharTokenizer
from llm.tokenizer.json import load_tokenizer_json

SHIPPED_TOKENIZER = Path(__file__).parents[2] / "checkpoints" / "causette" / "tokenizer.tiktoken"


def find_tokenizer(path: Path, vocab_size: int) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of a model with this many rows, and a note on where it is from.

    Args:
        path: the torch file.

    Raises:
        CheckpointError: none is there, or the one that is has more ids than the model rows.
    """
    notes: list[str] = []
    if (file := path.with_name("tokenizer.tiktoken")).is_file():
        tokenizer: Tokenizer = load_tiktoken(file)
    elif (file := path.with_name("tokenizer.json")).is_file():
        tokenizer, notes = load_tokenizer_json(file)
    elif (found := _characters(file := path.with_name("meta.pkl"), vocab_size, notes)) is not None:
        tokenizer = found
    else:
        tokenizer, file = _shipped(path, vocab_size), SHIPPED_TOKENIZER
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{path}: {file} has {tokenizer.vocab_size} ids, the embedding only {vocab_size} rows"
        )
    return tokenizer, [f"tokenizer: {file}", *notes]


def _characters(file: Path, vocab_size: int, notes: list[str]) -> Tokenizer | None:
    """nanoGPT's characters, if they are this model's."""
    if not file.is_file():
        return None
    characters = read_characters(file)
    if len(characters) != vocab_size:
        notes.append(f"tokenizer: {file} ignored, its {len(characters)} characters are not {vocab_size} rows")
        return None
    try:
        return CharTokenizer(characters)
    except ValueError as error:
        raise CheckpointError(f"{file}: itos: {error}") from None


def _shipped(path: Path, vocab_size: int) -> Tokenizer:
    if not SHIPPED_TOKENIZER.is_file():
        raise CheckpointError(
            f"{path}: no vocabulary: {SHIPPED_TOKENIZER} is not there, nor one beside the file"
        )
    tokenizer = load_tiktoken(SHIPPED_TOKENIZER)
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{path}: the embedding has {vocab_size} rows, fewer than GPT-2's {tokenizer.vocab_size} ids, "
            "and no vocabulary lies beside the file: put its tokenizer.tiktoken, tokenizer.json or, for "
            "single characters, nanoGPT's meta.pkl (from data/NAME) there"
        )
    return tokenizer
