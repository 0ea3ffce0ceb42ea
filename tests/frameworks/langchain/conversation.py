"""LangChain's ChatOpenAI against the server at CAUSERIE_URL. `python conversation.py STEP` runs one function.

CAUSERIE_URL=http://127.0.0.1:8000/v1 python conversation.py invoke
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Annotated, Any, Literal

import openai
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

QUESTION = "what is a token?"


class Judgement(BaseModel):
    """A judgement of an answer."""

    subject: Literal["token", "cache", "server"]
    score: int = Field(ge=0, le=9)
    certain: bool


class Stop(BaseModel):
    """A place on the way."""

    city: Literal["Paris", "Lyon", "Nice"]
    nights: int = Field(ge=1, le=9)
    note: str | None = Field(max_length=12)


class Journey(BaseModel):
    """Schemas of nested models have references and alternatives."""

    title: str = Field(max_length=16)
    stops: list[Stop] = Field(min_length=1, max_length=2)
    home: Stop


@tool
def get_weather(city: Literal["Paris", "Lyon", "Nice"], days: Annotated[int, Field(ge=1, le=5)]) -> str:
    """The weather of the next days in a city."""
    return f"sun in {city} for {days} days"


@tool
def get_time(zone: Literal["UTC", "CET"]) -> str:
    """The time of day in a zone."""
    return f"noon, {zone}"


def _model(**options: Any) -> ChatOpenAI:
    fixed = {"temperature": 0, "seed": 7, "max_retries": 0}
    return ChatOpenAI(
        model="default",
        base_url=os.environ["CAUSERIE_URL"],
        api_key="unused",
        **fixed | options,
    )


def invoke() -> None:
    reply = _model().invoke(QUESTION)
    assert isinstance(reply.content, str) and reply.content
    assert reply.tool_calls == []
    assert reply.response_metadata["finish_reason"] == "stop"
    assert reply.response_metadata["system_fingerprint"]
    usage = reply.usage_metadata
    assert usage is not None and min(usage["input_tokens"], usage["output_tokens"]) > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def a_conversation_of_several_turns() -> None:
    model = _model()
    first = model.invoke([SystemMessage("You answer questions briefly."), HumanMessage(QUESTION)])
    second = model.invoke(
        [
            SystemMessage("You answer questions briefly."),
            HumanMessage(QUESTION),
            first,
            HumanMessage("and what is a KV cache?"),
        ]
    )
    assert second.content
    assert second.usage_metadata["input_tokens"] > first.usage_metadata["total_tokens"]


def a_chain() -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "You answer {how}."), ("user", "{thing}?")])
    chain = prompt | _model() | StrOutputParser()
    whole = chain.invoke({"how": "briefly", "thing": "what is a token"})
    assert whole and "".join(chain.stream({"how": "briefly", "thing": "what is a token"})) == whole


def max_tokens() -> None:
    reply = _model(max_tokens=3).invoke(QUESTION)
    assert reply.response_metadata["finish_reason"] == "length"
    assert reply.usage_metadata["output_tokens"] == 3


def stop_is_left_out() -> None:
    whole = _model().invoke(QUESTION).content
    word = whole.split()[2]
    assert _model(stop=[word]).invoke(QUESTION).content == whole[: whole.index(word)]


def stream() -> None:
    model = _model(stream_usage=True)
    chunks = list(model.stream(QUESTION))
    assert len(chunks) > 3 and all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    whole = model.invoke(QUESTION)
    assert total.content == whole.content
    assert total.response_metadata["finish_reason"] == "stop"
    counts = ("input_tokens", "output_tokens", "total_tokens")
    assert [total.usage_metadata[c] for c in counts] == [whole.usage_metadata[c] for c in counts]


def sampled_with_a_seed() -> None:
    first, again = (_model(temperature=1.2, seed=11).invoke(QUESTION).content for _ in range(2))
    assert first == again == "".join(c.content for c in _model(temperature=1.2, seed=11).stream(QUESTION))


def batch() -> None:
    questions = [QUESTION, "what is a KV cache?", "what does temperature do?", "how do i stream?"]
    model = _model()
    together = [reply.content for reply in model.batch(questions)]
    assert together == [model.invoke(question).content for question in questions]
    assert len(set(together)) > 1


def async_calls() -> None:
    async def both() -> tuple[str, str]:
        model = _model()
        whole = await model.ainvoke(QUESTION)
        return whole.content, "".join([chunk.content async for chunk in model.astream(QUESTION)])

    whole, streamed = asyncio.run(both())
    assert whole and whole == streamed


def several_choices() -> None:
    results = _model(n=3, temperature=1.0).generate([[HumanMessage(QUESTION)]])
    assert len(results.generations[0]) == 3


def logprobs() -> None:
    reply = _model().bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
    content = reply.response_metadata["logprobs"]["content"]
    assert content and all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in content)
    joined = b"".join(bytes(entry["bytes"]) for entry in content).decode()
    assert joined.strip().startswith(reply.content)


def structured_output() -> None:
    result = _model().with_structured_output(Judgement).invoke("judge: a token is a piece of text")
    assert isinstance(result, Judgement)


def structured_output_with_raw() -> None:
    model = _model().with_structured_output(Judgement, method="json_schema", strict=True, include_raw=True)
    result = model.invoke("judge: a cache is a server")
    assert result["parsing_error"] is None and isinstance(result["parsed"], Judgement)
    assert Judgement.model_validate_json(result["raw"].content) == result["parsed"]


def structured_output_of_nested_models() -> None:
    model = _model(max_tokens=320).with_structured_output(Journey, method="json_schema", strict=True)
    journey = model.invoke("plan a journey")
    assert isinstance(journey, Journey) and journey.stops


def structured_output_streamed() -> None:
    model = _model().with_structured_output(Judgement, method="json_schema")
    *_, last = model.stream("judge: a token is a piece of text")
    assert Judgement.model_validate(last) == model.invoke("judge: a token is a piece of text")


def structured_output_by_a_function() -> None:
    model = _model().with_structured_output(Judgement, method="function_calling")
    assert isinstance(model.invoke("judge: a token is a piece of text"), Judgement)


def json_mode() -> None:
    model = _model(max_tokens=60).bind(response_format={"type": "json_object"})
    try:
        text = model.invoke("reply in JSON").content
        assert isinstance(json.loads(text), dict)
    except openai.LengthFinishReasonError as error:  # a model this small may not find the end
        text = error.completion.choices[0].message.content
    assert text.startswith("{")


def tools_round_trip() -> None:
    messages: list[Any] = [HumanMessage("what is the weather?")]
    asked = _model().bind_tools([get_weather], tool_choice="any").invoke(messages)
    assert asked.tool_calls and asked.invalid_tool_calls == []
    assert asked.response_metadata["finish_reason"] == "tool_calls"
    messages.append(asked)
    for call in asked.tool_calls:
        result = get_weather.invoke(call)
        assert isinstance(result, ToolMessage) and result.content.startswith("sun in ")
        messages.append(result)
    told = _model().bind_tools([get_weather], tool_choice="none").invoke(messages)
    assert isinstance(told, AIMessage) and told.content and not told.tool_calls


def a_named_tool() -> None:
    for name in ("get_time", "get_weather"):
        reply = _model().bind_tools([get_weather, get_time], tool_choice=name).invoke("hello")
        assert [call["name"] for call in reply.tool_calls] == [name]


def a_strict_tool_not_in_parallel() -> None:
    model = _model().bind_tools(
        [get_weather, get_time], tool_choice="required", strict=True, parallel_tool_calls=False
    )
    (call,) = model.invoke("weather and time?").tool_calls
    assert {"get_weather": get_weather, "get_time": get_time}[call["name"]].invoke(call).content


def tools_the_model_need_not_use() -> None:
    reply = _model().bind_tools([get_weather]).invoke(QUESTION)
    assert reply.content or reply.tool_calls


def streamed_tool_calls() -> None:
    model = _model().bind_tools([get_weather], tool_choice="required", parallel_tool_calls=False)
    whole, total = model.invoke("what is the weather?"), None
    for chunk in model.stream("what is the weather?"):
        total = chunk if total is None else total + chunk
    (expected,), (call,) = whole.tool_calls, total.tool_calls
    assert (call["name"], call["args"]) == (expected["name"], expected["args"])
    assert call["id"] and total.response_metadata["finish_reason"] == "tool_calls"


def text_completion() -> None:
    model = OpenAI(
        model="default",
        base_url=os.environ["CAUSERIE_URL"],
        api_key="unused",
        temperature=0,
        seed=7,
        max_tokens=12,
        max_retries=0,
    )
    whole = model.invoke("A token is")
    assert whole and "".join(model.stream("A token is")) == whole
    results = model.generate(["A token is", "A KV cache"])
    assert [choices[0].text for choices in results.generations] == [whole, model.invoke("A KV cache")]
    assert results.llm_output["token_usage"]["completion_tokens"] > 0


def embeddings() -> None:
    model = OpenAIEmbeddings(
        model="default",
        base_url=os.environ["CAUSERIE_URL"],
        api_key="unused",
        check_embedding_ctx_length=False,  # else tiktoken downloads a vocabulary
        max_retries=0,
    )
    vectors = model.embed_documents([QUESTION, "what is a KV cache?"])
    assert len(vectors) == 2 and len(vectors[0]) == len(vectors[1]) > 1
    assert vectors[0] != vectors[1]
    assert all(abs(a - b) < 1e-4 for a, b in zip(vectors[0], model.embed_query(QUESTION), strict=True))


def errors() -> None:
    _expect(openai.NotFoundError, model="no-such-model")
    _expect(openai.BadRequestError, temperature=5)
    _expect(openai.BadRequestError, n=100)
    _expect(ContextOverflowError, text="word " * 700)
    _expect(ContextOverflowError, text="word " * 200_000)


def errors_of_a_stream() -> None:
    try:
        list(_model().stream("word " * 700))
    except ContextOverflowError:
        return
    raise AssertionError("nothing was raised")


def _expect(kind: type[Exception], *, text: str = QUESTION, **options: Any) -> None:
    try:
        _model().invoke(text, **options)
    except kind:
        return
    raise AssertionError(f"{options} did not raise {kind.__name__}")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
