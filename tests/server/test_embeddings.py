"""POST /v1/embeddings: vectors of length 1, several at once, and OpenAI's own client."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import StepFailed
from llm.terms import DEFAULT_TERMS, Terms
from llm.tokenizer import ByteTokenizer
from server.api.embeddings import normalise, to_base64
from tests.fakes import Gate, ScriptedModel, tiny_text_model
from tests.server.wire import Answer, Connection, app_of, ask, call, live

PATH = "/v1/embeddings"
EMBED = {"input": "hello"}


def test_the_whole_body() -> None:
    answer = call(app_of(), PATH, {"input": ["abcd", "a" * 3]})
    assert answer.json == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": normalise([4.0, 97.0])},
            {"object": "embedding", "index": 1, "embedding": normalise([3.0, 97.0])},
        ],
        "model": "scripted",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }


@pytest.mark.parametrize(
    ("sent", "prompts"),
    [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([97, 98], [[97, 98]]),
        ([[97, 98], [256]], [[97, 98], [256]]),
    ],
)
def test_inputs_are_text_or_ids_one_or_many(sent: Any, prompts: list[list[int]]) -> None:
    model = ScriptedModel()
    assert call(app_of(model), PATH, {"input": sent}).status == 200
    assert model.prompts == prompts


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=9))
def test_a_vector_has_length_one_or_zero(vector: list[float]) -> None:
    length = math.hypot(*normalise(vector))
    assert length == pytest.approx(1.0) or (length == 0.0 and not any(vector))


def test_what_is_not_finite_does_not_reach_json() -> None:
    assert normalise([math.nan, 3.0, math.inf, 4.0]) == [0.0, 0.6, 0.0, 0.8]


def test_base64_is_little_endian_float32() -> None:
    assert to_base64([1.0, -2.0]) == base64.b64encode(b"\x00\x00\x80\x3f\x00\x00\x00\xc0").decode()
    body = call(app_of(), PATH, {**EMBED, "encoding_format": "base64"}).json
    data = base64.b64decode(body["data"][0]["embedding"])
    assert struct.unpack("<2f", data) == pytest.approx(normalise([5.0, 104.0]))


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": None}, "input", "invalid_type"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input[1]", "invalid_value"),
        ({"input": ["a", 1]}, "input[1]", "invalid_type"),
        ({"input": [[1], []]}, "input[1]", "invalid_value"),
        ({"input": [1, 257]}, "input[1]", "invalid_value"),
        ({"input": [[1], [257]]}, "input[1][0]", "invalid_value"),
        ({"input": ["a"] * 65}, "input", "invalid_value"),
        ({"input": "a" * 513}, "input", "context_length_exceeded"),
        ({"input": [[1], [1] * 513]}, "input[1]", "context_length_exceeded"),
        ({"dimensions": 4}, "dimensions", "unsupported_parameter"),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"model": "x"}, "model", "model_not_found"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], param: str, code: str) -> None:
    model = ScriptedModel()
    answer = call(app_of(model), PATH, EMBED | fields)
    assert answer.status in (400, 404)
    assert (answer.error["param"], answer.error["code"]) == (param, code)
    assert not model.prompts, "refused before anything is computed"


def test_an_input_may_fill_the_context() -> None:
    assert call(app_of(), PATH, {"input": "a" * 512}).status == 200


class DeafTokenizer(ByteTokenizer):
    """Leaves out what it cannot write."""

    def encode(self, text: str, *, continued: bool = False) -> list[int]:
        return list(text.encode("ascii", errors="ignore"))


class LongTokenizer(ByteTokenizer):
    """Text may become more ids than it has bytes: a begin-of-text id comes first."""

    begin_of_text: int | None = 256


@pytest.mark.parametrize(
    ("tokenizer", "sent", "code"),
    [(DeafTokenizer(), "é", "invalid_value"), (LongTokenizer(), "a" * 512, "context_length_exceeded")],
)
def test_ids_are_counted_after_tokenising(tokenizer: ByteTokenizer, sent: str, code: str) -> None:
    model = ScriptedModel()
    model.tokenizer = tokenizer
    answer = call(app_of(model), PATH, {"input": sent})
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, "input", code)


def test_what_is_ignored_is_named() -> None:
    answer = call(app_of(), PATH, {**EMBED, "dimensions": None, "user": "ann", "zebra": 1})
    assert answer.headers["x-ignored-params"] == "zebra"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(StepFailed("no"), 500, "step_failed"), (ValueError("secret"), 500, "internal_error")],
)
def test_a_failure_is_one_error_and_ends_all(error: Exception, status: int, code: str) -> None:
    model = ScriptedModel(error, "never")
    answer = call(app_of(model), PATH, {"input": ["a", "b"]})
    assert (answer.status, answer.error["code"]) == (status, code)
    assert model.num_open == 0 and "secret" not in answer.body.decode()


class HalfBroken(ScriptedModel):
    """Waits for ever with inputs that begin with an a, and fails on others once it does."""

    async def embed(self, prompt: list[int], *, terms: Terms = DEFAULT_TERMS) -> list[float]:
        if prompt[0] == 97:
            return await super().embed(prompt, terms=terms)
        while not self.num_open:
            await asyncio.sleep(0)
        raise StepFailed("no")


def test_one_that_fails_ends_those_that_would_go_on() -> None:
    model = HalfBroken(Gate(), "never")
    assert call(app_of(model), PATH, {"input": ["a", "b", "a"]}).error["code"] == "step_failed"
    assert (model.num_open, model.num_aborted) == (0, 2)


def test_a_client_that_leaves_ends_all() -> None:
    async def leave() -> ScriptedModel:
        model = ScriptedModel(Gate(), "never")
        body = b'{"input":["a","b","c"]}'
        async with Connection(app_of(model), PATH, body).running() as connection:
            while model.num_open < 3:
                await asyncio.sleep(0)
            connection.close()
        return model

    model = asyncio.run(leave())
    assert (model.num_open, model.num_aborted) == (0, 3)


def test_a_real_model_gives_each_text_its_own_vector_alone_or_not() -> None:
    async def talk() -> list[Answer]:
        model = tiny_text_model(max_num_batched_tokens=16)
        app = app_of(model)
        model.start()
        try:
            texts = ["what is a token?", "what is a token!", "a"]
            asked = [{"input": texts}, *({"input": text} for text in texts)]
            return list(await asyncio.gather(*(ask(app, PATH, body) for body in asked)))
        finally:
            await model.close()

    together, *alone = asyncio.run(talk())
    vectors = [item["embedding"] for item in together.json["data"]]
    for vector, answer in zip(vectors, alone, strict=True):
        (one,) = answer.json["data"]
        assert one["embedding"] == pytest.approx(vector, abs=1e-5) and len(vector) == 32
        assert math.hypot(*vector) == pytest.approx(1.0)
    assert dot(vectors[0], vectors[1]) > dot(vectors[0], vectors[2]), "one letter apart"


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_openais_client() -> None:
    """It asks for base64 unless told otherwise."""
    with live(app_of()) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = client.embeddings.create(model="default", input=["hello", "a"])
        assert answer.data[0].embedding == pytest.approx(normalise([5.0, 104.0]))
        assert [item.index for item in answer.data] == [0, 1] and answer.usage.total_tokens == 6
        floats = client.embeddings.create(model="default", input="hello", encoding_format="float")
        assert floats.data[0].embedding == pytest.approx(answer.data[0].embedding)
