"""Real models under every schema of the suite, through HTTP: each completed answer validates."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from clients.child import ChildServer
from tests.schemas import REFUSED, SCHEMAS

ROOT = Path(__file__).parent.parent
CHAT = "/v1/chat/completions"
NUM_AT_ONCE = 16
MAX_TOKENS = {"causette": 200, "smollm2-135m-instruct": 120}
LEAST_COMPLETED = 0.6
"""Share of the answers that end before max_tokens; a small model in an open-ended string may not."""

pytestmark = pytest.mark.slow


def validate(value: Any, schema: dict[str, Any]) -> None:
    """By the newest draft that the schema is written in; lists of items are draft 7's."""
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
        draft = jsonschema.Draft202012Validator
    except jsonschema.SchemaError:
        draft = jsonschema.Draft7Validator
    draft(schema, format_checker=draft.FORMAT_CHECKER).validate(value)


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


async def answers(url: str, max_tokens: int) -> list[tuple[str, dict[str, Any], httpx.Response]]:
    """One answer to each schema, sixteen at once."""
    gate = asyncio.Semaphore(NUM_AT_ONCE)

    async def ask(number: int, name: str, schema: dict[str, Any]) -> httpx.Response:
        prompt = f"Reply with a JSON value for: {name}."
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "response_format": form(schema),
            "max_tokens": max_tokens,
            "seed": number,
            "truncation": "drop_oldest",
        }
        async with gate:
            return await client.post(CHAT, json=body)

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        replies = await asyncio.gather(*(ask(i, *entry) for i, entry in enumerate(SCHEMAS)))
    return [(name, schema, reply) for (name, schema), reply in zip(SCHEMAS, replies, strict=True)]


@pytest.mark.parametrize("name", MAX_TOKENS)
def test_every_completed_answer_validates(name: str, request: pytest.FixtureRequest) -> None:
    own = ROOT / "checkpoints" / name
    folder = own if name == "causette" else request.getfixturevalue("smollm2_folder")
    with ChildServer(["--checkpoint", str(folder)]) as server:
        completed = 0
        for about, schema, reply in asyncio.run(answers(server.url, MAX_TOKENS[name])):
            assert reply.status_code == 200, (about, reply.text)
            choice = reply.json()["choices"][0]
            if choice["finish_reason"] == "length":
                continue
            assert choice["finish_reason"] == "stop"
            completed += 1
            value = json.loads(choice["message"]["content"])
            validate(value, schema)
        assert len(SCHEMAS) >= 100
        assert completed >= LEAST_COMPLETED * len(SCHEMAS), f"{completed} of {len(SCHEMAS)}"
        for refused, keyword in REFUSED:
            body = {"messages": [{"role": "user", "content": "x"}], "response_format": form(refused)}
            reply = httpx.post(server.url + CHAT, json=body, timeout=60)
            assert reply.status_code == 400, (refused, reply.text)
            assert keyword in reply.json()["error"]["message"]
