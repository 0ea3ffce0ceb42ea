"""POST /v1/chat/completions: bodies, and streamed == not streamed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.sequence import FinishReason
from tests.fakes import ScriptedModel, tiny_text_model
from tests.server.wire import CHAT, HELLO, app_of, ask, call


def test_the_whole_body() -> None:
    answer = call(app_of(), CHAT, HELLO)
    body = answer.json
    assert body["id"].startswith("chatcmpl-") and isinstance(body["created"], int)
    del body["id"], body["created"]
    assert body == {
        "object": "chat.completion",
        "model": "scripted",
        "system_fingerprint": "fp_scripted",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there.", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": len("User: hello\nAssistant:"),
            "completion_tokens": 3,
            "total_tokens": len("User: hello\nAssistant:") + 3,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


@pytest.mark.parametrize("model", [None, "default", "scripted"])
def test_the_model_answers_under_the_name_it_is_served_by(model: str | None) -> None:
    assert call(app_of(), CHAT, {**HELLO, "model": model}).json["model"] == "scripted"


def test_n_replies_and_one_prompt_in_the_usage() -> None:
    body = call(app_of(), CHAT, {**HELLO, "n": 3}).json
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["usage"]["completion_tokens"] == 9
    assert body["usage"]["prompt_tokens"] == 22


@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.LENGTH])
@pytest.mark.parametrize("stream", [True, False])
def test_the_finish_reason_is_the_models(reason: FinishReason, stream: bool) -> None:
    answer = call(app_of(ScriptedModel("a", finish=reason)), CHAT, {**HELLO, "stream": stream})
    choice = answer.chunks[-1]["choices"][0] if stream else answer.json["choices"][0]
    assert choice["finish_reason"] == reason.value


def test_max_tokens_cuts_with_length() -> None:
    body = call(app_of(), CHAT, {**HELLO, "max_tokens": 1}).json
    assert (body["choices"][0]["message"]["content"], body["choices"][0]["finish_reason"]) == (
        "Hello",
        "length",
    )


@given(
    script=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=6),
    n=st.integers(1, 3),
)
def test_streamed_text_joined_is_the_whole_text(script: list[str], n: int) -> None:
    asked: dict[str, Any] = {**HELLO, "n": n, "seed": 1}
    whole = call(app_of(ScriptedModel(*script)), CHAT, asked).json
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = call(app_of(ScriptedModel(*script)), CHAT, asked | options).chunks
    joined = [""] * n
    for chunk in chunks:
        for choice in chunk["choices"]:
            joined[choice["index"]] += choice["delta"].get("content", "")
    assert joined == [choice["message"]["content"] for choice in whole["choices"]] == ["".join(script)] * n
    assert chunks[-1]["usage"] == whole["usage"]


@pytest.mark.parametrize("options", [{"stream_options": {"include_usage": True}}, {"stream_options": {}}])
def test_stream_options_need_a_stream(options: dict[str, Any]) -> None:
    answer = call(app_of(), CHAT, {**HELLO, **options})
    assert (answer.status, answer.error["param"]) == (400, "stream_options")
    assert call(app_of(), CHAT, {**HELLO, "stream_options": None}).status == 200


def test_a_real_model_says_the_same_streamed_or_not_alone_or_not() -> None:
    """The tiny decoder through the whole house, several requests at once."""

    async def talk() -> list[Any]:
        model = tiny_text_model()
        app = app_of(model)
        model.start()
        try:
            asked = {**HELLO, "max_tokens": 12, "temperature": 0.9, "seed": 5, "n": 2}
            stream = {**asked, "stream": True}
            return list(await asyncio.gather(*(ask(app, CHAT, body) for body in (asked, stream, asked))))
        finally:
            await model.close()

    whole, streamed, again = asyncio.run(talk())
    assert [whole.status, streamed.status] == [200, 200]
    texts = [choice["message"]["content"] for choice in whole.json["choices"]]
    assert texts == [choice["message"]["content"] for choice in again.json["choices"]]
    assert texts[0] != texts[1], "choices of one request draw differently"
    joined = ["", ""]
    for chunk in streamed.chunks:
        joined[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    assert joined == texts
