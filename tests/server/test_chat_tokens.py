"""What a chat says about its tokens: log probabilities, ids, times; streamed and not, against the model."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.kv.concat import NoCache
from tests.fakes import tiny_model, tiny_text_model
from tests.server.wire import CHAT, HELLO, Answer, app_of, ask, call

LENGTH = 768
MODEL = tiny_model(num_positions=LENGTH, dtype=torch.float64)
"""In double precision: when a stop string ends one choice, the step at which the others are fewer varies."""
PICK = {"type": "object", "properties": {"é": {"enum": ["漢字", "no"]}, "b": {"type": "boolean"}}}
TOOL = {"type": "function", "function": {"name": "pick", "parameters": PICK}}
FORMS: dict[str, dict[str, Any]] = {
    "text": {},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PICK}}},
    "choice": {"guided_choice": ["漢字", "漢文", "kanji"]},
    "call": {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": True},
    "may call": {"tools": [TOOL]},
}


def asked(*bodies: dict[str, Any]) -> list[Answer]:
    """Answers of one app with a real tiny model, which ends with every block free."""

    async def run() -> list[Answer]:
        model = tiny_text_model(MODEL, max_model_len=LENGTH, block_size=16)
        app = app_of(model)
        async with app.router.lifespan_context(app):
            answers = [await ask(app, CHAT, {**HELLO, **body}) for body in bodies]
            while model.stats()[0].num_running:
                await asyncio.sleep(0)
            model.engines[0].scheduler.check_integrity()
            assert model.stats()[0].num_free_blocks == model.stats()[0].num_blocks
        return answers

    return asyncio.run(run())


def rounded(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the last bits, which depend on how many sequences a step computes."""
    return [
        {name: rounded(value) if name == "top_logprobs" else value for name, value in entry.items()}
        | {"logprob": round(entry["logprob"], 9)}
        for entry in entries
    ]


def joined(answer: Answer, n: int) -> list[dict[str, Any]]:
    """A stream put together: what each choice of the whole reply would be."""
    choices: list[dict[str, Any]] = [
        {"content": "", "calls": [], "entries": [], "ids": [], "finish": None} for _ in range(n)
    ]
    for chunk in answer.chunks:
        for choice in chunk["choices"]:
            mine = choices[choice["index"]]
            assert mine["finish"] is None, "nothing follows a choice's finish"
            mine["content"] += choice["delta"].get("content", "")
            for part in choice["delta"].get("tool_calls", []):
                if "id" in part:
                    assert part["index"] == len(mine["calls"])
                    mine["calls"].append({"name": part["function"]["name"], "arguments": ""})
                mine["calls"][part["index"]]["arguments"] += part["function"]["arguments"]
            mine["entries"] += rounded((choice["logprobs"] or {"content": []})["content"])
            mine["ids"] += choice.get("token_ids", [])
            mine["finish"] = choice["finish_reason"]
    return choices


@settings(max_examples=25, deadline=None)
@given(
    form=st.sampled_from(sorted(FORMS)),
    n=st.sampled_from([1, 3]),
    seed=st.integers(0, 1000),
    stop=st.lists(st.sampled_from(["a", "\ufffd", "k", "~\ufffd"]), max_size=2),
    top=st.integers(0, 3),
    max_tokens=st.integers(1, 60),
)
def test_streamed_is_whole(form: str, n: int, seed: int, stop: list[str], top: int, max_tokens: int) -> None:
    """Law 4 for every mix of n, log probabilities, stop strings, forms, calls, and bytes that are no text."""
    body = {
        **FORMS[form],
        "n": n,
        "seed": seed,
        "stop": stop,
        "max_tokens": max_tokens,
        "logprobs": True,
        "top_logprobs": top,
        "return_token_ids": True,
    }
    alone = {**body, "cache_salt": "another"}  # so that its usage says nothing of the first one's prompt
    whole, streamed = asked(body, {**alone, "stream": True, "stream_options": {"include_usage": True}})
    choices = whole.json["choices"]
    assert joined(streamed, n) == [
        {
            "content": choice["message"]["content"] or "",
            "calls": [call["function"] for call in choice["message"].get("tool_calls", [])],
            "entries": rounded(choice["logprobs"]["content"]),
            "ids": choice["token_ids"],
            "finish": choice["finish_reason"],
        }
        for choice in choices
    ]
    assert streamed.chunks[-1]["usage"] == whole.json["usage"]
    assert streamed.chunks[0]["prompt_token_ids"] == whole.json["prompt_token_ids"]
    for choice in choices:
        assert [len(e["top_logprobs"]) for e in choice["logprobs"]["content"]] == [top] * len(
            choice["token_ids"]
        )


def test_values_are_the_teachers() -> None:
    (answer,) = asked(
        {"max_tokens": 16, "seed": 3, "logprobs": True, "return_token_ids": True, "prompt_logprobs": 0}
    )
    choice, prompt = answer.json["choices"][0], answer.json["prompt_token_ids"]
    ids = torch.tensor([prompt + choice["token_ids"]])
    with torch.inference_mode():
        logits = MODEL.logits(MODEL(ids, torch.arange(ids.shape[1]), NoCache()))[0]
    expected = logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[:, 0].tolist()
    given = [list(entry.values())[-1]["logprob"] for entry in answer.json["prompt_logprobs"][1:]]
    drawn = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    assert answer.json["prompt_logprobs"][0] is None
    assert given + drawn == pytest.approx(expected, abs=1e-4)


def test_a_prompt_is_computed_once_for_all_choices() -> None:
    async def run() -> tuple[Answer, Answer, int]:
        model = tiny_text_model(MODEL, max_model_len=LENGTH, block_size=16)
        app = app_of(model)
        async with app.router.lifespan_context(app):
            body = {**HELLO, "n": 4, "seed": 7, "max_tokens": 12}
            await app.state.lifecycle.until_ready()
            num_before = model.stats()[0].num_prompt_tokens
            first = await ask(app, CHAT, body)
            num_computed = model.stats()[0].num_prompt_tokens - num_before
            return first, await ask(app, CHAT, body), num_computed

    first, again, num_computed = asyncio.run(run())
    texts = [choice["message"]["content"] for choice in first.json["choices"]]
    assert len(set(texts)) == 4
    assert texts == [choice["message"]["content"] for choice in again.json["choices"]]
    assert num_computed == first.json["usage"]["prompt_tokens"]


@pytest.mark.parametrize("stream", [True, False])
def test_times_come_when_asked_for(stream: bool) -> None:
    (answer,) = asked({"max_tokens": 3, "n": 2, "timings_per_token": True, "stream": stream})
    timings = answer.chunks[-1]["timings"] if stream else answer.json["timings"]
    assert set(timings) == {"queue_ms", "prefill_ms", "ttft_ms", "decode_tok_s", "cached_tokens", "per_token"}
    assert timings["ttft_ms"] == pytest.approx(timings["queue_ms"] + timings["prefill_ms"], abs=0.01)
    assert [token["choice"] for token in timings["per_token"]].count(1) == 3
    assert all(token["ms"] >= 0 and token["batch"] >= 1 for token in timings["per_token"])
    assert "timings" not in (answer.chunks[0] if stream else asked({"max_tokens": 1})[0].json)


def test_running_usage_counts_up() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    (answer,) = asked({"max_tokens": 4, "stream": True, "stream_options": options})
    counts = [chunk["usage"]["completion_tokens"] for chunk in answer.chunks]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 4


def test_a_schema_beside_json_object_is_followed() -> None:
    form: dict[str, Any] = {"type": "json_object", "schema": PICK | {"required": ["é", "b"]}}
    (answer,) = asked({"response_format": form, "max_tokens": 64})
    picked = json.loads(answer.json["choices"][0]["message"]["content"])
    assert picked["é"] in ("漢字", "no") and isinstance(picked["b"], bool)
    (answer,) = asked({"response_format": form | {"type": "text"}})
    assert (answer.status, answer.error["param"]) == (400, "response_format.schema")


@pytest.mark.parametrize("form", [{"guided_choice": [" yes"]}, {"guided_regex": " yes"}])
@pytest.mark.parametrize("tools", [{}, {"tools": [TOOL], "tool_choice": "none"}])
def test_white_space_that_a_form_asks_for_is_not_dropped(form: dict[str, Any], tools: dict[str, Any]) -> None:
    whole, streamed = asked({**form, **tools}, {**form, **tools, "stream": True})
    assert whole.json["choices"][0]["message"]["content"] == " yes"
    assert joined(streamed, 1)[0]["content"] == " yes"


def test_min_tokens_keeps_the_reply_going() -> None:
    every_id = {"stop_token_ids": list(range(0, 257, 5)), "seed": 1, "max_tokens": 30}
    short, long = asked(every_id, {**every_id, "min_tokens": 20})
    assert short.json["usage"]["completion_tokens"] < 20 <= long.json["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"priority": 1 << 40}, "priority"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
        ({"timings": "yes"}, "timings"),
    ],
)
def test_what_contradicts_itself_or_is_out_of_range_is_refused(body: dict[str, Any], param: str) -> None:
    answer = call(app_of(), CHAT, {**HELLO, **body})
    assert (answer.status, answer.error["param"]) == (400, param)
