"""Clients that are killed at any moment: everything they held comes back, and nobody writes an exception.

Killed means an RST, while the request is being sent, waits, is prefilled or decoded, streamed or whole. Two
hundred polite clients, of whom some change their mind, are the second crowd.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from clients.child import ChildServer
from llm.text import TextModel
from tests.endurance.raw import CHAT, COMPLETIONS, EMBEDDINGS, ask, burst, connect, post, reset, until
from tests.endurance.readings import MEGABYTE, assert_quiet_log, holding, wait_until_idle
from tests.fakes import tiny_model, tiny_text_model
from tests.server.wire import app_of, live

NUM_CLIENTS, NUM_ROUNDS, NUM_WARM_UP = 16, 50, 5
SETTLE_SECONDS = 30.0
FEW_BLOCKS = [
    *("--max-model-len", "4096", "--max-num-seqs", "6"),
    *("--num-gpu-blocks-override", "280", "--max-num-batched-tokens", "64"),
]
"""Six run and ten wait; prompts go in chunks; blocks are scarce, so that some are preempted."""
PHASES = ("half a head", "half a body", "at once", "soon", "streaming")


def victim(chance: random.Random) -> bytes:
    """A request of any kind; left to itself, it would go on for longer than anybody waits."""
    text = "word " * chance.choice([1, 4, 100])
    tokens = {"max_tokens": chance.choice([20, 4000]), "ignore_eos": True, "stream": chance.random() < 0.5}
    kind = chance.randrange(8)
    if kind == 0:
        return post(EMBEDDINGS, {"input": text})
    if kind == 1:
        return post("/tokenize", {"prompt": "a" * 100_000})
    if kind == 2:
        return post(COMPLETIONS, {"prompt": [text, text], **tokens})
    if kind == 3:
        form = {"type": "json_object"}
        return post(
            CHAT, {"messages": [{"role": "user", "content": text}], **tokens, "response_format": form}
        )
    choices = {"n": chance.choice([1, 1, 3])}
    return post(CHAT, {"messages": [{"role": "user", "content": text}], **tokens, **choices})


def kill_one(url: str, seed: int) -> str:
    """Open a connection, say some or all of a request, read some or none of the answer, and be killed."""
    chance = random.Random(seed)
    request, phase = victim(chance), chance.choice(PHASES)
    client = connect(url)
    try:
        if phase.startswith("half"):
            head = request.index(b"\r\n\r\n")
            cut = head // 2 if phase == "half a head" else (head + len(request)) // 2
            client.sendall(request[:cut])
            return phase
        client.sendall(request)
        if phase == "soon":
            time.sleep(chance.random() * 0.1)
        elif phase == "streaming":
            client.settimeout(chance.random() * 0.3)
            try:
                for _ in range(chance.randrange(1, 40)):
                    client.recv(256)
            except TimeoutError:
                pass
        return phase
    finally:
        reset(client)


def fill_pools(url: str) -> None:
    """Have all the worker threads there will ever be: they come one by one, as needed, and stay."""
    form = {"response_format": {"type": "json_object"}, "max_tokens": 20}
    replies = burst(url, [post("/tokenize", {"prompt": "a" * 300_000})] * 32)
    replies += [ask(url, post(CHAT, {"messages": [{"role": "user", "content": "hello"}], **form}))]
    assert {reply.status for reply in replies} == {200}


def kill_rounds(url: str, num_rounds: int, first_seed: int) -> Counter[str]:
    """Rounds of as many clients together as there are threads; how often each phase was met."""
    met: list[str] = []
    for number in range(num_rounds):
        seeds = [first_seed + number * NUM_CLIENTS + i for i in range(NUM_CLIENTS)]
        threads = [threading.Thread(target=lambda s=seed: met.append(kill_one(url, s))) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(met) == num_rounds * NUM_CLIENTS, "a client failed otherwise than planned"
    return Counter(met)


@pytest.mark.slow
def test_sixteen_clients_killed_fifty_times_leave_no_block_descriptor_or_thread(
    roomy_folder: Path, figure: Callable[[str], None]
) -> None:
    arguments = ["--checkpoint", str(roomy_folder), "--uvicorn-log-level", "warning"]
    with ChildServer([*arguments, *FEW_BLOCKS]) as server:
        fill_pools(server.url)
        kill_rounds(server.url, NUM_WARM_UP, 0)
        wait_until_idle(server.url)
        before = holding(server.pid)
        met = kill_rounds(server.url, NUM_ROUNDS, 1_000_000)
        wait_until_idle(server.url)
        until(lambda: holding(server.pid).fds <= before.fds, "connections are given back", SETTLE_SECONDS)
        after = holding(server.pid)
        figure(
            f"{met.total()} clients killed ({dict(met)}): descriptors {before.fds} -> {after.fds}, threads "
            f"{before.threads} -> {after.threads}, RSS {(after.rss - before.rss) / MEGABYTE:+.1f} MB"
        )
        assert set(met) == set(PHASES)
        assert (after.fds, after.threads) == (before.fds, before.threads)
        reply = ask(server.url, post(CHAT, {"messages": [{"role": "user", "content": "hello"}]}))
        assert reply.status == 200
        assert_quiet_log(server)


@pytest.mark.slow
def test_killed_clients_leave_no_task_on_the_event_loop(
    figure: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    bounds = {"max_model_len": 4096, "max_num_seqs": 6, "num_blocks": 280, "max_num_batched_tokens": 64}
    model = tiny_text_model(tiny_model(num_positions=4096), **bounds, block_size=16)
    with live(app_of(model)) as url:
        kill_rounds(url, NUM_WARM_UP, 0)
        wait_until_idle(url)
        before = settled_tasks(model)
        kill_rounds(url, NUM_ROUNDS // 2, 1_000_000)
        wait_until_idle(url)
        after = settled_tasks(model)
        model.engines[0].scheduler.blocks.check_integrity()
        figure(f"{NUM_ROUNDS // 2 * NUM_CLIENTS} clients killed: tasks {before} -> {after}")
        assert after == before
        assert not model._mailboxes
    assert "Traceback" not in capfd.readouterr().err


def settled_tasks(model: TextModel) -> int:
    """Tasks of the model's event loop, once their number is the same for half a second."""
    counts = [-1]

    def same() -> bool:
        counts.append(num_tasks(model))
        time.sleep(0.05)
        return len(counts) > 10 and len(set(counts[-10:])) == 1

    until(same, f"a steady number of tasks, not {counts[-10:]}", SETTLE_SECONDS)
    return counts[-1]


def num_tasks(model: TextModel) -> int:
    async def count() -> int:
        return len(asyncio.all_tasks())

    assert model._loop is not None
    return asyncio.run_coroutine_threadsafe(count(), model._loop).result(30)


NUM_REQUESTS, NUM_AT_ONCE, SHARE_LEAVING = 200, 24, 0.2
FIRST: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}],
    "temperature": 0,
    "max_tokens": 20,
    "ignore_eos": True,
}
SCARCE = ["--max-num-seqs", "8", "--num-gpu-blocks-override", "24", "--max-num-batched-tokens", "48"]
"""Eight sequences of up to 16 blocks in 24: they must preempt each other."""


@pytest.mark.slow
def test_two_hundred_requests_of_which_a_fifth_leaves_give_everything_back(
    tiny_folder: Path, figure: Callable[[str], None]
) -> None:
    quiet = ["--uvicorn-log-level", "warning", "--max-num-queued-seqs", "1000"]
    with ChildServer(["--checkpoint", str(tiny_folder), *SCARCE, *quiet]) as server:
        fill_pools(server.url)
        asyncio.run(crowd(server.url, seed=1))
        wait_until_idle(server.url)
        before = holding(server.pid)
        outcomes, first, last, engine = asyncio.run(crowd(server.url, seed=7))
        until(lambda: holding(server.pid).fds <= before.fds, "connections closed", SETTLE_SECONDS)
        after = holding(server.pid)
        assert_quiet_log(server)
    figure(
        f"{NUM_REQUESTS} requests, {outcomes['left']} left: descriptors {before.fds} -> {after.fds}, threads "
        f"{before.threads} -> {after.threads}, {engine['num_preemptions']} preemptions"
    )
    assert first == last, "the same request, before and after the crowd"
    assert outcomes.total() == NUM_REQUESTS
    assert set(outcomes) == {"done", "left", "refused"}, "each kind was met, and nothing else"
    assert engine["num_preemptions"] > 0, "blocks were scarce"
    assert engine["num_blocks"] == 24
    assert (after.fds, after.threads) == (before.fds, before.threads)


async def crowd(url: str, seed: int) -> tuple[Counter[str], str, str, dict[str, Any]]:
    """Outcomes of the crowd, one request before and after it, and the engine once it is quiet."""
    chance, gate = random.Random(seed), asyncio.Semaphore(NUM_AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits()) as client:
        before = await whole(client)
        plans = [plan(chance) for _ in range(NUM_REQUESTS)]
        outcomes = await asyncio.gather(*(visit(client, gate, *one) for one in plans))
        engine = await asyncio.to_thread(wait_until_idle, url)
        return Counter(outcomes), before, await whole(client), engine


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
    return body, chance.choice([0, 1, 7]) if chance.random() < SHARE_LEAVING else None


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
