"""A real server on a real socket: first chunk before the last exists, a killed client, OpenAI's SDK."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from torch import Tensor

from llm.batch import Batch
from llm.checkpoint import save_state_dict
from server.settings import load_settings
from server.startup import load
from tests.fakes import Gate, ScriptedModel, tiny_model, tiny_text_model
from tests.server.wire import CHAT, HELLO, app_of, live
from tests.torch_writers import retag

MESSAGES: Any = HELLO["messages"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live(app_of(ScriptedModel("Hel", "lo", "."))) as address:
        yield address


def test_the_first_chunk_arrives_before_the_last_exists() -> None:
    gate = Gate()
    with live(app_of(ScriptedModel("first", gate, "second"))) as url:
        with httpx.stream("POST", url + CHAT, json={**HELLO, "stream": True}) as response:
            lines = response.iter_lines()
            while '"first"' not in next(lines):
                pass
            gate.open()
            assert any('"second"' in line for line in lines)


@pytest.mark.parametrize("stream", [True, False])
def test_a_killed_client_frees_its_blocks(stream: bool) -> None:
    """A real engine and a real socket; the reply would go on for thousands of tokens."""
    model = tiny_text_model(tiny_model(num_positions=4096), max_model_len=4096)
    asked = {**HELLO, "temperature": 0, "stream": stream}
    with live(app_of(model)) as url:
        short = httpx.post(url + CHAT, json={**asked, "max_tokens": 300, "stream": False}, timeout=60)
        assert short.json()["choices"][0]["finish_reason"] == "length", "this model does not end by itself"
        host, port = urlsplit(url).netloc.split(":")
        body = json.dumps({**asked, "max_tokens": 4000}).encode()
        with socket.create_connection((host, int(port))) as client:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            wait_for_running(url, 1)
        wait_for_running(url, 0)
        (engine,) = model.stats()
        assert engine.num_free_blocks == engine.num_blocks
        assert 300 < engine.num_tokens < 4000


def test_a_client_killed_after_three_tokens_is_gone_within_one_step() -> None:
    """The engine may only step when told: three steps, the client dies, and the fourth is the last."""
    model = tiny_text_model(tiny_model(num_positions=4096), max_model_len=4096)
    (engine,) = model.engines
    may_step, fourth, run = threading.Semaphore(3), threading.Event(), engine.runner.run

    def run_when_told(batch: Batch) -> Tensor:
        if engine.num_steps == 3:
            fourth.set()
        may_step.acquire()
        return run(batch)

    engine.runner.run = run_when_told  # type: ignore[method-assign]
    with live(app_of(model)) as url:
        asked = {**HELLO, "temperature": 0, "stream": True, "max_tokens": 4000}
        with httpx.stream("POST", url + CHAT, json=asked) as response:
            pieces = response.iter_bytes()  # kept: a generator that is collected closes the response
            assert next(pieces)
            assert fourth.wait(60)
        while model._mailboxes:  # until the server has seen that the socket is closed
            time.sleep(0.001)
        may_step.release()  # the step that was under way
        while engine.stats().num_running:
            time.sleep(0.001)
        assert (engine.num_steps, engine.stats().num_free_blocks) == (4, engine.stats().num_blocks)
        may_step.release(10)


def wait_for_running(url: str, number: int) -> None:
    """Ask until the engine works on that many replies."""
    for _ in range(10_000):
        if httpx.get(url + "/health").json()["engines"][0]["num_running"] == number:
            return
    raise AssertionError(f"never {number} running")


def test_oversized_headers_are_refused_and_the_server_goes_on(url: str) -> None:
    try:
        assert httpx.get(url + "/health", headers={"x-big": "x" * (1 << 20)}).status_code in (400, 431)
    except httpx.TransportError:
        pass  # refused while it was still being sent
    assert httpx.post(url + CHAT, json=HELLO).status_code == 200


def test_sdk_whole_reply_and_raw_response(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        reply = client.chat.completions.create(
            model="default", messages=MESSAGES, seed=3, max_completion_tokens=9
        )
        assert reply.choices[0].message.content == "Hello."
        assert reply.choices[0].finish_reason == "stop"
        assert reply.usage is not None and reply.usage.completion_tokens == 3
        raw = client.chat.completions.with_raw_response.create(model="default", messages=MESSAGES, seed=3)
        assert raw.headers["x-seed"] == "3" and raw.headers["x-request-id"]
        assert raw.parse().choices[0].message.content == "Hello."


def test_sdk_stream_with_usage(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        with client.chat.completions.create(
            model="default", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(c.choices[0].delta.role is None for c in chunks[1:-1])
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3


def test_sdk_streaming_helper(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        with client.chat.completions.stream(model="default", messages=MESSAGES) as stream:
            final = stream.get_final_completion()
    assert final.choices[0].message.content == "Hello."


def test_sdk_async(url: str) -> None:
    async def talk() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused") as client:
            whole = await client.chat.completions.create(model="default", messages=MESSAGES)
            stream = await client.chat.completions.create(model="default", messages=MESSAGES, stream=True)
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
            return [whole.choices[0].message.content, text]

    assert asyncio.run(talk()) == ["Hello.", "Hello."]


def test_sdk_models_and_errors(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["scripted"]
        assert client.models.retrieve("scripted").owned_by == "causerie"
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="gpt-9", messages=MESSAGES)
        assert missing.value.code == "model_not_found" and missing.value.param == "model"
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(model="default", messages=MESSAGES, temperature=3)
        assert bad.value.param == "temperature"
        with pytest.raises(openai.BadRequestError, match="modalities"):
            client.chat.completions.create(model="default", messages=MESSAGES, modalities=["audio"])


def test_sdk_raises_on_an_error_frame_and_does_not_retry() -> None:
    model = ScriptedModel("some", ValueError("late"), "never")
    with live(app_of(model)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        with client.chat.completions.create(model="default", messages=MESSAGES, stream=True) as stream:
            with pytest.raises(openai.APIError, match="internal error"):
                list(stream)
        early = ScriptedModel(ValueError("early"), "never")
        with live(app_of(early)) as other:
            with pytest.raises(openai.InternalServerError):
                client.with_options(base_url=f"{other}/v1").chat.completions.create(
                    model="default", messages=MESSAGES
                )
    assert len(model.prompts) == len(early.prompts) == 1, "a poisonous request is not sent again"


COURSE = {"vocab_size": 50257, "num_positions": 64, "num_layers": 4, "num_heads": 4, "num_kv_heads": 4}
OVERHEAD = 13
COURSE |= {"width": 128, "ffn_width": 512, "tied_head": False}


@pytest.fixture(scope="module")
def course_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The course's file, saved from a GPU, with nothing beside it, served with one flag."""
    path = tmp_path_factory.mktemp("course") / "model_sft.pt"
    save_state_dict(path, tiny_model(**COURSE))
    retag(path, "cuda:0")
    (loaded,) = load(load_settings(["--checkpoint", str(path)]))
    with live(app_of(loaded.model)) as address:
        yield address


def say(url: str, num_words: int, **fields: Any) -> Any:
    """The answer to that many words, each a token; the template adds OVERHEAD, its system line among them."""
    body = {"messages": [{"role": "user", "content": "a" + " a" * (num_words - 1)}], "temperature": 0}
    return httpx.post(url + CHAT, json=body | {"ignore_eos": True} | fields, timeout=60)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("num_words", "shown"), [(51, "has 64 tokens"), (400, "has 413 tokens"), (100_000, "bytes")]
)
def test_a_course_files_prompt_that_is_too_long(
    course_url: str, num_words: int, shown: str, stream: bool
) -> None:
    answer = say(course_url, num_words, stream=stream)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert "64 tokens" in error["message"] and shown in error["message"]


@pytest.mark.parametrize("max_tokens", [None, 64, 65, 100_000])
@pytest.mark.parametrize("num_words", [1, 30, 50])
def test_a_course_files_reply_ends_where_its_positions_end(
    course_url: str, num_words: int, max_tokens: int | None
) -> None:
    whole = say(course_url, num_words, max_tokens=max_tokens).json()
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["prompt_tokens"] == num_words + OVERHEAD
    assert whole["usage"]["total_tokens"] == 64
    streamed = say(course_url, num_words, max_tokens=max_tokens, stream=True)
    assert '"finish_reason":"length"' in streamed.text.replace(": ", ":")


def test_a_course_files_conversation_goes_on_when_the_oldest_is_dropped(course_url: str) -> None:
    turns = [{"role": role, "content": "a " * 20} for _ in range(9) for role in ("user", "assistant")]
    answer = say(course_url, 1, messages=[*turns, {"role": "user", "content": "a"}], truncation="drop_oldest")
    assert answer.status_code == 200 and int(answer.headers["x-truncated-messages"]) >= 16
