"""The text level: prompt ids in, streamed text out. The one place where text and tokens meet.

`TextModel.stream` is an async iterator over lists: all that came since its reader last looked, mostly what
one step brought. Leaving it early (a client that went away, a stop string) aborts what is still running.
Engines answer on their own threads; their events cross to the event loop in `_deliver`, at most one call per
step. Refuses to know HTTP and how a prompt was rendered.

    >>> async for deltas in model.stream(prompt, SamplingParams(max_tokens=16)):
    ...     print("".join(delta.text for delta in deltas), end="")
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from llm.adapt.adapter import Adapter
from llm.chat.template import ChatTemplate
from llm.choice import Choice, TextDelta
from llm.config import NO_ADAPTERS, AdapterRoom, GenerationDefaults, SamplingParams
from llm.engine import Emit, Engine, EngineStats
from llm.errors import (
    ContextLengthExceeded,
    EngineStopped,
    StepFailed,
)
from llm.grammar import Grammar, Grammars
from llm.mailbox import Mailbox
from llm.sequence import FinishReason, Status, TokenEvent
from llm.sequence import Sequence as TokenSequence
from llm.shelves import PlacedAdapter, Shelves
from llm.terms import DEFAULT_TERMS, Observer, Terms, alarms
from llm.tokenizer import Tokenizer
from llm.tokenizer.spelled import SpelledTokenizer


class TextModel:
    """One checkpoint, ready to be asked: tokenizer, template, defaults, and an engine per device.

    Attributes:
        served: this one, and each adapter on it as a model of its own.
        base: the name of the model that starts, stops and makes room for both.
        adapter: what its sequences are computed with.
        shelves: where the adapters are.

    Args:
        name: the model id it answers to.
        source: the checkpoint's file or folder name, for people.
        fingerprint: same fingerprint and seed, same draws.
        tokenizer, template, defaults: the checkpoint's.
        max_model_len: longest prompt + reply, in tokens.
        adapters: what is on the engines from the start, by name.
        adapter_room: for these, and for those that come.
        read_adapter: reads one for this base from its folder, checked; None when none is to come.
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
        adapters: Mapping[str, Adapter] | None = None,
        adapter_room: AdapterRoom = NO_ADAPTERS,
        read_adapter: Callable[[Path], Adapter] | None = None,
        make_engines: Callable[[Emit], Sequence[Engine]],
    ) -> None:
        self.name = self.base = name
        self.source = source
        self.fingerprint = fingerprint
        self.created = int(time.time())
        self.tokenizer = tokenizer
        self.template = template
        self.defaults = defaults
        self.max_model_len = max_model_len
        self.engines = list(make_engines(self._deliver))
        self.grammars = Grammars(tokenizer, tokenizer.vocab_size)
        self.call_tokenizer, self.call_grammars = self._for_calls(template)
        self._template_ends = _single_tokens(tokenizer, defaults.stop)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._mailboxes: dict[int, Mailbox] = {}
        self._arrived: deque[list[TokenEvent]] = deque()  # from the engines, not in the mailboxes yet
        self._is_called = False
        self.adapter = PlacedAdapter()
        self.shelves = Shelves(self.engines, adapter_room)
        self._read_adapter = read_adapter
        placed = (self.shelves.place(*one) for one in (adapters or {}).items())
        self.served = [self, *map(self._adapted, placed)]

    def _adapted(self, adapter: PlacedAdapter) -> TextModel:
        """The same engines under another id, their sequences computed with an adapter. Whoever starts and
        closes them does so here, not there.
        """
        other = copy.copy(self)
        other.name, other.adapter = f"{self.name}:{adapter.name}", adapter
        other.fingerprint = f"{self.fingerprint}_{adapter.digest[:10]}"
        other.created = int(time.time())
        return other

    async def load_adapter(self, name: str, path: Path) -> TextModel:
        """Serve one more adapter, from its folder, while others are served.

        Raises:
            CauserieError: it cannot be used, or there is no room for it; see Shelves.load.
        """
        read = self._read_adapter
        assert read is not None, "made without a way to read adapters"
        adapted = self._adapted(await self.shelves.load(name, lambda: read(path)))
        self.served.append(adapted)
        return adapted

    def unload_adapter(self, name: str) -> None:
        """Serve an adapter to nobody new. It leaves the engines when those it serves have their replies."""
        self.served[:] = [one for one in self.served if one.adapter.name != name]
        self.shelves.retire(name)

    def _for_calls(self, template: ChatTemplate) -> tuple[Tokenizer, Grammars]:
        """What reads and shapes replies with tool calls: the markers of calls are text there, also those that
        are control tokens of this vocabulary.
        """
        markers = [text for text in template.tool_format.markers if text in self.tokenizer.control]
        if not markers:
            return self.tokenizer, self.grammars
        spelled = SpelledTokenizer(self.tokenizer, markers)
        return spelled, Grammars(spelled, spelled.vocab_size)

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

    async def warm_up(self) -> None:
        """Draw a token on every engine: what torch does only once is done, and each of them works.

        Raises:
            EngineError: one does not.
        """
        params = SamplingParams(max_tokens=1, temperature=0.0)
        for engine in self.engines:
            sequence = TokenSequence([0], params)
            with self._submitted(sequence, DEFAULT_TERMS, engine) as (_, mailbox):
                choice = Choice(sequence, self.tokenizer, strip=False, with_tokens=False)
                choice.take((await mailbox.take())[0])

    async def close(self, timeout: float | None = None) -> bool:
        """Stop the engines; every stream still open ends with EngineStopped. False when an engine had not
        ended after `timeout` seconds.
        """
        stops = (asyncio.to_thread(engine.stop, timeout) for engine in self.engines)
        ended = await asyncio.gather(*stops)
        for mailbox in set(self._mailboxes.values()):
            mailbox.interrupt(EngineStopped("the server is stopping"))  # where an engine did not say so
        return all(ended)

    def stats(self) -> list[EngineStats]:
        """A snapshot of each engine."""
        return [engine.stats() for engine in self.engines]

    async def stream(
        self,
        prompt: list[int],
        params: SamplingParams,
        n: int = 1,
        *,
        strip: bool = True,
        with_tokens: bool = False,
        grammar: Grammar | None = None,
        template_ends: bool = True,
        calls: bool = False,
        terms: Terms = DEFAULT_TERMS,
    ) -> AsyncGenerator[list[TextDelta], None]:
        """Draw n replies to one prompt, interleaved as their tokens come. The prompt is computed once.

        Yields what is new, in order; when several tokens wait, all of them (see `llm.mailbox`).

        Args:
            prompt: 1 to max_model_len - 1 ids.
            params: of every choice; only the choice index differs.
            n: replies wanted.
            strip: drop a reply's leading whitespace, as chat does.
            with_tokens: hand out tokens beside the text.
            grammar: what every reply follows.
            template_ends: where the grammar may end, a stop of the template that is one token ends it too.
            calls: the text may hold tool calls.
            terms: on which it is served.

        Raises:
            StepFailed: the forward pass of this request's batch raised.
            QueueTimeout, DeadlinePassed, ReaderTooSlow: it took longer than the terms allow, or than a reader
                may.
            EngineStopped: the server is stopping.
        """
        assert 0 < len(prompt) < self.max_model_len, len(prompt)  # here it fails one request, not an engine
        ends = params.stop_token_ids | (self._template_ends if template_ends else frozenset())
        sequences = [_sequence(prompt, params, i, grammar, ends, terms, self.adapter.key) for i in range(n)]
        tokenizer = self.call_tokenizer if calls else self.tokenizer
        choices = {
            sequence.id: Choice(sequence, tokenizer, strip=strip, with_tokens=with_tokens)
            for sequence in sequences
        }
        leader, *leader.forks = sequences
        for fork in leader.forks:
            fork.leader = leader
        with self._submitted(leader, terms) as (engine, mailbox):
            while choices:
                deltas, error = _read(await mailbox.take(), choices, engine, terms.observer)
                if deltas:
                    yield deltas
                if error is not None:
                    raise error

    async def embed(self, prompt: list[int], *, terms: Terms = DEFAULT_TERMS) -> list[float]:
        """The mean of the prompt's final hidden states.

        Args:
            prompt: 1 to max_model_len ids.
            terms: on which it is served.

        Raises:
            EngineError: as for `stream`.
        """
        assert 0 < len(prompt) <= self.max_model_len, len(prompt)
        sequence = TokenSequence(
            prompt,
            SamplingParams(max_tokens=1),
            priority=terms.priority,
            client=terms.client,
            cache_salt=terms.cache_salt,
            adapter=self.adapter.key,
            embeds=True,
        )
        with self._submitted(sequence, terms) as (_, mailbox):
            event = (await mailbox.take())[0]
            if event.finish is FinishReason.ERROR:
                raise event.error or StepFailed("the engine could not go on")
            if event.embedding is None:
                raise EngineStopped("the server is stopping")
            return list(event.embedding)

    @contextmanager
    def _submitted(
        self, leader: TokenSequence, terms: Terms, engine: Engine | None = None
    ) -> Generator[tuple[Engine, Mailbox], None, None]:
        """A sequence and its forks on an engine, their events in a mailbox; at the end what still runs is
        aborted, and whoever observes is told how it went.
        """
        engine = self._least_loaded() if engine is None else engine
        sequences = [leader, *leader.forks]
        self.adapter.hold()
        mailbox = Mailbox(len(sequences), asyncio.get_running_loop())
        self._mailboxes.update({sequence.id: mailbox for sequence in sequences})
        error: BaseException | None = None
        try:
            with alarms(leader, terms, mailbox):
                if terms.observer is not None:
                    terms.observer.submitted(sequences)
                engine.submit(leader)
                yield engine, mailbox
        except BaseException as raised:
            error = raised
            raise
        finally:
            for sequence in reversed(sequences):  # a leader last, or a fork takes its place for a step
                del self._mailboxes[sequence.id]
                if sequence.status is not Status.FINISHED:
                    engine.abort(sequence)
            self.adapter.let_go()
            if terms.observer is not None:
                terms.observer.ended(error)

    def _least_loaded(self) -> Engine:
        """The engine with the fewest sequences; one whose thread has ended only when all have."""

        def load(engine: Engine) -> tuple[bool, int]:
            stats = engine.stats()
            return not stats.alive, stats.num_running + stats.num_waiting

        return min(self.engines, key=load)

    def _deliver(self, events: list[TokenEvent]) -> None:
        """Engine thread → event loop: one hand-over per step, and none while one is on its way, for a call
        costs a write to the loop's pipe (27 µs when it wakes a sleeping loop).
        """
        if not events or self._loop is None:
            return
        self._arrived.append(events)
        if self._is_called:
            return
        self._is_called = True
        try:
            self._loop.call_soon_threadsafe(self._dispatch)
        except RuntimeError:
            return  # the loop is closed: nobody is left to read

    def _dispatch(self) -> None:
        self._is_called = False  # first of all: what arrives after the last look calls again
        while self._arrived:
            for event in self._arrived.popleft():
                if (mailbox := self._mailboxes.get(event.sequence_id)) is not None:
                    mailbox.put(event)


def _read(
    events: list[TokenEvent], choices: dict[int, Choice], engine: Engine, observer: Observer | None
) -> tuple[list[TextDelta], Exception | None]:
    """Events → deltas of the choices that go on, and why they cannot; those that end leave `choices`."""
    deltas: list[TextDelta] = []
    for event in events:
        choice = choices.get(event.sequence_id)
        if choice is None:
            continue  # on its way when the choice ended, or the echo of its abort
        try:
            delta = choice.take(event)
        except Exception as error:
            return deltas, error  # what came before it is said first
        if delta.finish is not None:
            del choices[event.sequence_id]
            if event.finish is None:
                engine.abort(choice.sequence)  # a stop string ended it, the engine does not know
        if observer is not None:
            observer.received(delta)
        deltas.append(delta)
    return deltas, None


def _single_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> frozenset[int]:
    """Ids of those texts that are one token."""
    encoded = [tokenizer.encode(text, continued=True) for text in texts]
    return frozenset(ids[0] for ids in encoded if len(ids) == 1)


def _sequence(
    prompt: list[int],
    params: SamplingParams,
    choice: int,
    grammar: Grammar | None,
    ends: frozenset[int],
    terms: Terms,
    adapter: str,
) -> TokenSequence:
    """One of a request's choices; the prompt is scored with the first alone."""
    return TokenSequence(
        prompt,
        params if choice == 0 else replace(params, choice=choice, prompt_logprobs=None),
        matcher=None if grammar is None else grammar.matcher(ends, params.min_tokens),
        priority=terms.priority,
        client=terms.client,
        cache_salt=terms.cache_salt,
        adapter=adapter,
    )
