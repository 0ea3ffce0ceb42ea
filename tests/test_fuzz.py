"""Ten thousand requests, most of them wrong, against a real server: no answer above 499, nothing lost.

Blocks are scarce, so that sequences preempt each other while clients come and go. Every answer has the form
that GET /openapi.json promises; afterwards the log has no traceback, every block is free, and a request from
before is answered as before. A failure names the seed and the number that make its request again:

    $ FUZZ_SEED=11 FUZZ_REQUESTS=500 make test-slow ARGS=tests/test_fuzz.py
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from jsonschema import Draft202012Validator

from clients.child import ChildServer
from tests.hostile import ROUTES, Hostile, Request, answer_schema, chunk_schema
from tests.server.wire import CHAT, HELLO, Answer

SEED = int(os.environ.get("FUZZ_SEED", 7))
NUM_REQUESTS = int(os.environ.get("FUZZ_REQUESTS", 10_000))
NUM_AT_ONCE = 16
ANSWER_SECONDS = 120.0
"""Far more than is ever needed: a request that hangs must end as a failure."""
GRAMMAR_ENDS = "the reply's grammar cannot go on"
UNREAD_BYTES = 64 << 10
"""Fits into the sockets' buffers: below, the answer always arrives, whether or not the body was read."""
FEW_BLOCKS = ["--max-num-seqs", "8", "--num-gpu-blocks-override", "24", "--max-num-batched-tokens", "48"]
LONG_LINE = ["--max-num-queued-seqs", "4096"]
"""Whoever asks is served: what a full server says is another test's matter."""
LOGGED = 'exec "$0" -m server "$@" >"$LOG" 2>&1'
"""The child keeps the end of its log only; here all of it is read."""
BEFORE: list[dict[str, Any]] = [
    {**HELLO, "temperature": 0, "max_tokens": 20, "ignore_eos": True},
    {**HELLO, "seed": 5, "max_tokens": 20, "n": 3, "guided_regex": "[a-z ]{12}"},
]


@pytest.mark.slow
def test_ten_thousand_hostile_requests(tiny_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with server(tiny_folder, log) as child:
        before = replies(child.url)
        wrong, statuses = asyncio.run(besiege(child.url))
        assert not wrong, "\n".join(wrong[:5])
        assert replies(child.url) == before
        quiet(child.url)
    written = log.read_text()
    bad = re.search(r".*(?:Traceback|ERROR|panicked|never retrieved).*", written)
    assert bad is None, written[max(0, bad.start() - 2000) : bad.start() + 6000]
    assert statuses["200"] > NUM_REQUESTS / 4, "many requests were good"
    assert statuses["400"] > NUM_REQUESTS / 10, "and many were not"
    assert statuses["left"] > NUM_REQUESTS / 50, "and many clients left early"


@contextmanager
def server(folder: Path, log: Path) -> Iterator[ChildServer]:
    """A real one, with all it writes in a file."""
    command = ("sh", "-c", LOGGED, sys.executable)
    with ChildServer(
        ["--checkpoint", str(folder), *FEW_BLOCKS, *LONG_LINE], command=command, environment={"LOG": str(log)}
    ) as child:
        yield child


async def besiege(url: str) -> tuple[list[str], Counter[str]]:
    """What was wrong with which answers, and how many there were of each status."""
    document = httpx.get(f"{url}/openapi.json").json()
    hostile, forms = Hostile(document), Forms(document)
    wrong: list[str] = []
    statuses: Counter[str] = Counter()
    numbers = iter(range(NUM_REQUESTS))

    async def attack() -> None:
        for number in numbers:
            if len(wrong) >= NUM_AT_ONCE:
                return  # a server that hangs would cost two minutes for each of the rest
            request = hostile.request(random.Random(f"{SEED}-{number}"))
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = await send(url, request)
                statuses["left" if answer is None else str(answer.status)] += 1
                if answer is not None:
                    check(request, answer, forms)
            except Exception as error:
                wrong.append(
                    f"request {SEED}-{number}: {request!r:.2000}\n  {type(error).__name__}: {error!s:.1000}"
                )

    await asyncio.gather(*(attack() for _ in range(NUM_AT_ONCE)))
    return wrong, statuses


async def send(url: str, request: Request) -> Answer | None:
    """The answer; None when the client left before its end."""
    reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
    try:
        length = f"content-length: {len(request.body)}"
        lines = [
            f"{request.method} {request.path} HTTP/1.1",
            "host: x",
            "connection: close",
            length,
            *request.headers,
        ]
        data = "\r\n".join(lines).encode() + b"\r\n\r\n" + request.body
        writer.write(data if request.sent is None else data[: int(len(data) * request.sent)])
        if request.sent is not None:
            return None
        with suppress(ConnectionError):  # an answer may come before all was read: 413
            await writer.drain()
        if request.patience is not None:
            await reader.read(request.patience) if request.patience else None
            return None
        return parse(await reader.read())
    except ConnectionResetError:
        if len(request.body) < UNREAD_BYTES:
            raise
        return None  # refused by its head or its size: the server closed while we still sent
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def parse(data: bytes) -> Answer:
    """An HTTP response with its body joined."""
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body, rest = b"", body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return Answer(int(status.split(" ")[1]), headers, body)


class Forms:
    """What the document says of answers."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._whole = {path: Draft202012Validator(answer_schema(document, path)) for path in ROUTES}
        streams = (CHAT, "/v1/completions")
        self._chunk = {path: Draft202012Validator(chunk_schema(document, path)) for path in streams}

    def check_whole(self, path: str, body: Any) -> None:
        """A whole answer's form."""
        self._whole[path].validate(body)

    def check_chunks(self, path: str, chunks: list[dict[str, Any]], chance: random.Random) -> None:
        """The form of a stream's ends, and of a few between them: all of them would take minutes."""
        for chunk in [chunks[0], *chance.choices(chunks, k=2), *chunks[-2:]]:
            self._chunk[path].validate(chunk)


def check(request: Request, answer: Answer, forms: Forms) -> None:
    """In shape, and not our fault."""
    assert 200 <= answer.status < 500, answer.body
    assert b"is not allowed here" not in answer.body, "a mask allowed what its grammar refuses"
    assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", answer.headers["x-request-id"])
    path = request.path.partition("?")[0]
    if request.method == "HEAD":
        return
    if answer.status != 200:
        assert answer.error["type"] in ("invalid_request_error", "authentication_error")
    elif answer.headers["content-type"].startswith("text/event-stream"):
        *chunks, last = answer.chunks
        if "error" in last:
            assert GRAMMAR_ENDS in last["error"]["message"], last
            return
        chunks.append(last)
        forms.check_chunks(path, chunks, random.Random(len(answer.body)))
        choices = [one for chunk in chunks for one in chunk["choices"]]
        ended = sorted(one["index"] for one in choices if one["finish_reason"] is not None)
        assert ended == sorted({one["index"] for one in choices}) != [], "every choice ends once"
    elif path in ROUTES:
        forms.check_whole(path, json.loads(answer.body, parse_constant=pytest.fail))


def replies(url: str) -> list[str]:
    """What the model says to the same requests, without what differs from time to time."""
    answers = [httpx.post(url + CHAT, json=body, timeout=60).raise_for_status().json() for body in BEFORE]
    for answer in answers:
        del answer["usage"]["prompt_tokens_details"]  # the second time the prompt is cached
    return [json.dumps([answer["choices"], answer["usage"]]) for answer in answers]


def quiet(url: str) -> None:
    """Wait until nothing runs or waits; all blocks must then be free."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        assert time.monotonic() < deadline, "somebody who left is still served"
        health = httpx.get(f"{url}/health").raise_for_status().json()
        assert health["status"] == "ok"
        (engine,) = health["engines"]
        if engine["num_running"] == engine["num_waiting"] == 0:
            break
    assert engine["num_free_blocks"] == engine["num_blocks"] == 24
    assert engine["num_preemptions"] > 0, "blocks were scarce"
