"""Request fields over checkpoint defaults. 0 is a value; null is none."""

from __future__ import annotations

from typing import Any

import pytest

from llm.config import GenerationDefaults
from llm.tokenizer.chars import CharTokenizer
from server.api.sampling import limit_tokens
from tests.fakes import ScriptedModel
from tests.server.wire import CHAT, HELLO, app_of, call

DEFAULTS = GenerationDefaults(
    temperature=0.8,
    top_k=50,
    top_p=0.9,
    min_p=0.02,
    repetition_penalty=1.1,
    max_tokens=160,
    stop=("\nUser:",),
    stop_token_ids=frozenset({7}),
)


def drawn(fields: dict[str, Any], **settings: Any) -> Any:
    """SamplingParams the model was asked with."""
    model = ScriptedModel(defaults=DEFAULTS)
    answer = call(app_of(model, **settings), CHAT, {**HELLO, **fields})
    assert answer.status == 200, answer.body
    assert answer.headers["x-seed"] == str(model.params[0].seed)
    return model.params[0]


@pytest.mark.parametrize(
    "fields", [{}, dict.fromkeys(["temperature", "top_k", "top_p", "max_tokens", "stop", "n"])]
)
def test_what_is_not_sent_comes_from_the_checkpoint(fields: dict[str, Any]) -> None:
    params = drawn(fields)
    assert (params.temperature, params.top_k, params.top_p, params.max_tokens) == (0.8, 50, 0.9, 160)
    assert params.stop == ("\nUser:",)
    assert params.stop_token_ids == {7, 256}, "the checkpoint's ends and the tokenizer's"


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"temperature": 0}, "temperature", 0.0),
        ({"temperature": 2}, "temperature", 2.0),
        ({"top_k": 0}, "top_k", 0),
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": 257}, "top_k", 257),
        ({"top_p": 1}, "top_p", 1.0),
        ({"min_p": 0.1}, "min_p", 0.1),
        ({"min_p": 0}, "min_p", 0.0),
        ({"min_p": None}, "min_p", 0.02),
        ({"repetition_penalty": 1}, "repetition_penalty", 1.0),
        ({}, "repetition_penalty", 1.1),
        ({"frequency_penalty": -2}, "frequency_penalty", -2.0),
        ({"presence_penalty": 0.5}, "presence_penalty", 0.5),
        ({"logit_bias": {"0": 1, "256": -100}}, "logit_bias", ((0, 1.0), (256, -100.0))),
        ({"logit_bias": {}}, "logit_bias", ()),
        ({"stop_token_ids": [9, 9]}, "stop_token_ids", frozenset({7, 9, 256})),
        ({"stop_token_ids": [9], "ignore_eos": True}, "stop_token_ids", frozenset({9})),
        ({"seed": 0}, "seed", 0),
        ({"seed": -(2**63)}, "seed", -(2**63)),
        ({"seed": 2**63 - 1}, "seed", 2**63 - 1),
        ({"max_tokens": 7}, "max_tokens", 7),
        ({"max_tokens": 7, "max_completion_tokens": 3}, "max_tokens", 3),
        ({"max_tokens": 7, "max_completion_tokens": None}, "max_tokens", 7),
        ({"max_tokens": 2**31}, "max_tokens", 512 - 22),
        ({"stop": "X"}, "stop", ("\nUser:", "X")),
        ({"stop": ["X", "Y", "X", "\nUser:"]}, "stop", ("\nUser:", "X", "Y")),
        ({"stop": []}, "stop", ("\nUser:",)),
        ({"ignore_eos": True}, "stop", ()),
        ({"ignore_eos": True, "stop": "X"}, "stop", ("X",)),
        ({"ignore_eos": True}, "stop_token_ids", frozenset()),
        ({"ignore_eos": False}, "stop_token_ids", frozenset({7, 256})),
    ],
)
def test_what_is_sent_is_what_is_drawn(fields: dict[str, Any], name: str, value: object) -> None:
    assert getattr(drawn(fields), name) == value


def test_a_checkpoints_top_k_beyond_its_vocabulary_keeps_all() -> None:
    """nanoGPT's policy has top_k 200, its character-level models have 65 ids."""
    model = ScriptedModel(defaults=GenerationDefaults(top_k=300))
    assert call(app_of(model), CHAT, HELLO).status == 200
    assert model.params[0].top_k == 257


def test_a_request_without_a_seed_gets_a_new_one_each_time() -> None:
    assert 0 <= drawn({}).seed < 2**53, "a double holds it: JavaScript can send it back"
    assert drawn({}).seed != drawn({}).seed


@pytest.mark.parametrize(
    ("asked", "default", "cap", "limit"),
    [
        (None, None, None, None),
        (None, 160, None, 160),
        (None, None, 9, 9),
        (None, 160, 9, 9),
        (500, 160, 9, 500),
    ],
)
def test_the_operators_cap_is_for_requests_that_do_not_ask(
    asked: int | None, default: int | None, cap: int | None, limit: int | None
) -> None:
    assert limit_tokens(asked, GenerationDefaults(max_tokens=default), cap) == limit
    if asked is None and default == 160:
        assert drawn({}, default_max_tokens=cap).max_tokens == limit


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("temperature", -0.1, "temperature"),
        ("temperature", 2.1, "temperature"),
        ("temperature", True, "temperature"),
        ("temperature", "1", "temperature"),
        ("temperature", 10**400, "temperature"),
        ("top_p", 0, "top_p"),
        ("top_p", 1.1, "top_p"),
        ("top_k", -2, "top_k"),
        ("top_k", 258, "top_k"),
        ("top_k", 1.5, "top_k"),
        ("min_p", -0.1, "min_p"),
        ("min_p", 1.1, "min_p"),
        ("frequency_penalty", 2.1, "frequency_penalty"),
        ("presence_penalty", "1", "presence_penalty"),
        ("repetition_penalty", 0, "repetition_penalty"),
        ("repetition_penalty", 11, "repetition_penalty"),
        ("logit_bias", {"257": 1}, "logit_bias"),
        ("logit_bias", {"5": 1, "05": 2}, "logit_bias.05"),
        ("logit_bias", {"5": 101}, "logit_bias.5"),
        ("logit_bias", {"5": None}, "logit_bias.5"),
        ("logit_bias", {"-5": 1}, "logit_bias.-5"),
        ("logit_bias", {"five": 1}, "logit_bias.five"),
        ("logit_bias", {" 5": 1}, "logit_bias. 5"),
        ("logit_bias", {"5\nERROR": 1}, "logit_bias.5?ERROR"),
        ("logit_bias", {"\u0665": 1}, "logit_bias.\u0665"),
        ("logit_bias", {"123456789": 1}, "logit_bias.123456789"),
        ("logit_bias", {str(i): 1 for i in range(1025)}, "logit_bias"),
        ("logit_bias", [5], "logit_bias"),
        ("stop_token_ids", [257], "stop_token_ids"),
        ("stop_token_ids", [-1], "stop_token_ids[0]"),
        ("stop_token_ids", [1, 1.5], "stop_token_ids[1]"),
        ("stop_token_ids", [5] * 65, "stop_token_ids"),
        ("stop_token_ids", 5, "stop_token_ids"),
        ("n", 0, "n"),
        ("n", 9, "n"),
        ("n", False, "n"),
        ("seed", 2**63, "seed"),
        ("seed", "7", "seed"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", -1, "max_tokens"),
        ("max_completion_tokens", 0, "max_completion_tokens"),
        ("stop", "", "stop[0]"),
        ("stop", ["a", "b", ""], "stop[2]"),
        ("stop", ["a", None], "stop[1]"),
        ("stop", ["x"] * 5, "stop"),
        ("stop", "x" * 257, "stop[0]"),
        ("stop", 5, "stop"),
        ("stop", {"a": 1}, "stop"),
    ],
)
def test_out_of_range_is_refused_by_name(field: str, value: object, path: str) -> None:
    answer = call(app_of(), CHAT, {**HELLO, field: value})
    assert (answer.status, answer.error["param"]) == (400, path)
    assert answer.error["code"] in ("invalid_value", "invalid_type")
    assert path in answer.error["message"]


def test_min_tokens_needs_a_token_that_does_not_end_the_reply() -> None:
    """A character model has so few ids that stop_token_ids can name them all."""
    model = ScriptedModel()
    model.tokenizer = CharTokenizer("".join(sorted({*"User: hello\nAssistant:"})))  # type: ignore[assignment]
    every = {"stop_token_ids": list(range(model.tokenizer.vocab_size))}
    assert call(app_of(model), CHAT, {**HELLO, **every}).status == 200
    answer = call(app_of(model), CHAT, {**HELLO, **every, "min_tokens": 1})
    assert (answer.status, answer.error["param"]) == (400, "min_tokens")
