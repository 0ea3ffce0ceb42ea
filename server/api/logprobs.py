"""Log probabilities in the shapes clients read: OpenAI's of replies, vLLM's of prompts.

Pure functions of tokens; `CompletionLogprobs` only counts characters. A value is always a finite number:
what the model calls impossible is -9999. A control token is no text: its bytes are none and its name is its
spelling. Refuses to know streams, requests and how a token was drawn.

    >>> chat_entries(delta.tokens, model.tokenizer, num_top=2)
    [{"token": "Hi", "logprob": -0.2, "bytes": [72, 105], "top_logprobs": [...]}]
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from llm.choice import ReplyToken
from llm.likelihood import finite
from llm.sequence import Logprob
from llm.tokenizer import Tokenizer

_SPELLED = "surrogateescape"
"""Bytes that are not UTF-8 survive a way through str."""


def token_name(tokenizer: Tokenizer, token_id: int) -> str:
    """A token's text, U+FFFD for what is not a whole character; the spelling of a control token."""
    data = tokenizer.token_bytes(token_id)
    return data.decode("utf-8", errors="replace") if data else _control_name(tokenizer, token_id)


def chat_entries(tokens: Iterable[ReplyToken], tokenizer: Tokenizer, num_top: int) -> list[dict[str, Any]]:
    """`choices[].logprobs.content` for tokens that were drawn with log probabilities.

    Args:
        num_top: alternatives to list for each token, best first, at most as many as were asked of the engine.
    """
    entries = []
    for token in tokens:
        assert token.logprob is not None, "drawn without log probabilities"
        top = [
            _chat_entry(tokenizer, token_id, value, _shown_bytes(token, token_id, tokenizer))
            for token_id, value in token.logprob.top[:num_top]
        ]
        own = _chat_entry(tokenizer, token.id, token.logprob.value, token.data)
        entries.append({**own, "top_logprobs": top})
    return entries


def _chat_entry(tokenizer: Tokenizer, token_id: int, value: float, data: bytes) -> dict[str, Any]:
    text = data.decode("utf-8", errors="replace") if data else _control_name(tokenizer, token_id)
    return {"token": text, "logprob": finite(value), "bytes": list(data)}


def _shown_bytes(token: ReplyToken, token_id: int, tokenizer: Tokenizer) -> bytes:
    """An alternative's bytes as the text would have them: without whitespace dropped at its start."""
    if token_id == token.id:
        return token.data
    data = tokenizer.token_bytes(token_id)
    if token.is_trimmed:
        return data.decode("utf-8", errors=_SPELLED).lstrip().encode("utf-8", errors=_SPELLED)
    return data


def _control_name(tokenizer: Tokenizer, token_id: int) -> str:
    """Spelling of a control token, "" of any other that is no text."""
    if tokenizer.token_bytes(token_id):
        return ""  # whitespace that was dropped
    return next((name for name, number in tokenizer.control.items() if number == token_id), "")


def prompt_entries(
    prompt_ids: Sequence[int], logprobs: Sequence[Logprob], tokenizer: Tokenizer, num_top: int | None = None
) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's `prompt_logprobs`: for each token of the prompt the alternatives and itself by id, None for the
    first, which follows nothing.

    Args:
        logprobs: of the prompt's tokens from the second on.
        num_top: alternatives to list; None for all that were asked of the engine.
    """
    assert len(logprobs) == len(prompt_ids) - 1, (len(logprobs), len(prompt_ids))
    entries: list[dict[str, dict[str, Any]] | None] = [None]
    for logprob in logprobs:
        ranked = [(token, value, i) for i, (token, value) in enumerate(logprob.top[:num_top], start=1)]
        ranked.append((logprob.token_id, logprob.value, logprob.rank))
        entries.append(
            {
                str(token): {
                    "logprob": finite(value),
                    "rank": rank,
                    "decoded_token": token_name(tokenizer, token),
                }
                for token, value, rank in ranked
            }
        )
    return entries


def empty_completion_logprobs() -> dict[str, list[Any]]:
    """The shape of `choices[].logprobs` in a completion, of no token at all."""
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


class CompletionLogprobs:
    """`choices[].logprobs` of one completion, part by part: the echoed prompt, then the reply.

    A token that is not whole characters is named by its bytes, as OpenAI does: `bytes:\\xe2\\x82`. So
    different tokens have different names, and none is lost from `top_logprobs`.

    Args:
        tokenizer: ids to bytes.
        num_top: alternatives to list beside each token's own; 0 for itself alone.
    """

    def __init__(self, tokenizer: Tokenizer, num_top: int) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._offset = _TextOffset()

    def prompt(self, prompt_ids: Sequence[int], logprobs: Sequence[Logprob]) -> dict[str, list[Any]]:
        """Of an echoed prompt; its first token follows nothing, so it has no value.

        Args:
            logprobs: of the prompt's tokens from the second on.
        """
        assert len(logprobs) == len(prompt_ids) - 1, (len(logprobs), len(prompt_ids))
        part = empty_completion_logprobs()
        for token_id, logprob in zip(prompt_ids, (None, *logprobs), strict=True):
            self._add(part, token_id, self._tokenizer.token_bytes(token_id), logprob)
        self._offset.end()  # the reply's characters begin with the reply
        num_dropped = self._offset.drop_to(len(self._tokenizer.decode(prompt_ids)))
        part["text_offset"] = [max(0, offset - num_dropped) for offset in part["text_offset"]]
        return part

    def reply(self, tokens: Iterable[ReplyToken]) -> dict[str, list[Any]]:
        """Of the reply's next tokens."""
        part = empty_completion_logprobs()
        for token in tokens:
            self._add(part, token.id, token.data, token.logprob)
        return part

    def _add(self, part: dict[str, list[Any]], token_id: int, data: bytes, logprob: Logprob | None) -> None:
        name = self._name(token_id, data) if data else self._name_of(token_id)
        part["tokens"].append(name)
        part["text_offset"].append(self._offset.of(data))
        part["token_logprobs"].append(None if logprob is None else finite(logprob.value))
        part["top_logprobs"].append(None if logprob is None else self._top(name, logprob))

    def _top(self, name: str, logprob: Logprob) -> dict[str, float]:
        """Best first, the token's own last unless it is one of them; two of one name are the better one."""
        top: dict[str, float] = {}
        for token_id, value in logprob.top[: self._num_top]:
            other = name if token_id == logprob.token_id else self._name_of(token_id)
            top.setdefault(other, finite(value))
        top.setdefault(name, finite(logprob.value))
        return top

    def _name_of(self, token_id: int) -> str:
        return self._name(token_id, self._tokenizer.token_bytes(token_id))

    def _name(self, token_id: int, data: bytes) -> str:
        if not data:
            return _control_name(self._tokenizer, token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class _TextOffset:
    """Where tokens begin in the text they spell, in characters, U+FFFD for what is no UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_decoded = 0

    def of(self, data: bytes) -> int:
        """Index of the character that the next token's first byte is part of."""
        unfinished = self._decoder.getstate()[0]
        until_first = len((unfinished + data[:1]).decode("utf-8", errors="replace"))
        begins_at = self._num_decoded + (until_first - 1 if data else 0)
        self._num_decoded += len(self._decoder.decode(data))
        return begins_at

    def drop_to(self, num_chars: int) -> int:
        """The text has only so many characters: a vocabulary may write a space before the first word."""
        num_dropped, self._num_decoded = self._num_decoded - num_chars, num_chars
        return num_dropped

    def end(self) -> None:
        """No byte completes what is pending: it is a character of its own."""
        self._num_decoded += len(self._decoder.decode(b"", final=True))
