"""Small real things to test with: no mocks, no network, no sleeps."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import TypeVar

import torch

from llm.chat.template import ChatTemplate, PlainTemplate
from llm.choice import ReplyToken, TextDelta, Timing
from llm.config import EngineConfig, GenerationDefaults, ModelConfig, SamplingParams
from llm.engine import Engine, EngineStats
from llm.errors import EngineError, EngineStopped
from llm.grammar import Grammar, Grammars
from llm.model import Decoder, init_weights
from llm.runner.eager import EagerRunner
from llm.sequence import FinishReason, Logprob, Sequence
from llm.shelves import PlacedAdapter
from llm.terms import DEFAULT_TERMS, Observer, Terms
from llm.text import TextModel
from llm.tokenizer import ByteTokenizer

TINY = ModelConfig(
    vocab_size=257,
    num_positions=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    width=32,
    ffn_width=64,
    tied_head=True,
)
"""A real decoder that runs in a millisecond, for the byte tokenizer."""


def tiny_model(
    seed: int = 0, *, scale: float = 8.0, dtype: torch.dtype = torch.float32, **overrides: object
) -> Decoder:
    """A seeded TINY model. `scale` widens the weights so that different prompts say different things."""
    model = Decoder(replace(TINY, **overrides))  # type: ignore[arg-type]
    init_weights(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(scale)
    return model.to(dtype).eval()


def tiny_text_model(model: Decoder | None = None, **bounds: int) -> TextModel:
    """A real TextModel around a tiny model: byte tokenizer, plain template, one engine on the CPU. Not
    started.
    """
    decoder = tiny_model() if model is None else model
    config = EngineConfig(**{"max_model_len": 64, "max_num_seqs": 4, "block_size": 4} | bounds)
    return TextModel(
        name="tiny",
        source="tiny",
        fingerprint="fp_tiny",
        tokenizer=ByteTokenizer(),
        template=PlainTemplate(),
        defaults=GenerationDefaults(),
        max_model_len=config.max_model_len,
        make_engines=lambda emit: [Engine(EagerRunner(decoder, config), config, 257, emit)],
    )


class Gate:
    """Where a script waits until the test, perhaps from another thread, opens it."""

    def __init__(self) -> None:
        self._opened: Future[None] = Future()

    def open(self) -> None:
        """Let everyone through, now and later."""
        self._opened.set_result(None)

    def fail(self, error: Exception) -> None:
        """Raise in everyone who waits, unless it is open."""
        if not self._opened.done():
            self._opened.set_exception(error)

    async def wait(self) -> None:
        """Until opened; leaving early leaves the gate as it is."""
        await asyncio.shield(asyncio.wrap_future(self._opened))


Item = TypeVar("Item")


async def one_by_one(lists: AsyncGenerator[list[Item], None]) -> AsyncGenerator[Item, None]:
    """A stream's items, whatever came together."""
    async with aclosing(lists):
        async for together in lists:
            for item in together:
                yield item


Step = str | Gate | Exception


class ScriptedModel:
    """TextModel's public face, for tests of the protocol: says what it is told, remembers who left early.

    Every token has log probability -0.5 and rank 1, with the letters a, b, c... for its alternatives; tokens
    come a tenth of a second apart, alone in their step. A token's id is its first byte. The embedding of a
    prompt is its length and its first id.

    Args:
        script: of every reply. A str is one token's text, a Gate waits, an exception is raised. The last str
            carries the finish.
        finish: how every choice ends, unless max_tokens ends it before.
    """

    def __init__(
        self,
        *script: Step,
        name: str = "scripted",
        finish: FinishReason = FinishReason.STOP,
        defaults: GenerationDefaults | None = None,
        max_model_len: int = 512,
    ) -> None:
        self.script = script or ("Hello", " there", ".")
        self.finish = finish
        self.name = self.base = name
        self.source, self.fingerprint = "scripted.pt", "fp_scripted"
        self.adapter = PlacedAdapter()
        self.created = 1700000000
        self.served = [self]
        self.tokenizer = ByteTokenizer()
        self.template: ChatTemplate = PlainTemplate()
        self.defaults = defaults or GenerationDefaults(temperature=0.5, top_k=40, stop=("\n",))
        self.max_model_len = max_model_len
        self.prompts: list[list[int]] = []
        self.params: list[SamplingParams] = []
        self.terms: list[Terms] = []
        self.grammars = self.call_grammars = Grammars(self.tokenizer, self.tokenizer.vocab_size)
        self.call_tokenizer = self.tokenizer
        self.grammars_followed: list[Grammar | None] = []
        self.num_started = self.num_closed = self.num_open = self.num_aborted = 0
        self.engine = EngineStats("cpu", 0, 0, 8, 8, 0, 0, 0, 0, 0.0, True)

    max_prompt_bytes = TextModel.max_prompt_bytes
    check_room = TextModel.check_room

    def start(self) -> None:
        """Counted only."""
        self.num_started += 1

    async def warm_up(self) -> None:
        """Warm already."""

    async def close(self, timeout: float | None = None) -> bool:
        """Streams that wait end with EngineStopped."""
        self.num_closed += 1
        for step in self.script:
            if isinstance(step, Gate):
                step.fail(EngineStopped("the server is stopping"))
        return True

    def stats(self) -> list[EngineStats]:
        """Whatever the test put into `engine`."""
        return [self.engine]

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
        """The script, once per choice, interleaved; one token per str, those of one step together."""
        self.prompts.append(prompt)
        self.params.append(params)
        self.terms.append(terms)
        self.grammars_followed.append(grammar)
        with self._observed(prompt, params, n, terms) as observer:
            async with aclosing(self._follow(prompt, params, n, with_tokens)) as deltas:
                async for together in deltas:
                    for delta in together if observer is not None else ():
                        observer.received(delta)
                    yield together

    @contextmanager
    def _observed(
        self, prompt: list[int], params: SamplingParams, n: int, terms: Terms
    ) -> Iterator[Observer | None]:
        """Tell whoever observes as a TextModel does; its replies start at once."""
        observer, error = terms.observer, None
        sequences = [Sequence(prompt, replace(params, choice=i)) for i in range(n)]
        for sequence in sequences:
            sequence.started_at = sequence.submitted_at
        self.num_open += 1
        try:
            if observer is not None:
                observer.submitted(sequences)
            yield observer
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.num_open -= 1
            self.num_aborted += error is not None and not isinstance(error, (EngineError, ValueError))
            if observer is not None:
                observer.ended(error)

    async def _follow(
        self, prompt: list[int], params: SamplingParams, n: int, with_tokens: bool
    ) -> AsyncGenerator[list[TextDelta], None]:
        last = max(i for i, step in enumerate(self.script) if isinstance(step, str))
        num_tokens = 0
        for i, step in enumerate(self.script):
            if isinstance(step, Gate):
                await step.wait()
            elif isinstance(step, Exception):
                raise step
            else:
                if not num_tokens and params.prompt_logprobs is not None:
                    scores = (scripted_logprob(token, params.prompt_logprobs) for token in prompt[1:])
                    yield [TextDelta(0, "", 0, prompt_logprobs=tuple(scores))]
                num_tokens += 1
                cut = num_tokens == params.max_tokens and i < last
                finish = FinishReason.LENGTH if cut else self.finish if i == last else None
                yield self._said(step, num_tokens, n, finish, params, with_tokens)
                if cut:
                    break

    def _said(
        self,
        text: str,
        num_tokens: int,
        n: int,
        finish: FinishReason | None,
        params: SamplingParams,
        with_tokens: bool,
    ) -> list[TextDelta]:
        """One token of every choice."""
        data, at = text.encode(), num_tokens / 10
        token_id = data[0] if data else 256
        logprob = None if params.logprobs is None else scripted_logprob(token_id, params.logprobs)
        tokens = (ReplyToken(token_id, data, False, logprob, at, 1),) if with_tokens else ()
        timing = None if finish is None else Timing(0.0, 0.05, 0.1, at, num_tokens)
        return [TextDelta(choice, text, 1, finish, tokens, timing=timing) for choice in range(n)]

    async def embed(self, prompt: list[int], *, terms: Terms = DEFAULT_TERMS) -> list[float]:
        """The prompt's length and its first id, once the script's gates are open and its errors raised."""
        self.prompts.append(prompt)
        self.terms.append(terms)
        with self._observed(prompt, SamplingParams(max_tokens=1), 1, terms):
            for step in self.script:
                if isinstance(step, Gate):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
        return [float(len(prompt)), float(prompt[0])]


def scripted_logprob(token_id: int, num_top: int) -> Logprob:
    """What ScriptedModel says of a token: the best, and half as probable each a, b, c..."""
    others = tuple((ord("a") + i, -0.5 + (i + 1) * math.log(0.5)) for i in range(num_top - 1))
    return Logprob(token_id, -0.5, 1, ((token_id, -0.5), *others)[:num_top])
