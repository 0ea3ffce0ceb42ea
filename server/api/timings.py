"""When a request's tokens came, for those who ask: `timings` in a whole reply and in a stream's last chunk.

Times are the engine's: from the step that drew a token to the next, without the way to the client.
"""

from __future__ import annotations

from typing import Any

from llm.choice import TextDelta, Timing


class Stopwatch:
    """Collects a request's times from its deltas.

    Args:
        num_choices: of the request.
        per_token: also keep each token's.
    """

    def __init__(self, num_choices: int, *, per_token: bool) -> None:
        self._timings: list[Timing] = []
        self._tokens: list[dict[str, Any]] = []
        self._last: dict[int, float] = {}
        self._name_choices = num_choices > 1
        self._per_token = per_token

    def see(self, delta: TextDelta) -> None:
        """One delta of any choice."""
        if delta.timing is not None:
            self._timings.append(delta.timing)
        if self._per_token:
            for token in delta.tokens:
                before = self._last.get(delta.choice, token.at)
                self._last[delta.choice] = token.at
                named = {"choice": delta.choice} if self._name_choices else {}
                self._tokens.append({**named, "ms": _ms(token.at - before), "batch": token.batch_size})

    def read(self, num_cached_tokens: int) -> dict[str, Any]:
        """OpenAI has no such object: milliseconds, and tokens a second after the first of each choice."""
        submitted = min(t.submitted for t in self._timings)
        started = min(t.started for t in self._timings)
        first = min(t.first for t in self._timings)
        seconds = max(t.last for t in self._timings) - first
        num_later = sum(t.num_tokens - 1 for t in self._timings)
        times: dict[str, Any] = {
            "queue_ms": _ms(started - submitted),
            "prefill_ms": _ms(first - started),
            "ttft_ms": _ms(first - submitted),
            "decode_tok_s": round(num_later / seconds, 2) if seconds > 0 else None,
            "cached_tokens": num_cached_tokens,
        }
        if self._per_token:
            times["per_token"] = self._tokens
        return times


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
