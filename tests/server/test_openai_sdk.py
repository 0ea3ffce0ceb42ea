"""OpenAI's Python SDK and its helpers against a live server with a real, tiny model that knows nothing."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.fakes import tiny_model, tiny_text_model
from tests.server.wire import app_of, live

LENGTH = 768
ASK: list[Any] = [{"role": "user", "content": "Rain in Oslo?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


class Step(BaseModel):
    """One of a plan."""

    kind: Literal["go", "stop"]
    times: Literal[1, 2, 3]


class Plan(BaseModel):
    """What the model must answer with."""

    steps: tuple[Step, Step]
    urgent: bool


@pytest.fixture(scope="module")
def sdk() -> Iterator[OpenAI]:
    model = tiny_text_model(tiny_model(num_positions=LENGTH), max_model_len=LENGTH)
    with live(app_of(model)) as url:
        yield OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_parse_gives_a_pydantic_object(sdk: OpenAI) -> None:
    completion = sdk.chat.completions.parse(model="tiny", messages=ASK, response_format=Plan, seed=1)
    message = completion.choices[0].message
    assert completion.choices[0].finish_reason == "stop"
    assert isinstance(message.parsed, Plan)
    assert json.loads(message.content or "") == json.loads(message.parsed.model_dump_json())


def test_the_event_accumulator_ends_with_the_whole_reply(sdk: OpenAI) -> None:
    kinds: list[str] = []
    with sdk.chat.completions.stream(
        model="tiny",
        messages=ASK,
        response_format=Plan,
        seed=1,
        logprobs=True,
        stream_options={"include_usage": True},
    ) as stream:
        kinds += [event.type for event in stream]
        final = stream.get_final_completion()
    whole = sdk.chat.completions.parse(
        model="tiny", messages=ASK, response_format=Plan, seed=1, logprobs=True
    )
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].message.parsed == whole.choices[0].message.parsed
    assert final.usage == whole.usage
    assert {"content.delta", "content.done", "logprobs.content.delta", "chunk"} <= set(kinds)
    assert final.choices[0].logprobs == whole.choices[0].logprobs


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_tool_call_goes_round(sdk: OpenAI, choice: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "tools": [WEATHER], "seed": 2}
    first = sdk.chat.completions.create(**asked, tool_choice=choice, parallel_tool_calls=False)
    assert first.choices[0].finish_reason == "tool_calls"
    message = first.choices[0].message
    assert message.content is None and message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function" and call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert arguments["city"] in ("Oslo", "Rome") and arguments["days"] in (1, 2, 3)
    turns: list[Any] = [
        *ASK,
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "dry"},
    ]
    answer = sdk.chat.completions.create(model="tiny", messages=turns, tools=[WEATHER], max_tokens=5)
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_tool_calls_stream_as_deltas_and_parse(sdk: OpenAI) -> None:
    tool = openai.pydantic_function_tool(Step)
    with sdk.chat.completions.stream(
        model="tiny", messages=ASK, tools=[tool], tool_choice="required", parallel_tool_calls=False, seed=5
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert len(done) == 1 and len(deltas) > 1
    (call,) = final.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Step)
    assert "".join(event.arguments_delta for event in deltas) == call.function.arguments
    parsed = sdk.chat.completions.parse(
        model="tiny", messages=ASK, tools=[tool], tool_choice="required", parallel_tool_calls=False, seed=5
    )
    assert (parsed.choices[0].message.tool_calls or [])[0].function.arguments == call.function.arguments


@pytest.mark.parametrize(("first", "finish"), [("{", "stop"), ("<", "tool_calls")])
def test_beside_tools_a_reply_is_a_call_or_of_the_form(sdk: OpenAI, first: str, finish: str) -> None:
    reply = sdk.chat.completions.parse(
        model="tiny",
        messages=ASK,
        tools=[WEATHER],
        response_format=Plan,
        parallel_tool_calls=False,
        logit_bias={str(ord(first)): 50},
    )
    (choice,) = reply.choices
    assert choice.finish_reason == finish
    assert bool(choice.message.tool_calls) == (finish == "tool_calls")
    assert isinstance(choice.message.parsed, Plan) == (finish == "stop")


def test_a_cut_reply_is_never_called_complete(sdk: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        sdk.chat.completions.parse(model="tiny", messages=ASK, response_format=Plan, max_tokens=4)
    cut = sdk.chat.completions.create(
        model="tiny", messages=ASK, tools=[WEATHER], tool_choice="required", max_tokens=45
    )
    assert cut.choices[0].finish_reason == "length"


def test_completions_and_their_stream(sdk: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "Once", "seed": 3, "max_tokens": 9}
    whole = sdk.completions.create(**asked)
    pieces = [chunk.choices[0].text for chunk in sdk.completions.create(**asked, stream=True)]
    assert "".join(pieces) == whole.choices[0].text


def test_the_raw_response_streams(sdk: OpenAI) -> None:
    with sdk.chat.completions.with_streaming_response.create(
        model="tiny", messages=ASK, max_tokens=5, stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


def test_embeddings_in_base64_and_as_numbers(sdk: OpenAI) -> None:
    decoded = sdk.embeddings.create(model="tiny", input=["Oslo", "Rome"])  # the SDK asks for base64
    plain = sdk.embeddings.create(model="tiny", input=["Oslo", "Rome"], encoding_format="float")
    raw = sdk.embeddings.with_raw_response.create(model="tiny", input="Oslo", encoding_format="base64")
    for one, other in zip(decoded.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    data = base64.b64decode(json.loads(raw.content)["data"][0]["embedding"])
    assert struct.unpack(f"<{len(data) // 4}f", data) == pytest.approx(plain.data[0].embedding, abs=1e-6)


def test_models(sdk: OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["tiny"]
    assert sdk.models.retrieve("tiny").object == "model"


@pytest.mark.parametrize(
    ("asked", "error", "code"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value"),
        (
            {"messages": [{"role": "user", "content": "x" * LENGTH}]},
            openai.BadRequestError,
            "context_length_exceeded",
        ),
        ({"tool_choice": "required"}, openai.BadRequestError, "invalid_value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 5}}}},
            openai.BadRequestError,
            "invalid_value",
        ),
    ],
)
def test_errors_are_raised_as_their_class_with_a_code(
    sdk: OpenAI, asked: dict[str, Any], error: type[openai.APIStatusError], code: str
) -> None:
    with pytest.raises(error) as raised:
        sdk.chat.completions.create(**{"model": "tiny", "messages": ASK, **asked})
    assert type(raised.value) is error
    assert raised.value.code == code and isinstance(raised.value.code, str)
    assert raised.value.request_id
