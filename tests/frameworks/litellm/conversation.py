"""LiteLLM against the server at CAUSERIE_URL. `python conversation.py STEP` runs one function."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any, Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else the import downloads a table of prices

import litellm
from pydantic import BaseModel, Field

MESSAGES = [{"role": "user", "content": "what is a token?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of the next days in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Paris", "Lyon", "Nice"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 5},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


class Judgement(BaseModel):
    """A judgement of an answer."""

    subject: Literal["token", "cache", "server"]
    score: int = Field(ge=0, le=9)
    certain: bool


def _asked(**options: Any) -> dict[str, Any]:
    place = {"api_base": os.environ["CAUSERIE_URL"], "api_key": "unused", "num_retries": 0, "max_retries": 0}
    return {"model": "openai/default", "messages": MESSAGES, "temperature": 0, "seed": 7, **place, **options}


def completion() -> None:
    reply = litellm.completion(**_asked())
    assert reply.choices[0].message.content and reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0


def stream() -> None:
    whole = litellm.completion(**_asked())
    chunks = list(litellm.completion(**_asked(stream=True, stream_options={"include_usage": True})))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert len(chunks) > 3 and text == whole.choices[0].message.content
    built = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert built.choices[0].message.content == text
    assert built.usage.completion_tokens == whole.usage.completion_tokens
    assert built.usage.prompt_tokens == whole.usage.prompt_tokens


def async_stream() -> None:
    async def talk() -> tuple[str, str]:
        whole = await litellm.acompletion(**_asked())
        stream = await litellm.acompletion(**_asked(stream=True))
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        return whole.choices[0].message.content, text

    whole, streamed = asyncio.run(talk())
    assert whole and whole == streamed


def text_completion() -> None:
    asked = _asked(model="text-completion-openai/default", max_tokens=8)
    del asked["messages"]
    reply = litellm.text_completion(prompt="A token is", **asked)
    assert reply.choices[0].text and reply.choices[0].finish_reason in ("stop", "length")
    chunks = litellm.text_completion(prompt="A token is", stream=True, **asked)
    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == reply.choices[0].text


def embedding() -> None:
    asked = {key: value for key, value in _asked().items() if key in ("model", "api_base", "api_key")}
    reply = litellm.embedding(input=["a token", "a cache"], encoding_format="float", **asked)
    first, second = (row["embedding"] for row in reply.data)
    assert len(first) == len(second) > 1 and first != second and reply.usage.prompt_tokens > 0


def tools_round_trip() -> None:
    asked = litellm.completion(**_asked(tools=[WEATHER], tool_choice="required", parallel_tool_calls=False))
    message = asked.choices[0].message
    assert asked.choices[0].finish_reason == "tool_calls"
    (call,) = message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "get_weather" and set(arguments) == {"city", "days"}
    result = {"role": "tool", "tool_call_id": call.id, "content": f"sun in {arguments['city']}"}
    turns = [*MESSAGES, message.model_dump(exclude_none=True), result]
    told = litellm.completion(**_asked(messages=turns, tools=[WEATHER], tool_choice="none"))
    assert told.choices[0].message.content and not told.choices[0].message.tool_calls


def a_named_tool_streamed() -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    asked = _asked(tools=[WEATHER], tool_choice=choice)
    (whole,) = litellm.completion(**asked).choices[0].message.tool_calls
    chunks = list(litellm.completion(**asked, stream=True))
    (built,) = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert (built.function.name, built.function.arguments) == ("get_weather", whole.function.arguments)
    assert built.id


def response_format() -> None:
    reply = litellm.completion(**_asked(response_format=Judgement))
    Judgement.model_validate_json(reply.choices[0].message.content)
    chunks = litellm.completion(**_asked(response_format=Judgement, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == reply.choices[0].message.content


def json_object() -> None:
    reply = litellm.completion(**_asked(response_format={"type": "json_object"}, max_tokens=60))
    assert reply.choices[0].message.content.startswith("{")


def errors() -> None:
    _expect(litellm.NotFoundError, model="openai/no-such-model")
    _expect(litellm.BadRequestError, temperature=5)
    _expect(litellm.ContextWindowExceededError, messages=[{"role": "user", "content": "word " * 700}])
    _expect(litellm.ContextWindowExceededError, messages=[{"role": "user", "content": "word " * 200_000}])


def _expect(kind: type[Exception], **options: Any) -> None:
    try:
        litellm.completion(**_asked(**options))
    except kind:
        return
    raise AssertionError(f"did not raise {kind.__name__}")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
