"""instructor against the server at CAUSERIE_URL. `python conversation.py STEP` runs one function."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any, Literal

import instructor
import openai
from pydantic import BaseModel, Field

MESSAGES: Any = [{"role": "user", "content": "judge: a token is a piece of text"}]
FIXED: Any = {"model": "default", "temperature": 0, "seed": 7, "max_retries": 0}


class Judgement(BaseModel):
    """A judgement of an answer."""

    subject: Literal["token", "cache", "server"]
    score: int = Field(ge=0, le=9)
    certain: bool


class Visit(BaseModel):
    """Where to go."""

    city: Literal["Paris", "Lyon", "Nice"]
    days: int = Field(ge=1, le=5)


class Journey(BaseModel):
    """Schemas of nested models have references."""

    title: str = Field(max_length=16)
    visits: list[Visit] = Field(min_length=1, max_length=2)
    last: Visit | None


def _client(mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(
        openai.OpenAI(base_url=os.environ["CAUSERIE_URL"], max_retries=0), mode=mode
    )


def _ask(mode: instructor.Mode) -> None:
    result, reply = _client(mode).chat.completions.create_with_completion(
        response_model=Judgement, messages=MESSAGES, **FIXED
    )
    assert isinstance(result, Judgement)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def by_a_tool() -> None:
    _ask(instructor.Mode.TOOLS)


def by_a_strict_tool() -> None:
    _ask(instructor.Mode.TOOLS_STRICT)


def by_a_schema() -> None:
    _ask(instructor.Mode.JSON_SCHEMA)


def by_default() -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=os.environ["CAUSERIE_URL"]))
    assert isinstance(client.create(response_model=Visit, messages=MESSAGES, **FIXED), Visit)


def nested_models() -> None:
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        asked = {**FIXED, "max_tokens": 320}
        journey = _client(mode).create(response_model=Journey, messages=MESSAGES, **asked)
        assert isinstance(journey, Journey) and journey.visits


def partial_objects() -> None:
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        parts = list(_client(mode).create_partial(response_model=Judgement, messages=MESSAGES, **FIXED))
        assert len(parts) > 1, "it was streamed"
        last = parts[-1].model_dump()
        Judgement.model_validate(last)  # not what create() gives: the class has another name in the prompt
        for part in parts:
            known = part.model_dump(exclude_none=True)
            assert all(str(last[name]).startswith(str(value)) for name, value in known.items()), part


def async_calls() -> None:
    async def ask() -> Judgement:
        client = instructor.from_openai(
            openai.AsyncOpenAI(base_url=os.environ["CAUSERIE_URL"]), mode=instructor.Mode.TOOLS
        )
        return await client.create(response_model=Judgement, messages=MESSAGES, **FIXED)

    assert isinstance(asyncio.run(ask()), Judgement)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
