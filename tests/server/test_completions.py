"""POST /v1/completions: bodies, streamed == whole, and log probabilities that are the model's own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config import GenerationDefaults
from llm.errors import StepFailed
from llm.kv.concat import NoCache
from llm.sequence import FinishReason
from llm.tokenizer import ByteTokenizer
from server.api.logprobs import empty_completion_logprobs
from tests.fakes import Gate, ScriptedModel, tiny_model, tiny_text_model
from tests.server.wire import Answer, Connection, app_of, ask, call, live

PATH = "/v1/completions"
HI: dict[str, Any] = {"prompt": "hi"}


def test_the_whole_body() -> None:
    body = call(app_of(), PATH, HI).json
    assert body.pop("id").startswith("cmpl-") and isinstance(body.pop("created"), int)
    assert body == {
        "object": "text_completion",
        "model": "scripted",
        "system_fingerprint": "fp_scripted",
        "choices": [{"index": 0, "text": "Hello there.", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 3,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


@pytest.mark.parametrize(
    ("sent", "prompts"),
    [
        ("hi", [[104, 105]]),
        (["hi", "a"], [[104, 105], [97]]),
        ([104, 105], [[104, 105]]),
        ([[104, 105], [256]], [[104, 105], [256]]),
        ("", [[256]]),
        (["a", ""], [[97], [256]]),
    ],
)
def test_prompts_are_text_or_ids_one_or_many(sent: Any, prompts: list[list[int]]) -> None:
    model = ScriptedModel()
    body = call(app_of(model), PATH, {"prompt": sent}).json
    assert model.prompts == prompts
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert [choice["index"] for choice in body["choices"]] == list(range(len(prompts)))


class BeginningTokenizer(ByteTokenizer):
    begin_of_text: int | None = 256


class EndlessTokenizer(ByteTokenizer):
    end_of_text: int | None = None


def test_a_prompt_begins_as_the_model_was_trained() -> None:
    model = ScriptedModel()
    model.tokenizer = BeginningTokenizer()
    app = app_of(model)
    for sent in (
        {"prompt": "a"},
        {"prompt": ""},
        {"prompt": [97]},
        {"prompt": "a", "add_special_tokens": False},
    ):
        assert call(app, PATH, sent).status == 200
    assert model.prompts == [[256, 97], [256], [97], [97]]


def test_an_empty_prompt_needs_a_token_that_a_text_begins_with() -> None:
    model = ScriptedModel()
    model.tokenizer = EndlessTokenizer()
    answer = call(app_of(model), PATH, {"prompt": ["a", ""]})
    assert (answer.status, answer.error["param"]) == (400, "prompt[1]")


@pytest.mark.parametrize(
    ("fields", "cap", "max_tokens"),
    [({}, None, 16), ({}, 5, 5), ({}, 50, 16), ({"max_tokens": 40}, 5, 40), ({"max_tokens": 999}, None, 510)],
)
def test_max_tokens(fields: dict[str, int], cap: int | None, max_tokens: int) -> None:
    model = ScriptedModel(defaults=GenerationDefaults(max_tokens=160))
    call(app_of(model, default_max_tokens=cap), PATH, HI | fields)
    assert model.params[0].max_tokens == max_tokens


def test_the_templates_stops_are_not_a_completions() -> None:
    model = ScriptedModel(defaults=GenerationDefaults(stop=("\n",), stop_token_ids=frozenset([10])))
    call(app_of(model), PATH, {**HI, "stop": "x"})
    assert model.params[0].stop == ("x",)
    assert model.params[0].stop_token_ids == {10, 256}, "what ends a text ends it here too"


def test_fields_reach_the_engine() -> None:
    model = ScriptedModel()
    fields = {"n": 2, "logprobs": 3, "priority": -4, "temperature": 0.0, "seed": 9, "prompt_logprobs": 2}
    call(app_of(model), PATH, HI | fields)
    (params,) = model.params
    assert (params.logprobs, params.prompt_logprobs, params.temperature, params.seed) == (3, 2, 0.0, 9)
    assert [terms.priority for terms in model.terms] == [-4]


def test_seeds_of_several_prompts() -> None:
    model = ScriptedModel()
    answer = call(app_of(model), PATH, {"prompt": ["a", "a", "a"]})
    seeds = [params.seed for params in model.params]
    assert answer.headers["x-seed"] == ",".join(map(str, seeds)) and len(set(seeds)) == 3
    given_one = call(app_of(model), PATH, {"prompt": ["a", "a"], "seed": 4})
    assert given_one.headers["x-seed"] == "4" and [p.seed for p in model.params[3:]] == [4, 4]


def test_nothing_but_echo_is_a_reply_of_no_tokens() -> None:
    body = call(app_of(), PATH, {"prompt": "hé", "echo": True, "max_tokens": 0, "logprobs": 0}).json
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("hé", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -0.5]
    assert body["usage"]["completion_tokens"] == 0


def test_prompt_logprobs_are_vllms() -> None:
    body = call(app_of(), PATH, {"prompt": ["ab", "c"], "n": 2, "prompt_logprobs": 1}).json
    scored = [None, {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}}]
    assert [choice["prompt_logprobs"] for choice in body["choices"]] == [scored, scored, [None], [None]]


def test_an_echos_log_probabilities_are_as_many_as_were_asked_for_each() -> None:
    body = call(app_of(), PATH, {**HI, "echo": True, "logprobs": 0, "prompt_logprobs": 2}).json
    (choice,) = body["choices"]
    assert choice["logprobs"]["top_logprobs"][1] == {"i": -0.5}
    assert list(choice["prompt_logprobs"][1]) == ["105", "97"]


@pytest.mark.parametrize("echo", [True, False])
def test_log_probabilities_of_prompts_are_bounded(echo: bool) -> None:
    field = {"logprobs": 20, "echo": True} if echo else {"prompt_logprobs": 20}
    asked = {"prompt": [[97] * 500] * 64, "max_tokens": 1, **field}
    answer = call(app_of(), PATH, asked)
    assert (answer.status, answer.error["param"]) == (400, "logprobs" if echo else "prompt_logprobs")
    assert "672000" in answer.error["message"] and "524288" in answer.error["message"]
    assert call(app_of(), PATH, {**asked, "prompt": [[97] * 20] * 64}).status == 200


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", "invalid_type"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [1, 257]}, "prompt[1]", "invalid_value"),
        ({"prompt": ["a"] * 65}, "prompt", "invalid_value"),
        ({"prompt": "a" * 513}, "prompt", "context_length_exceeded"),
        ({"prompt": "a" * 512}, "prompt", "context_length_exceeded"),
        ({"prompt": [[1], [1] * 512]}, "prompt[1]", "context_length_exceeded"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": -1, "echo": True}, "max_tokens", "invalid_value"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"n": 9}, "n", "invalid_value"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"best_of": 1, "n": 2}, "best_of", "unsupported_parameter"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"stream": True, "prompt_logprobs": 0}, "prompt_logprobs", "invalid_value"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "invalid_value"),
        ({"guided_regex": "("}, "guided_regex", "invalid_value"),
        ({"model": "x"}, "model", "model_not_found"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], param: str, code: str) -> None:
    model = ScriptedModel()
    answer = call(app_of(model), PATH, HI | fields)
    assert answer.status in (400, 404)
    assert (answer.error["param"], answer.error["code"]) == (param, code)
    assert not model.prompts, "refused before anything is computed"


def test_a_prompt_too_long_is_not_told_to_shorten_its_messages() -> None:
    message = call(app_of(), PATH, {"prompt": [1] * 512}).error["message"]
    assert "512" in message and "messages" not in message and "drop_oldest" not in message


@pytest.mark.parametrize(
    "fields",
    [{"suffix": ""}, {"suffix": None}, {"best_of": 1}, {"best_of": 3, "n": 3}, {"user": "a", "store": False}],
)
def test_fields_that_ask_for_nothing_pass(fields: dict[str, Any]) -> None:
    answer = call(app_of(), PATH, HI | fields)
    assert answer.status == 200, answer.body
    assert "x-ignored-params" not in answer.headers


def test_what_is_ignored_is_named() -> None:
    options = {"stream": True, "stream_options": {"include_obfuscation": True}, "zebra": 1}
    answer = call(app_of(), PATH, HI | options)
    assert answer.headers["x-ignored-params"] == "stream_options.include_obfuscation,zebra"
    assert call(app_of(strict=True), PATH, {**HI, "zebra": 1}).error["param"] == "zebra"


def joined(answer: Answer, num_choices: int, *, logprobs: bool = False) -> list[dict[str, Any]]:
    """A stream's chunks as the choices of a whole reply."""
    whole: list[dict[str, Any]] = [
        {"index": i, "text": "", "logprobs": empty_completion_logprobs() if logprobs else None}
        for i in range(num_choices)
    ]
    for chunk in answer.chunks:
        for choice in chunk["choices"]:
            mine = whole[choice["index"]]
            assert "finish_reason" not in mine, "nothing comes after a choice's end"
            mine["text"] += choice["text"]
            for name, values in (choice["logprobs"] or {}).items():
                mine["logprobs"][name] += values
            if "token_ids" in choice:
                mine["token_ids"] = mine.get("token_ids", []) + choice["token_ids"]
            if "prompt_token_ids" in choice:
                assert "prompt_token_ids" not in mine
                mine["prompt_token_ids"] = choice["prompt_token_ids"]
            if choice["finish_reason"] is not None:
                assert choice["text"] == ""
                mine["finish_reason"] = choice["finish_reason"]
    return whole


scripts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=6)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
OPTIONS = st.fixed_dictionaries(
    {"prompt": texts | st.lists(texts, min_size=1, max_size=3), "n": st.integers(1, 3)},
    optional={
        "echo": st.booleans(),
        "logprobs": st.integers(0, 3),
        "return_token_ids": st.booleans(),
        "max_tokens": st.integers(1, 4),
        "timings_per_token": st.booleans(),
    },
)


@given(script=scripts, asked=OPTIONS)
def test_streamed_joined_is_the_whole_reply(script: list[str], asked: dict[str, Any]) -> None:
    whole = call(app_of(ScriptedModel(*script)), PATH, asked)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = call(app_of(ScriptedModel(*script)), PATH, asked | options)
    choices = whole.json["choices"]
    assert joined(streamed, len(choices), logprobs="logprobs" in asked) == choices
    assert streamed.chunks[-1]["usage"] == whole.json["usage"]
    assert streamed.chunks[-1].get("timings") == whole.json.get("timings")


def test_errors_after_the_first_chunk_are_frames() -> None:
    model = ScriptedModel("a", StepFailed("no"), "never")
    answer = call(app_of(model), PATH, {"prompt": ["a", "b"], "stream": True})
    assert answer.chunks[-1]["error"]["code"] == "step_failed"
    assert model.num_open == 0
    early = call(app_of(ScriptedModel(StepFailed("no"), "never")), PATH, {**HI, "stream": True, "echo": True})
    assert early.status == 500, "before the first token an error is an HTTP error"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_the_replies_to_all_prompts(stream: bool) -> None:
    async def leave() -> ScriptedModel:
        model = ScriptedModel("first", Gate(), "never")
        body = b'{"prompt":["a","b","c"],"stream":' + (b"true}" if stream else b"false}")
        async with Connection(app_of(model), PATH, body).running() as connection:
            if stream:
                while b"first" not in ((await connection.next()) or {}).get("body", b""):
                    pass
            while model.num_open < 3:
                await asyncio.sleep(0)
            connection.close()
        return model

    model = asyncio.run(leave())
    assert (model.num_open, model.num_aborted) == (0, 3)


Talk = Callable[..., Awaitable[Answer]]


def with_tiny(talk: Callable[[Talk], Awaitable[Any]], **bounds: int) -> Any:
    """Talk to the tiny decoder through the whole house."""

    async def run() -> Any:
        model = tiny_text_model(**bounds)
        app = app_of(model)
        model.start()
        try:
            return await talk(lambda **fields: ask(app, PATH, fields))
        finally:
            await model.close()

    return asyncio.run(run())


def teacher_forced(ids: list[int]) -> torch.Tensor:
    """Log probabilities of every next token, (T, V): the slow oracle."""
    with torch.inference_mode():
        decoder = tiny_model()
        hidden = decoder(torch.tensor([ids]), torch.arange(len(ids)), NoCache())
        return decoder.logits(hidden)[0].log_softmax(-1)


HARD = "a€é😀\n 漢"


def test_log_probabilities_are_the_models_own() -> None:
    async def talk(post: Talk) -> Answer:
        return await post(
            prompt=HARD,
            echo=True,
            logprobs=3,
            max_tokens=20,
            temperature=1.0,
            seed=3,
            ignore_eos=True,
            return_token_ids=True,
        )

    for budget in (512, 4):  # the prompt at once, and in pieces
        (choice,) = with_tiny(talk, max_num_batched_tokens=budget).json["choices"]
        ids = choice["prompt_token_ids"] + choice["token_ids"]
        assert choice["prompt_token_ids"] == list(HARD.encode()) and len(choice["token_ids"]) == 20
        expected = teacher_forced(ids)
        got = choice["logprobs"]
        assert {len(values) for values in got.values()} == {len(ids)}
        assert got["token_logprobs"][0] is got["top_logprobs"][0] is None
        for i in range(1, len(ids)):
            assert got["token_logprobs"][i] == pytest.approx(float(expected[i - 1, ids[i]]), abs=1e-4)
            best = expected[i - 1].topk(3).values.tolist()
            top = got["top_logprobs"][i]
            assert sorted(top.values(), reverse=True)[:3] == pytest.approx(best, abs=1e-4)
            assert top[got["tokens"][i]] == got["token_logprobs"][i] and len(top) in (3, 4)


def test_names_of_tokens_are_the_texts_exact_bytes() -> None:
    async def talk(post: Talk) -> Answer:
        return await post(prompt=HARD, echo=True, logprobs=0, max_tokens=30, seed=1, ignore_eos=True)

    (choice,) = with_tiny(talk).json["choices"]
    names = choice["logprobs"]["tokens"]
    data = b"".join(exact_bytes(name) for name in names)
    assert data.startswith(HARD.encode()) and choice["text"].startswith(HARD)
    assert data.decode(errors="replace") == choice["text"]
    for name, offset in zip(names, choice["logprobs"]["text_offset"], strict=True):
        if not name.startswith("bytes:"):
            assert choice["text"][offset : offset + len(name)] == name


def exact_bytes(name: str) -> bytes:
    if name.startswith("bytes:"):
        return bytes(int(digits, 16) for digits in re.findall(r"\\x(..)", name))
    return name.encode()


@settings(max_examples=12)
@given(
    prompts=st.lists(st.text(st.sampled_from("ab€é\n"), min_size=1, max_size=9), min_size=1, max_size=4),
    n=st.integers(1, 3),
    echo=st.booleans(),
    stop=st.lists(st.text(st.sampled_from("aet \u0003"), min_size=1, max_size=2), max_size=3),
)
def test_a_real_model_says_the_same_streamed_or_not_together_or_alone(
    prompts: list[str], n: int, echo: bool, stop: list[str]
) -> None:
    asked: dict[str, Any] = {"n": n, "echo": echo, "stop": stop, "logprobs": 1, "seed": 7, "max_tokens": 8}

    async def talk(post: Talk) -> list[Answer]:
        together = [post(prompt=prompts, **asked), post(prompt=prompts, stream=True, **asked)]
        alone = [post(prompt=prompt, **asked) for prompt in prompts]
        return list(await asyncio.gather(*together, *alone))

    whole, streamed, *alone = with_tiny(talk)
    choices = whole.json["choices"]
    assert joined(streamed, len(choices), logprobs=True) == rounded(choices)
    for i, answer in enumerate(alone):
        mine = [{**choice, "index": i * n + choice["index"]} for choice in answer.json["choices"]]
        assert mine == rounded(choices[i * n : (i + 1) * n])
    assert whole.json["usage"]["prompt_tokens"] == sum(len(prompt.encode()) for prompt in prompts)
    if echo:
        assert all(choice["text"].startswith(prompts[choice["index"] // n]) for choice in choices)


def rounded(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Log probabilities to what float32 keeps in any batch."""

    def near(value: Any) -> Any:
        if isinstance(value, float):
            return pytest.approx(value, abs=1e-4)
        if isinstance(value, dict):
            return {key: near(item) for key, item in value.items()}
        return [near(item) for item in value] if isinstance(value, list) else value

    return [near(choice) for choice in choices]


def harness_scores(choices: list[dict[str, Any]], contexts: list[int]) -> list[tuple[float, bool]]:
    """As lm-evaluation-harness reads them: the last token is the one drawn, and is dropped."""
    scores = []
    for choice, start in zip(sorted(choices, key=lambda choice: int(choice["index"])), contexts, strict=True):
        values = choice["logprobs"]["token_logprobs"][start:-1]
        top = choice["logprobs"]["top_logprobs"][start:-1]
        best = [max(one.values()) for one in top]
        scores.append((sum(values), values == best))
    return scores


def greedy_text(num_tokens: int) -> list[int]:
    ids = [97, 98]
    while len(ids) < num_tokens:
        ids.append(int(teacher_forced(ids)[-1].argmax()))
    return ids


def test_a_harness_scores_texts_as_the_model_does() -> None:
    greedy = greedy_text(12)
    prompts, contexts = [greedy, [*greedy[:8], 97, 98], [97, 98, 99]], [2, 8, 1]
    asked = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}

    async def talk(post: Talk) -> list[Answer]:
        return [await post(prompt=prompts, **asked), *[await post(prompt=one, **asked) for one in prompts]]

    together, *alone = with_tiny(talk)
    expected = []
    for ids, start in zip(prompts, contexts, strict=True):
        logprobs = teacher_forced(ids)
        values = [float(logprobs[i - 1, ids[i]]) for i in range(start, len(ids))]
        is_best = all(int(logprobs[i - 1].argmax()) == ids[i] for i in range(start, len(ids)))
        expected.append((pytest.approx(sum(values), abs=1e-3), is_best))
    assert [is_best for _, is_best in expected] == [True, False, False]
    assert harness_scores(together.json["choices"], contexts) == expected
    singly = [answer.json["choices"][0] | {"index": i} for i, answer in enumerate(alone)]
    assert harness_scores(singly, contexts) == expected


@pytest.mark.parametrize("ends_with", ["eos", "stop_token_ids"])
def test_a_harness_counts_the_drawn_token_also_when_it_ends_the_text(ends_with: str) -> None:
    """It drops the last entry without looking: an end without one would cost it a token of the text."""
    end = 256 if ends_with == "eos" else 120
    extra = {} if ends_with == "eos" else {"stop_token_ids": [end]}

    async def talk(post: Talk) -> Answer:
        forced = {"logit_bias": {str(end): 100}, "max_tokens": 1, "temperature": 0}
        return await post(prompt="ab", echo=True, logprobs=1, **forced, **extra)

    body = with_tiny(talk).json
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")
    assert body["usage"]["completion_tokens"] == 1
    logprobs = choice["logprobs"]
    assert len(logprobs["token_logprobs"]) == 3 and logprobs["text_offset"] == [0, 1, 2]
    assert logprobs["token_logprobs"][2] == pytest.approx(float(teacher_forced([97, 98])[1, end]), abs=1e-4)


@pytest.mark.parametrize("stream", [True, False])
def test_a_completion_follows_a_grammar(stream: bool) -> None:
    async def talk(post: Talk) -> Answer:
        choices = ["red", "greenish"]
        return await post(prompt="ab", guided_choice=choices, n=3, seed=2, stream=stream, max_tokens=20)

    answer = with_tiny(talk)
    for choice in joined(answer, 3) if stream else answer.json["choices"]:
        assert choice["text"] in ("red", "greenish") and choice["finish_reason"] == "stop"


def test_several_prompts_in_a_small_engine_all_end() -> None:
    """More sequences than the engine runs at once, more blocks than it has."""

    async def talk(post: Talk) -> Answer:
        return await post(
            prompt=["abcdefgh"] * 12, n=3, max_tokens=20, echo=True, logprobs=0, ignore_eos=True
        )

    body = with_tiny(talk, max_num_seqs=3, num_blocks=20).json
    assert len(body["choices"]) == 36 and body["usage"]["completion_tokens"] == 36 * 20
    assert {len(choice["logprobs"]["tokens"]) for choice in body["choices"]} == {28}
    assert {choice["finish_reason"] for choice in body["choices"]} == {FinishReason.LENGTH.value}


def test_openais_client() -> None:
    with live(app_of()) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        made = client.completions.create(model="default", prompt="hi", echo=True, logprobs=2, n=2)
        assert [choice.text for choice in made.choices] == ["hiHello there."] * 2
        logprobs = made.choices[0].logprobs
        assert logprobs is not None and logprobs.tokens == ["h", "i", "Hello", " there", "."]
        assert logprobs.text_offset == [0, 1, 2, 7, 13] and made.usage is not None
        stream = client.completions.create(
            model="default", prompt=["hi", "a"], stream=True, stream_options={"include_usage": True}
        )
        texts = ["", ""]
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert texts == ["Hello there."] * 2 and chunk.usage is not None
        assert chunk.usage.prompt_tokens == 3
        with pytest.raises(openai.BadRequestError, match="suffix"):
            client.completions.create(model="default", prompt="hi", suffix="x")
