"""A server under a mixture of everything, for as long as one likes: what it holds must stop growing.

    $ python -m tests.endurance.soak --minutes 30 --checkpoint checkpoints/causette

Long and short replies, streamed and whole, several choices and prompts, structured output, embeddings,
tokenising, requests that are wrong, and clients that are killed in the middle. A line each minute; the last
line is JSON. Exit status 1 when an answer was 5xx or none, a reply was not whole, memory kept growing in the
second half, or blocks were not given back. Refuses to know how fast the server is.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from clients.child import ChildServer
from tests.endurance.raw import CHAT, COMPLETIONS, EMBEDDINGS, Reply, ask, connect, get, post, reset
from tests.endurance.readings import MEGABYTE, holding, wait_until_idle

NUM_CLIENTS = 8
PAUSE_SECONDS = 0.05
"""A client's mean pause between two requests: the queue is sometimes empty, as it is in life."""
SAMPLE_SECONDS = 2.0
MAX_SLOPE = 2.0
"""Megabytes a minute, in the second half."""
NOTED_FAILURES = 10
WORDS = "what is a token and why does the cache of keys hold values for every layer 字 é 🙂".split()
Send = Callable[[str, random.Random], str]


@dataclass
class Tally:
    """What the clients met; shared by their threads under the lock."""

    requests: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    num_failures: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, outcome: str) -> None:
        """Count an outcome: a status, `left`, or a text that begins with FAILED."""
        with self.lock:
            self.requests += 1
            failed = outcome.startswith(("FAILED", "5"))
            self.outcomes["FAILED" if failed else outcome] += 1
            self.num_failures += failed
            if failed and len(self.failures) < NOTED_FAILURES:
                self.failures.append(f"{kind}: {outcome}")


@dataclass(frozen=True)
class Verdict:
    """The last line."""

    minutes: float
    requests: int
    outcomes: dict[str, int]
    failures: list[str]
    rss_start_mb: float
    rss_half_mb: float
    rss_end_mb: float
    slope_mb_per_minute: float
    fds: tuple[int, int]
    threads: tuple[int, int]
    free_blocks: int
    num_blocks: int

    @property
    def holds(self) -> bool:
        grew = self.slope_mb_per_minute >= MAX_SLOPE
        return not self.failures and not grew and self.free_blocks == self.num_blocks


def words(chance: random.Random, most: int) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(1, most)))


def chat_body(chance: random.Random) -> dict[str, Any]:
    """A good request: short or long, streamed or whole, greedy or not."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": words(chance, chance.choice([5, 60]))}],
        "max_tokens": chance.choice([1, 8, 32, 128]),
        "ignore_eos": True,
        "temperature": chance.choice([0, 0.7, 1.5]),
        "seed": chance.randrange(1 << 53),
    }
    if chance.random() < 0.6:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if chance.random() < 0.2:
        body |= {"n": 3}
    if chance.random() < 0.2:
        body |= {"logprobs": True, "top_logprobs": 5}
    if chance.random() < 0.2:
        body |= {"stop": [words(chance, 2)], "presence_penalty": 0.5, "logit_bias": {"5": -3}}
    return body


def whole_of(reply: Reply) -> str:
    """The status, or how the reply is not what was asked for."""
    if reply.status != 200:
        return str(reply.status) if reply.status else "FAILED: no answer"
    if reply.is_stream:
        if not reply.body.endswith(b"data: [DONE]\n\n"):
            return f"FAILED: a stream without an end: {reply.body[-100:]!r}"
        if reply.error is not None:
            return f"FAILED: an error frame: {reply.error}"
    return "200"


def send_chat(url: str, chance: random.Random) -> str:
    return whole_of(ask(url, post(CHAT, chat_body(chance))))


def send_form(url: str, chance: random.Random) -> str:
    """A schema now and then new, so that compiled grammars come and go."""
    schema = {"type": "object", "properties": {f"p{chance.randrange(500)}": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return whole_of(ask(url, post(CHAT, {**chat_body(chance), "stop": None, "response_format": form})))


def send_completion(url: str, chance: random.Random) -> str:
    prompts = [words(chance, 20) for _ in range(chance.choice([1, 1, 4]))]
    body = {"prompt": prompts, "max_tokens": 16, "echo": chance.random() < 0.3, "logprobs": 2}
    return whole_of(ask(url, post(COMPLETIONS, body)))


def send_embedding(url: str, chance: random.Random) -> str:
    return whole_of(ask(url, post(EMBEDDINGS, {"input": [words(chance, 50)] * chance.randint(1, 4)})))


def send_text(url: str, chance: random.Random) -> str:
    text = words(chance, 50) * chance.choice([1, 1, 1, 200])
    return whole_of(ask(url, post("/tokenize", {"prompt": text, "return_token_strs": True})))


def send_get(url: str, chance: random.Random) -> str:
    return whole_of(ask(url, get(chance.choice(["/health", "/v1/models", "/version", "/metrics"]))))


def send_wrong(url: str, chance: random.Random) -> str:
    """Anything a server refuses; a refusal is 4xx."""
    wrong: list[bytes] = [
        post(CHAT, b'{"messages": [{"role": "user", "content": "x"}'),
        post(CHAT, b"\xff\xfe" + chance.randbytes(100)),
        post(CHAT, {"messages": []}),
        post(CHAT, {"messages": [{"role": "user", "content": "x"}], "temperature": 3}),
        post(CHAT, {"messages": [{"role": "user", "content": "x"}], "model": words(chance, 3)}),
        post(CHAT, {"messages": [{"role": "user", "content": "too long " * 5000}]}),
        post(CHAT, {"messages": [{"role": "user", "content": "x"}], "logit_bias": {"999999": 1}}),
        post(COMPLETIONS, {"prompt": [1, 2, 999999]}),
        post(CHAT, b"[" * 10_000),
        get(f"/no/such/{chance.randrange(1 << 30)}"),
        b"GARBAGE\r\n\r\n",
    ]
    status = ask(url, chance.choice(wrong)).status
    return str(status) if 400 <= status < 500 else f"FAILED: {status} to a wrong request"


def send_and_leave(url: str, chance: random.Random) -> str:
    """A good request whose client is killed: before it is answered, or in the middle of the answer."""
    client = connect(url)
    try:
        client.sendall(post(CHAT, {**chat_body(chance), "max_tokens": 200}))
        client.settimeout(chance.random() * 0.5)
        try:
            for _ in range(chance.randrange(4)):
                client.recv(256)
        except TimeoutError:
            pass
        return "left"
    finally:
        reset(client)


KINDS: dict[str, tuple[Send, int]] = {
    "chat": (send_chat, 10),
    "leave": (send_and_leave, 4),
    "wrong": (send_wrong, 3),
    "completion": (send_completion, 2),
    "form": (send_form, 1),
    "embedding": (send_embedding, 1),
    "text": (send_text, 1),
    "get": (send_get, 1),
}
"""What is sent, and how often relative to the others."""


def visit(url: str, tally: Tally, seed: int, ended: threading.Event) -> None:
    """One client: request after request until the end."""
    chance = random.Random(seed)
    names, weights = list(KINDS), [weight for _, weight in KINDS.values()]
    while not ended.wait(chance.expovariate(1 / PAUSE_SECONDS)):
        (name,) = chance.choices(names, weights)
        try:
            outcome = KINDS[name][0](url, chance)
        except Exception as error:
            outcome = f"FAILED: {error!r}"
        tally.note(name, outcome)


def soak(
    server: ChildServer, minutes: float, *, say: Callable[[str], None], warm_up: float = 10.0, seed: int = 0
) -> Verdict:
    """Load the server for that long.

    Args:
        server: started.
        say: takes a line a minute.
        warm_up: seconds of load before the clock starts.
        seed: of what the clients send.
    """
    tally, ended = Tally(), threading.Event()
    args = [(server.url, tally, seed * NUM_CLIENTS + i, ended) for i in range(NUM_CLIENTS)]
    threads = [threading.Thread(target=visit, args=one) for one in args]
    for thread in threads:
        thread.start()
    try:
        time.sleep(warm_up)
        start, before = time.monotonic(), holding(server.pid)
        samples = _sample(server.pid, tally, start + minutes * 60, say)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    engine = wait_until_idle(server.url)
    after = holding(server.pid)
    half = [(when, rss) for when, rss in samples if when >= start + minutes * 30]
    return Verdict(
        minutes=minutes,
        requests=tally.requests,
        outcomes=dict(tally.outcomes),
        failures=tally.failures,
        rss_start_mb=round(before.rss / MEGABYTE, 1),
        rss_half_mb=round(half[0][1], 1),
        rss_end_mb=round(half[-1][1], 1),
        slope_mb_per_minute=round(slope(half) * 60, 3),
        fds=(before.fds, after.fds),
        threads=(before.threads, after.threads),
        free_blocks=engine["num_free_blocks"],
        num_blocks=engine["num_blocks"],
    )


def _sample(pid: int, tally: Tally, end: float, say: Callable[[str], None]) -> list[tuple[float, float]]:
    """Resident megabytes over time; a line each minute."""
    samples: list[tuple[float, float]] = []
    next_line, start = time.monotonic() + 60, time.monotonic()
    while (now := time.monotonic()) < end:
        held = holding(pid)
        samples.append((now, held.rss / MEGABYTE))
        if now >= next_line:
            next_line += 60
            say(
                f"{(now - start) / 60:4.0f} min  {samples[-1][1]:7.1f} MB  {held.fds} fds  "
                f"{held.threads} threads  {tally.requests} requests  {tally.num_failures} failed"
            )
        time.sleep(SAMPLE_SECONDS)
    return samples


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line with the least squares."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    across = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / across if across else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.soak", description=(__doc__ or "")[:79])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--checkpoint", default="checkpoints/causette")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("rest", nargs="*", help="options of the server, after --")
    asked = parser.parse_args(argv)
    arguments = ["--checkpoint", asked.checkpoint, "--uvicorn-log-level", "warning", *asked.rest]
    with ChildServer(arguments) as server:
        verdict = soak(server, asked.minutes, say=lambda line: print(line, flush=True), seed=asked.seed)
        log = server.last_lines(1_000_000)
    if "Traceback" in log:
        verdict.failures.append("a traceback in the log: " + log[log.index("Traceback") :][:2000])
    print(json.dumps({**asdict(verdict), "holds": verdict.holds}), flush=True)
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    sys.exit(main())
