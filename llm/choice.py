"""One reply to a prompt: the engine's events in, text and what is known about its tokens out.

Text and tokens are kept in step: a token is handed out with the text it begins in, so what a stop string
cuts off takes its tokens with it. Refuses to know engines, event loops and HTTP.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from llm.detokenizer import Detokenizer
from llm.errors import EngineStopped, RequestError, StepFailed
from llm.sequence import FinishReason, Logprob, Sequence, TokenEvent
from llm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ReplyToken:
    """One token of a reply, for those who look closer than its text.

    Attributes:
        id: the token.
        data: the bytes it gave to the text: all of its own, but for whitespace dropped at a reply's start.
        is_trimmed: some were dropped.
        logprob: when asked for.
        at: when its step ended, in seconds of time.monotonic().
        batch_size: sequences that step computed together.
    """

    id: int
    data: bytes
    is_trimmed: bool
    logprob: Logprob | None
    at: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class Timing:
    """When a reply was asked for, begun, and drawn from its first token to its last: seconds of
    time.monotonic().
    """

    submitted: float
    started: float
    first: float
    last: float
    num_tokens: int


@dataclass(slots=True)
class TextDelta:
    """What one choice gained. Nobody changes it; frozen, a class costs five times as much to make, for every
    token.

    Attributes:
        choice: index among the request's n choices.
        text: new text; "" while it is held back.
        num_tokens: tokens drawn for this choice since its last delta; they add up to its completion_tokens.
        finish: STOP or LENGTH on the choice's last delta, None before.
        tokens: those whose text has come, when they were asked for.
        prompt_logprobs: of the prompt's next tokens, from the second on; with the first choice only.
        at: when its token's step ended, in seconds of time.monotonic().
        timing: on the choice's last delta.
        num_cached: leading tokens of the prompt that were computed before; the same on each of the choice's.
    """

    choice: int
    text: str
    num_tokens: int
    finish: FinishReason | None = None
    tokens: tuple[ReplyToken, ...] = ()
    prompt_logprobs: tuple[Logprob, ...] = ()
    at: float = 0.0
    timing: Timing | None = None
    num_cached: int = 0


class Choice:
    """One of a request's replies: its sequence, and the text made of it so far.

    Args:
        sequence: what the engine works on.
        tokenizer: ids to bytes.
        strip: drop the reply's leading whitespace.
        with_tokens: hand out tokens beside the text.
    """

    def __init__(self, sequence: Sequence, tokenizer: Tokenizer, *, strip: bool, with_tokens: bool) -> None:
        self.sequence = sequence
        self._tokenizer = tokenizer
        self._text = Detokenizer(tokenizer.token_bytes, sequence.params.stop, strip_start=strip)
        self._index = sequence.params.choice
        self._min_tokens = sequence.params.min_tokens
        self._with_tokens = with_tokens
        self._pending: deque[tuple[int, int, TokenEvent]] = deque()
        self._num_bytes = 0
        self._num_tokens = 0
        self._first_at = 0.0

    def take(self, event: TokenEvent) -> TextDelta:
        """One event → one delta.

        Raises:
            StepFailed, EngineStopped: the engine could not go on.
            RequestError: the grammar could not: it met a limit that no look at it can foresee.
        """
        if event.token_id is None:
            return self._take_no_token(event)
        self._num_tokens += 1
        self._first_at = self._first_at or event.at
        if self._with_tokens and event.is_text:
            self._pending.append((self._text.num_decoded, self._num_bytes, event))
            self._num_bytes += len(self._tokenizer.token_bytes(event.token_id))
        may_stop = self._num_tokens > self._min_tokens
        text = self._text.feed((event.token_id,) if event.is_text else (), may_stop=may_stop)
        finish = event.finish
        if finish is not None:
            text += self._text.flush()
        if self._text.stopped is not None:
            finish = FinishReason.STOP
        tokens = self._release(ended=finish is not None) if self._with_tokens else ()
        timing = self._timing(event.at) if finish is not None else None
        cached = self.sequence.num_cached
        return TextDelta(self._index, text, 1, finish, tokens, (), event.at, timing, cached)

    def _take_no_token(self, event: TokenEvent) -> TextDelta:
        """A part of the prompt was scored, or the reply cannot go on."""
        if event.finish is FinishReason.ERROR:
            if self.sequence.matcher is not None and self.sequence.matcher.error is not None:
                raise RequestError(str(event.error))
            raise event.error or StepFailed("the engine could not go on")
        if event.finish is FinishReason.ABORT:  # nobody who aborts listens on: the engine did, on its way out
            raise EngineStopped("the server is stopping")
        return TextDelta(self._index, "", 0, prompt_logprobs=event.prompt_logprobs)

    def _release(self, *, ended: bool) -> tuple[ReplyToken, ...]:
        """Tokens that begin in text which has left; at the end all, but for those a stop string cut off."""
        if self._text.is_trimming and not ended:
            return ()  # what the next token brings may be leading whitespace as well
        everything = ended and self._text.stopped is None
        released = []
        while self._pending and (everything or self._pending[0][0] < self._text.num_passed):
            _, start, event = self._pending.popleft()
            released.append(self._token(event, start))
        return tuple(released)

    def _token(self, event: TokenEvent, start: int) -> ReplyToken:
        assert event.token_id is not None
        trimmed = max(0, self._text.num_trimmed_bytes - start)
        data = self._tokenizer.token_bytes(event.token_id)[trimmed:]
        return ReplyToken(event.token_id, data, trimmed > 0, event.logprob, event.at, event.batch_size)

    def _timing(self, last: float) -> Timing:
        submitted = self.sequence.submitted_at
        started = self.sequence.started_at or submitted
        return Timing(submitted, started, self._first_at, last, self._num_tokens)
