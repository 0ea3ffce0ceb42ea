"""The text level: prompt ids in, streamed text out. The one place where text and tokens meet.

`TextModel.stream` is an async iterator; leaving it early (a client that went away, a stop string) aborts
what is still running. Engines answer on their own threads; their events cross to the event loop in
`_deliver`, one call per step. Refuses to know HTTP and how a prompt was rendered.

    >>> async for delta in model.stream(prompt, SamplingParams(max_tokens=16)): print(delta.text, end="")
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace

from llm.chat.template import ChatTemplate
from llm.config import GenerationDefaults, SamplingParams
from llm.detokenizer import Detokenizer
from llm.engine import Emit, Engine, EngineStats
from llm.errors import ContextLengthExceeded, EngineStopped, StepFailed
from llm.sequence import FinishReason, TokenEvent
from llm.sequence import Sequence as TokenSequence
from llm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one choice gained.

    Attributes:
        choice: index among the request's n choices.
        text: new text; "" while it is held back.
        num_tokens: tokens drawn for this choice since its last delta; they add up to its completion_tokens.
        finish: STOP or LENGTH on the choice's last delta, None before.
    """

    choice: int
    text: str
    num_tokens: int
    finish: FinishReason | None = None


class TextModel:
    """One checkpoint, ready to be asked: tokenizer, template, defaults, and an engine per device.

    Args:
        name: the model id it answers to.
        source: the checkpoint's file or folder name, for people.
        fingerprint: same fingerprint and seed, same draws.
        tokenizer, template, defaults: the checkpoint's.
        max_model_len: longest prompt + reply, in tokens.
        make_engines: builds the engines around the callable that takes their events.
    """

    def __init__(
        self,
        *,
        name: str,
        source: str,
        fingerprint: str,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        defaults: GenerationDefaults,
        max_model_len: int,
        make_engines: Callable[[Emit], Sequence[Engine]],
    ) -> None:
        self.name = name
        self.source = source
        self.fingerprint = fingerprint
        self.created = int(time.time())
        self.tokenizer = tokenizer
        self.template = template
        self.defaults = defaults
        self.max_model_len = max_model_len
        self.engines = list(make_engines(self._deliver))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._mailboxes: dict[int, asyncio.Queue[TokenEvent]] = {}

    @property
    def max_prompt_bytes(self) -> int:
        """A prompt of more UTF-8 bytes than this cannot fit, whatever its tokens: refuse it before
        tokenising.
        """
        return self.max_model_len * self.tokenizer.longest_token

    def check_room(self, num_prompt_tokens: int, max_tokens: int | None) -> int:
        """New tokens a reply may have: what was asked, else the checkpoint's default, clamped to the room
        left.

        Raises:
            ContextLengthExceeded: no room for a single new token.
        """
        room = self.max_model_len - num_prompt_tokens
        if room < 1:
            raise ContextLengthExceeded(num_prompt_tokens, self.max_model_len)
        wanted = max_tokens if max_tokens is not None else self.defaults.max_tokens
        return room if wanted is None else min(wanted, room)

    def start(self) -> None:
        """Start the engines; streams are served on the running event loop from here on."""
        self._loop = asyncio.get_running_loop()
        for engine in self.engines:
            engine.start()

    async def close(self) -> None:
        """Stop the engines; every stream still open ends with EngineStopped."""
        await asyncio.gather(*(asyncio.to_thread(engine.stop) for engine in self.engines))

    def stats(self) -> list[EngineStats]:
        """A snapshot of each engine."""
        return [engine.stats() for engine in self.engines]

    async def stream(
        self, prompt: list[int], params: SamplingParams, n: int = 1, *, chat: bool = True
    ) -> AsyncGenerator[TextDelta, None]:
        """Draw n replies to one prompt, interleaved as their tokens come.

        Args:
            prompt: 1 to max_model_len - 1 ids.
            params: of every choice; only the choice index differs.
            n: replies wanted.
            chat: drop a reply's leading whitespace.

        Raises:
            StepFailed: the forward pass of this request's batch raised.
            EngineStopped: the server is stopping.
        """
        assert 0 < len(prompt) < self.max_model_len, len(prompt)  # here it fails one request, not an engine
        engine = self._least_loaded()
        mailbox: asyncio.Queue[TokenEvent] = asyncio.Queue()
        open_choices: dict[int, _Choice] = {}
        try:
            for index in range(n):
                choice = _Choice(prompt, replace(params, choice=index), self.tokenizer, chat)
                self._mailboxes[choice.sequence.id] = mailbox
                open_choices[choice.sequence.id] = choice
                engine.submit(choice.sequence)
            while open_choices:
                event = await mailbox.get()
                if event.sequence_id not in open_choices:
                    continue  # on its way when the choice ended, or the echo of its abort
                delta = open_choices[event.sequence_id].take(event)
                if delta.finish is not None:
                    ended = open_choices.pop(event.sequence_id)
                    del self._mailboxes[event.sequence_id]
                    if event.finish is None:
                        engine.abort(ended.sequence)  # a stop string ended it, the engine does not know
                yield delta
        finally:
            for sequence_id, choice in open_choices.items():
                del self._mailboxes[sequence_id]
                engine.abort(choice.sequence)

    def _least_loaded(self) -> Engine:
        """The engine with the fewest sequences; one whose thread has ended only when all have."""

        def load(engine: Engine) -> tuple[bool, int]:
            stats = engine.stats()
            return not stats.alive, stats.num_running + stats.num_waiting

        return min(self.engines, key=load)

    def _deliver(self, events: list[TokenEvent]) -> None:
        """Engine thread → event loop: one hand-over per step."""
        if not events or self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._dispatch, events)
        except RuntimeError:
            return  # the loop is closed: nobody is left to read

    def _dispatch(self, events: list[TokenEvent]) -> None:
        for event in events:
            mailbox = self._mailboxes.get(event.sequence_id)
            if mailbox is not None:
                mailbox.put_nowait(event)


class _Choice:
    """One of a request's replies: its sequence, and the text made of it so far."""

    def __init__(self, prompt: list[int], params: SamplingParams, tokenizer: Tokenizer, chat: bool) -> None:
        self.sequence = TokenSequence(prompt, params)
        self.text = Detokenizer(tokenizer.token_bytes, params.stop, strip_start=chat)

    def take(self, event: TokenEvent) -> TextDelta:
        """One event → one delta; raises when the engine could not go on."""
        if event.finish is FinishReason.ERROR:
            raise StepFailed(event.error or "the engine could not go on")
        if event.finish is FinishReason.ABORT:  # nobody who aborts listens on: the engine did, on its way out
            raise EngineStopped("the server is stopping")
        assert event.token_id is not None
        params = self.sequence.params
        is_text = event.token_id not in params.stop_token_ids
        text = self.text.feed([event.token_id] if is_text else [])
        finish = event.finish
        if finish is not None:
            text += self.text.flush()
        if self.text.stopped is not None:
            finish = FinishReason.STOP
        return TextDelta(params.choice, text, 1, finish)
