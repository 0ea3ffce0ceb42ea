"""A server under a crowd that comes, changes its mind and goes: nothing leaks, nobody is forgotten."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from clients.child import ChildServer

NUM_REQUESTS, NUM_AT_ONCE = 200, 24
CHAT = "/v1/chat/completions"
FIRST: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}],
    "temperature": 0,
    "max_tokens": 20,
    "ignore_eos": True,
}
FEW_BLOCKS = ["--max-num-seqs", "8", "--num-gpu-blocks-override", "24", "--max-num-batched-tokens", "48"]
"""Eight sequences of up to 16 blocks in 24: they must preempt each other."""


@pytest.mark.slow
def test_two_hundred_requests_with_random_disconnects_leave_every_block_free(tiny_folder: Path) -> None:
    with ChildServer(["--checkpoint", str(tiny_folder), *FEW_BLOCKS]) as server:
        outcomes, before, after, engine = asyncio.run(soak(server.url))
        assert "Traceback" not in server.last_lines(100_000)
    assert before == after, "the same request, before and after the crowd"
    assert len(outcomes) == NUM_REQUESTS
    assert set(outcomes) == {"done", "left", "refused"}, "each kind was met, and nothing else"
    assert engine["num_preemptions"] > 0, "blocks were scarce"


async def soak(url: str) -> tuple[list[str], str, str, dict[str, Any]]:
    """Outcomes of the crowd, one request before and after it, and the engine once it is quiet."""
    chance, gate = random.Random(7), asyncio.Semaphore(NUM_AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits()) as client:
        before = await whole(client)
        plans = [plan(chance) for _ in range(NUM_REQUESTS)]
        outcomes = await asyncio.gather(*(visit(client, gate, *one) for one in plans))
        engine = await quiet(client)
        return list(outcomes), before, await whole(client), engine


def plan(chance: random.Random) -> tuple[dict[str, Any], int | None]:
    """A request, and after how many pieces of its stream the client leaves; None stays."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "word " * chance.randrange(1, 25)}],
        "max_tokens": chance.randrange(1, 100),
        "ignore_eos": chance.random() < 0.8,
        "stream": chance.random() < 0.8,
        "n": chance.choice([1, 1, 1, 2, 3]),
        "seed": chance.randrange(1 << 53),
        "temperature": chance.choice([0, 0.8, 2]),
    }
    if chance.random() < 0.05:
        body["messages"] = [{"role": "user", "content": "too long " * 100}]
    if chance.random() < 0.1:
        body["stop"] = ["a", "\\n"]
    return body, chance.choice([None, None, None, 0, 1, 7])


async def visit(
    client: httpx.AsyncClient, gate: asyncio.Semaphore, body: dict[str, Any], patience: int | None
) -> str:
    """done, left or refused."""
    async with gate:
        if patience is not None and not body["stream"]:
            try:
                async with asyncio.timeout(0.01 * patience):
                    await client.post(CHAT, json=body)
            except TimeoutError:
                return "left"
            return "done"
        async with client.stream("POST", CHAT, json=body) as response:
            if response.status_code == 400:
                return "refused"
            assert response.status_code == 200
            read = b""
            num_pieces = 0
            async for piece in response.aiter_bytes():
                if patience is not None and num_pieces >= patience:
                    return "left"
                num_pieces += 1
                read += piece
        assert not body["stream"] or read.endswith(b"data: [DONE]\n\n")
        assert b'"error"' not in read
        return "done"


async def whole(client: httpx.AsyncClient) -> str:
    reply = await client.post(CHAT, json=FIRST)
    assert reply.status_code == 200
    return str(reply.json()["choices"][0]["message"]["content"])


async def quiet(client: httpx.AsyncClient) -> dict[str, Any]:
    """The engine once nothing runs or waits; all blocks must then be free."""
    async with asyncio.timeout(30):
        while True:
            health = (await client.get("/health")).raise_for_status().json()
            assert health["status"] == "ok"
            (engine,) = health["engines"]
            if engine["num_running"] == engine["num_waiting"] == 0:
                break
    assert engine["status"] == "ok"
    assert engine["num_free_blocks"] == engine["num_blocks"] == 24
    return dict(engine)
