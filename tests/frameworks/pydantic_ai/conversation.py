"""Pydantic AI against the server at CAUSERIE_URL. `python conversation.py STEP` runs one function."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, RunContext, ToolDefinition, ToolOutput
from pydantic_ai.capabilities import PrepareOutputTools
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

QUESTION = "what is a token?"


class Judgement(BaseModel):
    """A judgement of an answer."""

    subject: Literal["token", "cache", "server"]
    score: int = Field(ge=0, le=9)
    certain: bool


def _agent(name: str = "default", **options: Any) -> Agent[None, Any]:
    model = OpenAIChatModel(
        name, provider=OpenAIProvider(base_url=os.environ["CAUSERIE_URL"], api_key="unused")
    )
    return Agent(model, model_settings={"temperature": 0, "seed": 7}, **options)


def run() -> None:
    result = _agent(instructions="You answer questions briefly.").run_sync(QUESTION)
    assert result.output
    usage = result.usage
    assert usage.requests == 1 and usage.input_tokens > 0 and usage.output_tokens > 0


def history() -> None:
    agent = _agent()
    first = agent.run_sync(QUESTION)
    second = agent.run_sync("and what is a KV cache?", message_history=first.all_messages())
    assert second.output and second.usage.input_tokens > first.usage.total_tokens


def stream() -> None:
    async def streamed() -> tuple[str, int]:
        async with _agent().run_stream(QUESTION) as result:
            pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
            return "".join(pieces), result.usage.output_tokens

    whole = _agent().run_sync(QUESTION)
    assert asyncio.run(streamed()) == (whole.output, whole.usage.output_tokens)


def output_by_a_schema() -> None:
    result = _agent(output_type=NativeOutput(Judgement), retries=0).run_sync("judge: a token is text")
    assert isinstance(result.output, Judgement)


def output_by_a_tool() -> None:
    result = _agent(output_type=ToolOutput(Judgement), retries=0).run_sync("judge: a token is text")
    assert isinstance(result.output, Judgement)
    assert result.usage.requests == 1


def output_streamed() -> None:
    async def last() -> Judgement:
        agent = _agent(output_type=ToolOutput(Judgement), retries=0)
        async with agent.run_stream("judge: a token is text") as result:
            return [output async for output in result.stream_output(debounce_by=None)][-1]

    assert isinstance(asyncio.run(last()), Judgement)


def a_tool_and_its_result() -> None:
    """The first request must call the tool, the second must give the result: the model has no choice."""
    seen = []

    async def first(context: RunContext[None], tool: ToolDefinition) -> ToolDefinition | None:
        return tool if context.run_step == 1 else None

    async def later(context: RunContext[None], tools: list[ToolDefinition]) -> list[ToolDefinition]:
        return tools if context.run_step > 1 else []

    agent = _agent(output_type=ToolOutput(Judgement), capabilities=[PrepareOutputTools(later)], retries=0)

    @agent.tool_plain(prepare=first)
    def get_weather(city: Literal["Paris", "Lyon"]) -> str:
        """The weather in a city."""
        seen.append(city)
        return f"sun in {city}"

    result = agent.run_sync("the weather?", usage_limits=UsageLimits(request_limit=2))
    assert isinstance(result.output, Judgement) and result.usage.requests == 2
    assert seen and all(city in ("Paris", "Lyon") for city in seen)
    parts = [part for message in result.all_messages() for part in message.parts]
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    returns = [part for part in parts if isinstance(part, ToolReturnPart)]
    assert [call.tool_name for call in calls] == ["get_weather"] * len(seen) + ["final_result"]
    assert [call.tool_call_id for call in calls] == [part.tool_call_id for part in returns]
    again = _agent().run_sync("and now?", message_history=result.all_messages())
    assert again.output, "a conversation that holds calls and results goes on"


def errors() -> None:
    for name, text, status in (("no-such-model", QUESTION, 404), ("default", "word " * 700, 400)):
        try:
            _agent(name).run_sync(text)
        except ModelHTTPError as error:
            assert error.status_code == status
        else:
            raise AssertionError(f"{status} was not raised")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
