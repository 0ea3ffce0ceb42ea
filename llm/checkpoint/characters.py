"""nanoGPT's meta.pkl: the characters of a character-level model, in the order of their ids.

    {"vocab_size": 65, "itos": {0: "\\n", 1: " ", …}, "stoi": {"\\n": 0, " ": 1, …}}

It is a pickle, so it is not trusted: every instruction is looked at before one is carried out, and only those
that make numbers, strings, lists and dicts are; whatever would import, call or build an object is refused,
here and again by an unpickler that finds no global at all. Refuses to know the network.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import NoReturn

from llm.checkpoint.record import one_line
from llm.errors import CheckpointError
from llm.fields import Fields, read_bytes

MAX_META_BYTES = 1 << 20
MAX_NUMBER = 1 << 31
"""No larger number is read: many of them could all have one hash, and a dict of those takes for ever."""
_PLAIN = set(
    """PROTO FRAME STOP MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2
    UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
    EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS""".split()
)


class _NoGlobals(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"asks for {module}.{name}")


def read_characters(path: Path) -> list[str]:
    """The characters by id.

    Raises:
        CheckpointError: too large, not a plain pickle, or not a table of single characters that runs from 0.
    """
    values = _read_plain_pickle(path)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise CheckpointError(f"{path}: expected a dict of vocab_size, itos and stoi")
    fields = Fields(values, str(path))
    itos, stoi = fields.take("itos"), fields.take("stoi")
    if not isinstance(itos, dict) or not isinstance(stoi, dict) or not itos:
        fields.refuse("itos and stoi must be dicts, and not empty")
    characters = [itos.get(i) for i in range(len(itos))]
    if not all(isinstance(c, str) and len(c) == 1 for c in characters):
        fields.refuse(f"itos must map each of 0 to {len(itos) - 1} to one character")
    if stoi != {character: i for i, character in enumerate(characters)}:
        fields.refuse("stoi is not the inverse of itos")
    if "vocab_size" in fields and fields.take("vocab_size") != len(itos):
        fields.refuse(f"vocab_size is not {len(itos)}, the characters in itos")
    return [str(character) for character in characters]


def _read_plain_pickle(path: Path) -> object:
    data = read_bytes(path, MAX_META_BYTES)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in _PLAIN:
                asked = f" {str(argument)[:64]!r}" if isinstance(argument, str) else ""
                raise CheckpointError(
                    f"{path}: its pickle holds {opcode.name}{asked}: only numbers, strings, lists and dicts "
                    "are read"
                )
            bound = len(data) if "PUT" in opcode.name else MAX_NUMBER  # the memo is as long as its last index
            if isinstance(argument, int) and abs(argument) > bound:
                raise CheckpointError(f"{path}: its pickle says {opcode.name} {argument}, at most {bound}")
        return _NoGlobals(io.BytesIO(data)).load()
    except CheckpointError:
        raise
    except Exception as error:  # whatever the unpickler trips over is the file's fault
        raise CheckpointError(f"{path}: not a readable pickle: {one_line(error)}") from None
