"""POST /v1/score: what counts, what it adds up to, and that company changes nothing."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
import torch

from llm.chat.template import Message, PlainTemplate, Segment
from llm.kv.concat import NoCache
from llm.model import Decoder
from llm.tokenizer import ByteTokenizer
from llm.train.data import encode_chat
from server.api.score import MAX_LISTED
from tests.fakes import Gate, ScriptedModel, tiny_model, tiny_text_model
from tests.server.wire import Answer, Connection, app_of, ask, call, num_taken

PATH = "/v1/score"
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
TWO_TURNS = [*CHAT, {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "no"}]
SPOKEN = "User: hi\nAssistant: yes\n"
"""What the plain template makes of CHAT."""


def talk(model: Any, *bodies: dict[str, Any]) -> list[Answer]:
    """Answers of a real model to requests that come together."""

    async def all_of_them() -> list[Answer]:
        app = app_of(model)
        model.start()
        try:
            return list(await asyncio.gather(*(ask(app, PATH, body) for body in bodies)))
        finally:
            await model.close()

    return asyncio.run(all_of_them())


@torch.inference_mode()
def log_probs(model: Decoder, ids: list[int]) -> list[float]:
    """The oracle: of each id from the second on, by one forward pass over everything."""
    hidden = model(torch.tensor([ids]), torch.arange(len(ids)), NoCache())  # (1, T, C)
    values = torch.log_softmax(model.logits(hidden)[0].double(), dim=1)  # (T, V)
    return [float(values[i, token]) for i, token in enumerate(ids[1:])]


def test_the_whole_body() -> None:
    answer = call(app_of(), PATH, {"input": ["abc", CHAT], "logprobs": True})
    text, chat = answer.json.pop("data")
    assert answer.json | {"data": None} == {
        "object": "list",
        "data": None,
        "model": "scripted",
        "system_fingerprint": "fp_scripted",
        "usage": {
            "prompt_tokens": 3 + len(SPOKEN),
            "completion_tokens": 0,
            "total_tokens": 3 + len(SPOKEN),
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }
    first, second, third = text.pop("tokens")
    assert text == {
        "object": "score",
        "index": 0,
        "nll": 1.0,
        "num_tokens": 2,
        "mean": 0.5,
        "perplexity": math.exp(0.5),
    }
    assert first == {"id": 97, "token": "a", "bytes": [97], "logprob": None, "counts": False}
    assert second == {"id": 98, "token": "b", "bytes": [98], "logprob": -0.5, "counts": True}
    assert third["counts"] and (chat["index"], chat["num_tokens"]) == (1, len(" yes\n"))


def test_of_a_chat_the_assistants_tokens_count_and_no_others() -> None:
    body = {"messages": TWO_TURNS, "logprobs": True}
    (entry,) = call(app_of(), PATH, body).json["data"]
    counted = bytes(token["id"] for token in entry["tokens"] if token["counts"])
    assert counted == b" yes\n no\n"
    assert entry["num_tokens"] == len(counted) and entry["nll"] == len(counted) / 2


def test_a_token_is_listed_only_when_asked() -> None:
    for fields in ({}, {"logprobs": None}, {"logprobs": False}):
        (entry,) = call(app_of(), PATH, {"input": "abc", **fields}).json["data"]
        assert "tokens" not in entry


def test_it_is_what_one_forward_pass_says() -> None:
    model = tiny_model()
    text = "what is a token?"
    (answer,) = talk(
        tiny_text_model(model, max_num_batched_tokens=7), {"input": [text, CHAT], "logprobs": True}
    )
    plain, chat = answer.json["data"]
    expected = log_probs(model, list(text.encode()))
    assert [t["logprob"] for t in plain["tokens"][1:]] == pytest.approx(expected, abs=1e-5)
    assert plain["nll"] == pytest.approx(-sum(expected), abs=1e-4)
    assert plain["perplexity"] == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-4)
    messages = [Message("user", "hi"), Message("assistant", "yes")]
    example = encode_chat(ByteTokenizer(), PlainTemplate(), messages)
    assert [t["id"] for t in chat["tokens"]] == example.ids.tolist(), "the ids that training sees"
    assert [t["counts"] for t in chat["tokens"]] == example.trained.tolist(), "and the ones it weighs"
    scores = log_probs(model, example.ids.tolist())
    spoken = [score for score, counts in zip(scores, example.trained[1:], strict=True) if counts]
    assert chat["nll"] == pytest.approx(-sum(spoken), abs=1e-4)


def test_together_is_each_alone() -> None:
    items: list[Any] = ["what is a token?", TWO_TURNS, "ab", CHAT, "the last of five"]
    together, *alone = talk(tiny_text_model(), {"input": items}, *({"input": [item]} for item in items))
    for entry, answer in zip(together.json["data"], alone, strict=True):
        (one,) = answer.json["data"]
        assert (
            one["nll"] == pytest.approx(entry["nll"], abs=1e-4) and one["num_tokens"] == entry["num_tokens"]
        )
    assert len({entry["nll"] for entry in together.json["data"]}) == len(items)


def test_a_text_may_be_as_long_as_a_prompt() -> None:
    (fits, long) = talk(tiny_text_model(), {"input": "a" * 63}, {"input": "a" * 64})
    assert fits.json["data"][0]["num_tokens"] == 62
    assert (long.status, long.error["code"]) == (400, "context_length_exceeded")
    assert "64 tokens" in long.error["message"] and "score 63" in long.error["message"]


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({}, "input", "missing_required_parameter"),
    ({"input": "ab", "messages": CHAT}, "input", "invalid_value"),
    ({"input": ""}, "input", "invalid_value"),
    ({"input": "a"}, "input", "invalid_value"),
    ({"input": []}, "input", "invalid_value"),
    ({"input": 4}, "input", "invalid_type"),
    ({"input": {"messages": CHAT}}, "input", "invalid_type"),
    ({"input": [1, 2]}, "input[0]", "invalid_type"),
    ({"input": ["ab", ""]}, "input[1]", "invalid_value"),
    ({"input": ["ab", []]}, "input[1]", "invalid_value"),
    ({"input": ["ab", ["a"]]}, "input[1][0]", "invalid_type"),
    ({"input": [CHAT, [{"role": "king", "content": "a"}]]}, "input[1][0].role", "invalid_value"),
    ({"input": [[{"role": "user"}, *CHAT]]}, "input[0][0].content", "missing_required_parameter"),
    ({"input": [[{**CHAT[1], "function_call": {}}]]}, "input[0][0].function_call", "unsupported_parameter"),
    ({"input": ["ab"] * 65}, "input", "invalid_value"),
    ({"input": "a" * 513}, "input", "context_length_exceeded"),
    ({"input": ["ab", "a" * 512]}, "input[1]", "context_length_exceeded"),
    ({"input": [[{**CHAT[1], "content": "a" * 999}]]}, "input[0]", "context_length_exceeded"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": CHAT[:1]}, "messages", "invalid_value"),
    ({"messages": [{**CHAT[1], "content": "a" * 500}]}, "messages", "context_length_exceeded"),
    ({"messages": CHAT, "tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    ({"messages": CHAT, "chat_template": "x"}, "chat_template", "unsupported_parameter"),
    ({"messages": CHAT, "add_generation_prompt": True}, "add_generation_prompt", "unsupported_parameter"),
    ({"messages": CHAT, "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs", "unsupported_parameter"),
    ({"input": "ab", "top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
    ({"input": "ab", "logprobs": 1}, "logprobs", "invalid_type"),
    ({"input": "ab", "model": "x"}, "model", "model_not_found"),
]


@pytest.mark.parametrize(("body", "param", "code"), BAD)
def test_what_cannot_be_is_refused_by_name(body: dict[str, Any], param: str, code: str) -> None:
    model = ScriptedModel()
    answer = call(app_of(model), PATH, body)
    assert answer.status in (400, 404)
    assert (answer.error["param"], answer.error["code"]) == (param, code), answer.body
    assert not model.prompts, "refused before anything is computed"


class Unmarked(PlainTemplate):
    """Says of no token that it is the assistant's, and writes `earlier` in replies that others follow."""

    earlier = ""

    def render(self, messages: Any, **options: Any) -> Any:
        marks = {"assistant": self.earlier}
        said = [Message(m.role, marks.get(m.role, "") + m.content) for m in messages[:-1]] + [messages[-1]]
        return [Segment(s.text, control=s.control) for s in super().render(said, **options)]


def test_of_a_template_that_marks_no_reply_the_same_tokens_count() -> None:
    model, body = ScriptedModel(), {"messages": TWO_TURNS, "logprobs": True}
    expected = call(app_of(model), PATH, body).json["data"]
    model.template = Unmarked()
    assert call(app_of(model), PATH, body).json["data"] == expected


def test_where_turns_change_each_reply_is_read_after_its_own_prompt() -> None:
    model = ScriptedModel()
    model.template = changing = Unmarked()
    changing.earlier = "* "
    app = app_of(model)
    answer = call(app, PATH, {"messages": TWO_TURNS, "logprobs": True})
    (entry,) = answer.json["data"]
    assert bytes(t["id"] for t in entry["tokens"] if t["counts"]) == b" yes\n no\n"
    assert [t["logprob"] for t in entry["tokens"]].count(None) == len(model.prompts) == 2
    assert answer.json["usage"]["prompt_tokens"] == sum(map(len, model.prompts))
    assert num_taken(app) == 0, "a place for each, and none is left"


def test_what_is_rendered_for_each_reply_is_bounded() -> None:
    model = ScriptedModel(max_model_len=1 << 14)
    model.template = Unmarked()
    many = [turn for _ in range(46) for turn in CHAT]  # 92 messages, 46 replies
    answer = call(app_of(model), PATH, {"input": ["ab", many]})
    assert (answer.status, answer.error["param"]) == (400, "input[1]")
    assert call(app_of(model), PATH, {"input": ["ab", many[:90]]}).status == 200
    model.template = PlainTemplate()
    assert call(app_of(model), PATH, {"input": ["ab", many]}).status == 200, "one rendering is enough"


class LongTokenizer(ByteTokenizer):
    begin_of_text: int | None = 256


def test_a_text_begins_as_the_model_was_trained() -> None:
    """Then its first own token follows something."""
    model = ScriptedModel()
    model.tokenizer = LongTokenizer()
    (entry,) = call(app_of(model), PATH, {"input": "a", "logprobs": True}).json["data"]
    assert [(t["id"], t["counts"]) for t in entry["tokens"]] == [(256, False), (97, True)]


def test_what_is_ignored_is_named_also_in_a_list_of_conversations() -> None:
    named = [{**CHAT[0], "zebra": 1}, CHAT[1]]
    answer = call(app_of(), PATH, {"input": ["ab", named], "user": "ann", "top_logprobs": 0, "yak": 1})
    assert answer.headers["x-ignored-params"] == "input[][].zebra,yak"
    assert call(app_of(strict=True), PATH, {"input": "ab", "yak": 1}).error["param"] == "yak"


def test_it_waits_on_the_terms_of_any_request() -> None:
    model = ScriptedModel()
    body = {"input": ["ab", "cd"], "priority": 3, "cache_salt": "s"}
    assert call(app_of(model), PATH, body).status == 200
    assert [(terms.priority, terms.cache_salt) for terms in model.terms] == [(3, "s")] * 2
    full = app_of(ScriptedModel(), max_num_seqs=1, max_num_queued_seqs=0)
    asked = call(full, PATH, {"input": "ab"})
    assert (asked.status, num_taken(full)) == (200, 0)


def test_a_client_that_leaves_ends_all() -> None:
    async def leave() -> ScriptedModel:
        model = ScriptedModel(Gate(), "never")
        body = b'{"input":["ab","cd","ef"]}'
        async with Connection(app_of(model), PATH, body).running() as connection:
            while model.num_open < 3:
                await asyncio.sleep(0)
            connection.close()
        return model

    model = asyncio.run(leave())
    assert (model.num_open, model.num_aborted) == (0, 3)


def test_a_reply_lists_no_more_tokens_than_it_can() -> None:
    model = ScriptedModel(max_model_len=1 << 18)
    answer = call(app_of(model), PATH, {"input": "a" * (MAX_LISTED + 1), "logprobs": True})
    assert (answer.status, answer.error["param"]) == (400, "logprobs")
    many = call(app_of(model), PATH, {"input": ["a" * MAX_LISTED] * 5})
    assert (many.status, many.error["param"]) == (400, "input"), "a sum has its own bound"
    assert not model.prompts
