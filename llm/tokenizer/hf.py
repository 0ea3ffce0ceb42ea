"""Any tokenizer.json on the tokenizers library: SentencePiece's BPE and Unigram, and rare byte-level ones.

The library splits, normalises and merges; we keep two promises it does not: no text becomes a control token,
even where the spelling is a piece of the model (Unigram), and every id has exact bytes. A model whose tokens
have none (WordPiece and other word vocabularies) is refused. The library's panics are caught here. Refuses to
know files and roles of tokens.

    >>> tokenizer = LibraryTokenizer(spec, "tokenizer.json", control={"</s>": 2}, end_of_text=2)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import tokenizers

from llm.errors import CauserieError, CheckpointError, RequestError
from llm.tokenizer.added import replace_surrogates
from llm.tokenizer.byte_level import to_bytes
from llm.tokenizer.description import Description

MAX_TOKENS = 1 << 24
SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PROBE = "a \x00é漢😀\U0003abcd\U0010fffd\n  1"
_EXACT = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
Spec = Mapping[str, object]


class LibraryTokenizer:
    """A tokenizer.json as the library runs it, special tokens in text left as text.

    Args:
        spec: the parsed tokenizer.json.
        where: path, for messages.
        control: spelling → id of the tokens that ordinary text never becomes.
        end_of_text: the id that ends a document.
        begin_of_text: the id every sequence begins with.

    Attributes:
        description: what it was made from.

    Raises:
        CheckpointError: the library refuses it, its ids are not what it says, or its tokens have no bytes.
    """

    description: Description | None = None

    def __init__(
        self,
        spec: Spec,
        where: str,
        *,
        control: Mapping[str, int],
        end_of_text: int | None = None,
        begin_of_text: int | None = None,
    ) -> None:
        self.control = control
        self.end_of_text, self.begin_of_text = end_of_text, begin_of_text
        self._library = self._inner = _parse(spec, where)
        first, inner = _without_first_space(spec)
        if first or (inner != spec and _kind(spec.get("model")) == "Unigram"):
            self._inner = _parse(inner, where)
        self._continued = self._inner if first else self._library
        self._bytes = _table(self._library, spec, where, control)
        self.longest_token = max(map(len, [*self._bytes, *(text.encode() for text in control)]))
        self._barred = frozenset(control.values())
        self._unknown = self._unknown_token(spec)
        self._drops_space = _drops_space(spec)
        with _refused(where):
            for text in (_PROBE, *list(control)[:64]):
                self._encode(self._library, text)

    def _unknown_token(self, spec: Spec) -> tuple[int, str]:
        """The token of what cannot be written: text may become it, unless the text is its very spelling."""
        model = spec.get("model")
        unknown = model.get("unk_id", model.get("unk_token")) if isinstance(model, Mapping) else None
        found = self._library.token_to_id(unknown) if isinstance(unknown, str) else unknown
        if type(found) is not int or found in (self.end_of_text, self.begin_of_text):
            return -1, ""
        return found, self._library.id_to_token(found) or ""

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    def encode(self, text: str, *, continued: bool = False) -> list[int]:
        """Ids of ordinary text.

        Raises:
            RequestError: the library fails on this text.
        """
        try:
            with _refused("the checkpoint's tokenizer"):
                return self._encode(self._continued if continued else self._library, replace_surrogates(text))
        except CheckpointError as error:
            raise RequestError(f"this text cannot be encoded: {error}") from None

    def _encode(self, library: tokenizers.Tokenizer, text: str) -> list[int]:
        # alone in a batch: `encode` would keep the interpreter from every other thread until it is done
        (encoding,) = library.encode_batch([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        if self._barred.isdisjoint(ids):
            return ids
        unknown, spelling = self._unknown
        spans = (
            (start, end)
            for token_id, (start, end) in zip(ids, encoding.offsets, strict=True)
            if token_id in self._barred and (token_id != unknown or spelling in text[start:end])
        )
        cuts = sorted({(start + end) // 2 for start, end in spans if end - start > 1})
        if not cuts:
            return [i for i in ids if i not in self._barred or i == unknown]
        ids = []
        for start, end in pairwise([0, *cuts, len(text)]):  # the spelling in two halves is text
            ids += self._encode(self._inner if start else library, text[start:end])
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids, without the space that the vocabulary writes before the first word."""
        text = b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._drops_space else text


@contextmanager
def _refused(where: str) -> Iterator[None]:
    """Whatever the library raises becomes a line of ours; a panic of its Rust code is a BaseException."""
    try:
        yield
    except CauserieError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(f"{where}: the tokenizers library refuses it: {line!r}") from None


def _parse(spec: Spec, where: str) -> tokenizers.Tokenizer:
    with _refused(where):
        library = tokenizers.Tokenizer.from_str(json.dumps(spec))
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True
        return library


def _kind(part: object) -> object:
    return part.get("type") if isinstance(part, Mapping) else None


def _steps(part: object, key: str) -> list[Mapping[str, object]]:
    """A normalizer's, pre-tokenizer's or decoder's steps in order, Sequences unpacked."""
    todo, steps = [part], []
    while todo:
        step = todo.pop()
        if not isinstance(step, Mapping):
            continue
        inner = step.get(key)
        if step.get("type") == "Sequence" and isinstance(inner, list):
            todo += reversed(inner)
        else:
            steps.append(step)
    return steps


def _without_first_space(spec: Spec) -> tuple[bool, Spec]:
    """Whether only the first word of a text gets a space before it, and the spec in which none does."""
    before = _steps(spec.get("pre_tokenizer"), "pretokenizers")
    first = any(step.get("prepend_scheme") == "first" for step in before)
    steps = [_spaceless(step) if step.get("type") == "Metaspace" else step for step in before]
    normal = _steps(spec.get("normalizer"), "normalizers")
    kept = [step for step in normal if step.get("type") != "Prepend"]
    if steps == before and kept == normal:
        return False, spec
    return first, {
        **spec,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if steps else None,
        "normalizer": {"type": "Sequence", "normalizers": kept} if kept else None,
    }


def _spaceless(metaspace: Spec) -> Spec:
    legacy = {"add_prefix_space": False} if "add_prefix_space" in metaspace else {}
    return {**metaspace, **legacy, "prepend_scheme": "never"}


def _drops_space(spec: Spec) -> bool:
    """Whether decoding takes one space off the front."""
    for step in _steps(spec.get("decoder"), "decoders"):
        if step.get("type") == "Strip" and step.get("content") == " " and step.get("start"):
            return True
        if step.get("type") == "Metaspace":
            return (
                step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True) is True
            )
    return False


def _table(library: tokenizers.Tokenizer, spec: Spec, where: str, control: Mapping[str, int]) -> list[bytes]:
    """Bytes by id; b"" for control tokens and for ids that are no token."""
    vocab = library.get_vocab(with_added_tokens=True)
    if not vocab:
        raise CheckpointError(f"{where}: the vocabulary is empty")
    check_ids(max(vocab.values()), len(vocab), where)
    for spelling, token_id in {**_declared(spec), **control}.items():
        if vocab.get(spelling) != token_id:
            raise CheckpointError(
                f"{where}: token {spelling[:64]!r} has id {token_id}, by its place in the vocabulary it has "
                f"{vocab.get(spelling)}"
            )
    to_data, added = _spelling(spec, where), library.get_added_tokens_decoder()
    table = [b""] * (1 + max(vocab.values()))
    for token, token_id in vocab.items():
        table[token_id] = (_of_added if token_id in added else to_data)(token)
    for token_id in control.values():
        table[token_id] = b""
    return table


def _declared(spec: Spec) -> dict[str, int]:
    """Spelling → id of the added tokens, which the library numbers by their place."""
    added = spec.get("added_tokens")
    items = added if isinstance(added, list) else []
    return {item["content"]: item["id"] for item in items if isinstance(item, Mapping)}


def check_ids(largest: int, num_tokens: int, where: str) -> None:
    """Refuse ids so large that a table of them would be mostly empty.

    Raises:
        CheckpointError: the largest id is beyond 16M, or beyond four times the tokens and 65,536.
    """
    if not largest < min(MAX_TOKENS, 4 * num_tokens + (1 << 16)):
        raise CheckpointError(f"{where}: token id {largest} is too large for {num_tokens} tokens")


def _of_added(token: str) -> bytes:
    return token.encode(errors="replace")


def _spelling(spec: Spec, where: str) -> Callable[[str], bytes]:
    """How a token of the model becomes bytes.

    Raises:
        CheckpointError: by a decoder that does not keep the exact bytes.
    """
    decoders = [step.get("type") for step in _steps(spec.get("decoder"), "decoders")]
    before = [step.get("type") for step in _steps(spec.get("pre_tokenizer"), "pretokenizers")]
    if "ByteLevel" in decoders or "ByteLevel" in before:
        return lambda token: data if (data := to_bytes(token)) is not None else _of_added(token)
    if _kind(spec.get("model")) not in ("BPE", "Unigram") or not decoders or not set(decoders) <= _EXACT:
        raise CheckpointError(
            f"{where}: model {_kind(spec.get('model'))} with decoder {'+'.join(map(str, decoders)) or None} "
            "does not keep the exact bytes of text, so it cannot be streamed"
        )
    fallback = "ByteFallback" in decoders

    def of_piece(token: str) -> bytes:
        if fallback and (match := _BYTE.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return token.replace(SPACE, " ").encode(errors="replace")

    return of_piece
