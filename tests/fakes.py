"""Small real things to test with: no mocks, no network, no sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from dataclasses import replace

import torch

from llm.chat.template import ChatTemplate, PlainTemplate
from llm.choice import TextDelta
from llm.config import EngineConfig, GenerationDefaults, ModelConfig, SamplingParams
from llm.engine import Engine, EngineStats
from llm.errors import EngineError, EngineStopped
from llm.model import Decoder, init_weights
from llm.runner.eager import EagerRunner
from llm.sequence import FinishReason
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


Step = str | Gate | Exception


class ScriptedModel:
    """TextModel's public face, for tests of the protocol: says what it is told, remembers who left early.

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
        self.name, self.source, self.fingerprint = name, "scripted.pt", "fp_scripted"
        self.created = 1700000000
        self.tokenizer = ByteTokenizer()
        self.template: ChatTemplate = PlainTemplate()
        self.defaults = defaults or GenerationDefaults(temperature=0.5, top_k=40, stop=("\n",))
        self.max_model_len = max_model_len
        self.prompts: list[list[int]] = []
        self.params: list[SamplingParams] = []
        self.num_started = self.num_closed = self.num_open = self.num_aborted = 0
        self.engine = EngineStats("cpu", 0, 0, 8, 8, 0, 0, 0, 0, 0.0, True)

    max_prompt_bytes = TextModel.max_prompt_bytes
    check_room = TextModel.check_room

    def start(self) -> None:
        """Counted only."""
        self.num_started += 1

    async def close(self) -> None:
        """Streams that wait end with EngineStopped."""
        self.num_closed += 1
        for step in self.script:
            if isinstance(step, Gate):
                step.fail(EngineStopped("the server is stopping"))

    def stats(self) -> list[EngineStats]:
        """Whatever the test put into `engine`."""
        return [self.engine]

    async def stream(
        self, prompt: list[int], params: SamplingParams, n: int = 1, *, strip: bool = True
    ) -> AsyncGenerator[TextDelta, None]:
        """The script, once per choice, interleaved; one token per str."""
        self.prompts.append(prompt)
        self.params.append(params)
        self.num_open += 1
        ended = False
        last = max(i for i, step in enumerate(self.script) if isinstance(step, str))
        num_tokens = 0
        try:
            for i, step in enumerate(self.script):
                if isinstance(step, Gate):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    num_tokens += 1
                    cut = num_tokens == params.max_tokens and i < last
                    finish = FinishReason.LENGTH if cut else self.finish if i == last else None
                    for choice in range(n):
                        yield TextDelta(choice, step, 1, finish)
                    if cut:
                        break
            ended = True
        except (EngineError, ValueError):
            ended = True
            raise
        finally:
            self.num_open -= 1
            self.num_aborted += not ended
