"""POST /tokenize and /detokenize: ids and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.tokenizer import ByteTokenizer
from server.api.tokenize import SLICE, write_answer
from tests.fakes import ScriptedModel
from tests.server.wire import HELLO, app_of, call

APP = app_of()


def test_a_prompt_as_ids() -> None:
    answer = call(APP, "/tokenize", {"prompt": "hé", "model": "scripted"})
    assert answer.json == {"count": 3, "max_model_len": 512, "tokens": [104, 195, 169], "token_strs": None}


def test_tokens_as_strings() -> None:
    answer = call(APP, "/tokenize", {"prompt": "hé", "return_token_strs": True})
    assert answer.json["token_strs"] == ["h", "\ufffd", "\ufffd"]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_text_comes_back_as_it_was(text: str) -> None:
    ids = call(APP, "/tokenize", {"prompt": text}).json["tokens"]
    assert ids == list(text.encode())
    assert call(APP, "/detokenize", {"tokens": ids}).json == {"prompt": text}


def test_messages_become_the_ids_a_chat_would_have() -> None:
    for options in ({}, {"add_generation_prompt": False}, {"chat_template_kwargs": {}}):
        asked = {**HELLO, **options}
        rendered = call(APP, "/apply-template", asked).json
        answer = call(APP, "/tokenize", asked).json
        assert answer["tokens"] == rendered["token_ids"] and answer["count"] == len(rendered["token_ids"])


def test_a_prompt_that_no_context_could_hold_is_counted_all_the_same() -> None:
    assert call(APP, "/tokenize", {"prompt": "a" * 100_000}).json["count"] == 100_000
    assert call(APP, "/detokenize", {"tokens": [97] * 100_000}).json["prompt"] == "a" * 100_000


@pytest.mark.parametrize("num", [0, 1, SLICE - 1, SLICE, SLICE + 1, 3 * SLICE])
def test_an_answer_written_in_slices_is_the_answer(num: int) -> None:
    lists = {"tokens": list(range(num)), "token_strs": [f'"é{i}\n' for i in range(num)], "none": None}
    written = write_answer({"count": num}, lists)
    assert json.loads(written) == {"count": num, **lists}
    assert written == json.dumps({"count": num, **lists}, ensure_ascii=False, separators=(",", ":")).encode()


class BeginningTokenizer(ByteTokenizer):
    begin_of_text: int | None = 256


@pytest.mark.parametrize(("sent", "begins"), [(None, True), (True, True), (False, False)])
def test_a_text_begins_as_the_model_was_trained(sent: bool | None, begins: bool) -> None:
    model = ScriptedModel()
    model.tokenizer = BeginningTokenizer()
    answer = call(app_of(model), "/tokenize", {"prompt": "a", "add_special_tokens": sent})
    assert answer.json["tokens"] == [256, 97][not begins :]
    assert call(app_of(model), "/detokenize", {"tokens": [256, 97]}).json == {"prompt": "a"}


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("/tokenize", {}, "prompt", "missing_required_parameter"),
        ("/tokenize", {"prompt": ["a"]}, "prompt", "invalid_type"),
        ("/tokenize", {"prompt": "a", **HELLO}, "prompt", "invalid_value"),
        ("/tokenize", {"messages": []}, "messages", "invalid_value"),
        ("/tokenize", {"prompt": "a", "model": "x"}, "model", "model_not_found"),
        ("/detokenize", {}, "tokens", "missing_required_parameter"),
        ("/detokenize", {"tokens": "a"}, "tokens", "invalid_type"),
        ("/detokenize", {"tokens": [1, 257]}, "tokens[1]", "invalid_value"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]", "invalid_value"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]", "invalid_type"),
        ("/detokenize", {"tokens": [1 << 70]}, "tokens[0]", "invalid_value"),
    ],
)
def test_what_cannot_be_is_refused_by_name(path: str, body: dict[str, Any], param: str, code: str) -> None:
    answer = call(APP, path, body)
    assert answer.status in (400, 404)
    assert (answer.error["param"], answer.error["code"]) == (param, code)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_what_is_ignored_is_named(path: str) -> None:
    body: dict[str, Any] = {"prompt": "a"} if path == "/tokenize" else {"tokens": []}
    assert call(APP, path, {**body, "zebra": 1}).headers["x-ignored-params"] == "zebra"
    assert "x-ignored-params" not in call(APP, path, body).headers
    assert call(app_of(strict=True), path, {**body, "zebra": 1}).error["param"] == "zebra"


def test_control_tokens_of_a_conversation_are_its_templates_alone() -> None:
    answer = call(APP, "/tokenize", {**HELLO, "add_special_tokens": True})
    assert answer.headers["x-ignored-params"] == "add_special_tokens"
    assert "x-ignored-params" not in call(APP, "/tokenize", {**HELLO, "add_special_tokens": False}).headers
