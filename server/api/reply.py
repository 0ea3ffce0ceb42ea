"""What all forms of a reply share: head, usage, how it travels, and what the request wants to see of it."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from llm.text import TextModel
from server.api.fields import Schema
from server.errors import invalid


class StreamOptions(Schema):
    """Only with stream."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class StreamFields(Schema):
    """What every generating endpoint takes."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None


def check_stream(asked: StreamFields, prompt_logprobs: int | None) -> None:
    """Refuse what contradicts `stream`.

    Raises:
        ApiError: names the field.
    """
    if asked.stream_options is not None and not asked.stream:
        raise invalid("stream_options is only for requests with stream: true", "stream_options")
    if prompt_logprobs is not None and asked.stream:
        raise invalid("prompt_logprobs is only for requests without stream", "prompt_logprobs")


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What every chunk of a reply, and the whole one, has in common."""

    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, model: TextModel) -> ReplyHead:
        """A new reply of this model, under the name it is served by."""
        return cls(model.name, model.fingerprint)

    def fields(self, kind: str) -> dict[str, Any]:
        """The JSON object's first fields."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request wants to see.

    Attributes:
        prompt: the prompt's ids.
        num_choices: n.
        usage: a last chunk with usage; a whole reply always has it.
        running_usage: usage on every chunk.
        num_top: alternatives beside each token's log probability; None for no log probabilities.
        token_ids: ids of prompt and reply.
        timings: when tokens came; `per_token` each one's.
    """

    prompt: list[int]
    num_choices: int = 1
    usage: bool = False
    running_usage: bool = False
    num_top: int | None = None
    token_ids: bool = False
    timings: bool = False
    per_token: bool = False

    @property
    def tokens(self) -> bool:
        """Whether the reply's text alone is not enough."""
        return self.num_top is not None or self.token_ids or self.per_token


def usage(num_prompt_tokens: int, num_completion_tokens: int, num_cached_tokens: int) -> dict[str, Any]:
    """OpenAI's usage object; the prompt counts once however many choices it has.

    Args:
        num_cached_tokens: of the prompt's, those that were computed before it came.
    """
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": num_cached_tokens},
    }


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dump(value: Any) -> str:
    """Compact JSON on one line, also for readers that take U+2028, U+2029 or U+0085 for a line's end."""
    text = _encode(value)
    if text.isascii():
        return text
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")
