"""What replies cost: the last one, and all of a session.

Refuses to know screens. A number that the server did not send is not guessed: it is said to be missing.
"""

from __future__ import annotations

from dataclasses import dataclass

from clients.chat.reply import Reply


@dataclass
class Stats:
    """Sums over a session, and its last reply."""

    last: Reply | None = None
    num_replies: int = 0
    num_uncounted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int | None = None  # until a server says
    completion_tokens: int = 0
    num_timed: int = 0
    first_seconds: float = 0.0
    decoded_tokens: int = 0
    decode_seconds: float = 0.0

    def add(self, reply: Reply) -> None:
        """Count a reply, whole or stopped."""
        self.last = reply
        self.num_replies += 1
        self.num_uncounted += reply.completion_tokens is None
        self.prompt_tokens += reply.prompt_tokens or 0
        if reply.cached_tokens is not None:
            self.cached_tokens = (self.cached_tokens or 0) + reply.cached_tokens
        self.completion_tokens += reply.completion_tokens or 0
        if reply.first_seconds is not None:
            self.num_timed += 1
            self.first_seconds += reply.first_seconds
        if reply.tokens_per_second is not None and reply.first is not None and reply.last is not None:
            self.decoded_tokens += (reply.completion_tokens or 1) - 1
            self.decode_seconds += reply.last - reply.first

    def lines(self) -> list[str]:
        """One line about the last reply, one about the session."""
        if self.last is None:
            return ["no reply yet"]
        return [f"last reply: {_about(self.last)}", f"session: {self._about_all()}"]

    def _about_all(self) -> str:
        parts = [_many(self.num_replies, "reply", "replies")]
        if self.num_timed:
            parts.append(f"first token after {_seconds(self.first_seconds / self.num_timed)} on average")
        if self.decode_seconds:
            parts.append(f"{self.decoded_tokens / self.decode_seconds:.1f} tokens/s")
        parts.append(_tokens(self.prompt_tokens, self.cached_tokens, self.completion_tokens))
        if self.num_uncounted:
            parts.append(f"{self.num_uncounted} without the server's count")
        return ", ".join(parts)


def _about(reply: Reply) -> str:
    parts = []
    if reply.first_seconds is not None:
        parts.append(f"first token after {_seconds(reply.first_seconds)}")
    if reply.tokens_per_second is not None:
        parts.append(f"{reply.tokens_per_second:.1f} tokens/s")
    if reply.completion_tokens is None:
        chunks = _many(reply.num_texts, "chunk", "chunks")
        parts.append(f"{chunks} of text, whose tokens the server did not count")
    else:
        parts.append(_tokens(reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens))
    if reply.seed is not None:
        parts.append(f"seed {reply.seed}")
    return ", ".join(parts)


def _tokens(prompt: int | None, cached: int | None, reply: int) -> str:
    asked = "prompt not counted" if prompt is None else f"{_many(prompt, 'token', 'tokens')} of prompt"
    return f"{asked}{'' if cached is None else f' ({cached} cached)'}, {reply} of reply"


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
