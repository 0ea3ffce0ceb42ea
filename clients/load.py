"""What a load test sends and what it measures: requests at a number of streams, timed chunk by chunk.

Every level has a fixed list of prompts and seeds, so each round does the same work; rounds of all levels run
in turn. Tokens are those the server counts in `usage`: a reply that ends early counts for what it is. Refuses
to know options, tables and how a server is started.

    >>> runs = await measure(Load(client, {"max_tokens": 64}, server_pid=None), {1: 8, 16: 64}, num_rounds=3)
    >>> medians(runs[16])["tokens_per_s"]
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from clients.client import AsyncClient
from clients.wire import JSON, ClientError

FILLER, PROBE_WORDS = " so", 8
"""One token in most vocabularies; how many of them are sent to find out."""

PROMPTS = (
    "what is a token?",
    "how does temperature change the answers?",
    "explain what a KV cache is and why it saves work",
    "what does top-p do?",
    "how do I stream a reply?",
    "what is continuous batching?",
    "why does the first token take longer than the others?",
    "what happens when a conversation outgrows the context?",
    "how is a language model trained?",
    "what is supervised fine-tuning?",
    "which sampling settings give the same answer every time?",
    "what does a stop string do?",
    "what is the difference between prefill and decode?",
    "how many tokens can the model see?",
    "what is an attention head?",
    "hello, what can you help me with?",
)


@dataclass
class Answer:
    """One request's outcome; times in seconds of time.perf_counter."""

    sent: float
    texts: list[float] = field(default_factory=list)  # when each chunk with text came
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ignored: str = ""
    error: str | None = None

    def take(self, chunk: JSON) -> None:
        """Note a chunk of the stream."""
        if any(choice.get("delta", {}).get("content") for choice in chunk.get("choices", [])):
            self.texts.append(time.perf_counter())
        if chunk.get("usage") is not None:
            self.prompt_tokens = chunk["usage"]["prompt_tokens"]
            self.completion_tokens = chunk["usage"]["completion_tokens"]


@dataclass(frozen=True)
class Clocks:
    """CPU seconds and counters at one moment; None where the server does not tell."""

    client: float
    server: float | None
    loop: float | None
    num_steps: int | None


@dataclass(frozen=True)
class Run:
    """One level in one round."""

    answers: list[Answer]
    seconds: float
    before: Clocks
    after: Clocks

    def figures(self) -> dict[str, float | None]:
        """What the run measured, by the names of the JSON line; None is not known."""
        num_tokens = sum(answer.completion_tokens for answer in self.answers)
        waits = [answer.texts[0] - answer.sent for answer in self.answers if answer.texts]
        gaps = [late - early for a in self.answers for early, late in zip(a.texts, a.texts[1:], strict=False)]

        def per_token(before: float | None, after: float | None) -> float | None:
            return (
                None
                if before is None or after is None or not num_tokens
                else (after - before) / num_tokens * 1e6
            )

        steps = (self.before.num_steps, self.after.num_steps)
        return {
            "ttft_ms": _percentile(waits, 0.5, 1e3),
            "ttft_p95_ms": _percentile(waits, 0.95, 1e3),
            "gap_ms": _percentile(gaps, 0.5, 1e3),
            "gap_p95_ms": _percentile(gaps, 0.95, 1e3),
            "tokens_per_s": num_tokens / self.seconds,
            "completion_tokens": num_tokens,
            "prompt_tokens": sum(answer.prompt_tokens for answer in self.answers),
            "seconds": self.seconds,
            "client_cpu_us_per_token": per_token(self.before.client, self.after.client),
            "server_cpu_us_per_token": per_token(self.before.server, self.after.server),
            "loop_cpu_us_per_token": per_token(self.before.loop, self.after.loop),
            "num_steps": None if None in steps else steps[1] - steps[0],  # type: ignore[operator]
        }


class Load:
    """Sends the requests of a level and times what comes back.

    Args:
        client: the server under test.
        fields: sent with every request, beside its messages and seed.
        server_pid: process whose CPU time is read from /proc, or None.
    """

    def __init__(self, client: AsyncClient, fields: Mapping[str, Any], server_pid: int | None) -> None:
        self._client = client
        self._fields = {**fields, "stream_options": {"include_usage": True}}
        self._server_pid = server_pid
        self.prompts = list(PROMPTS)

    async def fit(self, num_prompt_tokens: int) -> None:
        """Lengthen the prompts with a filler word until the server counts about that many tokens.

        Asks for single tokens and reads `usage`, so it needs no tokenizer. Prompts already longer, or a
        server that does not count, leave them as they are.
        """
        first = await self._count(PROMPTS[0])
        per_word = (await self._count(PROMPTS[0] + FILLER * PROBE_WORDS) - first) / PROBE_WORDS
        if not first or per_word <= 0:
            return
        for i, prompt in enumerate(PROMPTS):
            missing = num_prompt_tokens - (first if i == 0 else await self._count(prompt))
            self.prompts[i] = prompt + FILLER * max(0, int(missing / per_word))

    async def _count(self, prompt: str) -> int:
        return (await self._send(prompt, {"max_tokens": 1})).prompt_tokens

    async def run(self, num_streams: int, num_requests: int) -> Run:
        """One level: `num_streams` workers take the requests 0..num_requests-1 from one queue."""
        numbers = iter(range(num_requests))
        answers: list[Answer] = []

        async def work() -> None:
            for number in numbers:
                answers.append(await self.ask(number))

        before, start = await self._clocks(), time.perf_counter()
        await asyncio.gather(*(work() for _ in range(num_streams)))
        return Run(answers, time.perf_counter() - start, before, await self._clocks())

    async def ask(self, number: int) -> Answer:
        """Request `number`: its prompt and its seed are the same in every round."""
        return await self._send(self.prompts[number % len(self.prompts)], {"seed": number})

    async def _send(self, prompt: str, fields: Mapping[str, Any]) -> Answer:
        answer = Answer(sent=time.perf_counter())
        messages = [{"role": "user", "content": prompt}]
        try:
            async with self._client.open_stream(messages, **{**self._fields, **fields}) as reply:
                answer.ignored = reply.headers.get("x-ignored-params", "")
                async for chunk in reply.chunks:
                    answer.take(chunk)
        except ClientError as error:
            answer.error = str(error)
        return answer

    async def _clocks(self) -> Clocks:
        health = await self._client.health()
        steps = [engine.get("num_steps") for engine in health.get("engines", [])]
        return Clocks(
            client=time.process_time(),
            server=None if self._server_pid is None else process_cpu_seconds(self._server_pid),
            loop=health.get("loop_cpu_seconds"),
            num_steps=sum(steps) if steps and None not in steps else None,
        )


async def measure(load: Load, levels: Mapping[int, int], num_rounds: int) -> dict[int, list[Run]]:
    """Runs by number of streams; `levels` maps streams to requests. One uncounted request comes first."""
    runs: dict[int, list[Run]] = {num_streams: [] for num_streams in levels}
    await load.run(1, 1)
    for _ in range(num_rounds):
        for num_streams, num_requests in levels.items():
            runs[num_streams].append(await load.run(num_streams, num_requests))
    return runs


def medians(runs: list[Run]) -> dict[str, float | None]:
    """Each figure's median over the rounds; None when a round lacks it."""
    rounds = [run.figures() for run in runs]
    known = {name: [figures[name] for figures in rounds] for name in rounds[0]}
    return {
        name: None if None in values else round(median(v for v in values if v is not None), 3)
        for name, values in known.items()
    }


def process_cpu_seconds(pid: int) -> float | None:
    """User and system time of a process of this machine, None where /proc does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = stat.rpartition(")")[
        2
    ].split()  # the name before it may hold spaces; utime and stime are 14 and 15
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _percentile(values: list[float], share: float, scale: float) -> float | None:
    """The value below which `share` of them lie (nearest rank), times `scale`; None without values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] * scale
