"""What clients and operators are told of the prefix cache, and whom it serves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llm.choice import TextDelta
from llm.sequence import FinishReason
from server.api.chat_delta import ChatReader
from server.api.chat_reply import complete
from server.api.reply import ReplyHead, Wanted
from tests.fakes import tiny_text_model
from tests.server.test_completion_stream import completions, source, streamed
from tests.server.wire import CHAT, Answer, app_of, ask

TEXT = "/v1/completions"
QUESTION = {"messages": [{"role": "user", "content": "hello, are you there?"}], "max_tokens": 2, "seed": 1}
"""30 tokens of prompt in blocks of four."""
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def asked(*bodies: dict[str, Any], path: str = CHAT, keys: tuple[str, ...] = ()) -> list[Answer]:
    """Answers of a tiny model that is asked one after the other, with each of the keys in turn; health
    last.
    """

    async def run() -> list[Answer]:
        model = tiny_text_model()
        app = app_of(model, api_key=keys)
        model.start()
        try:
            answers = []
            for i, body in enumerate(bodies):
                headers = {"authorization": f"Bearer {keys[i % len(keys)]}"} if keys else {}
                answers.append(await ask(app, path, body, headers=headers))
                assert answers[-1].status == 200, answers[-1].body
            model.engines[0].scheduler.check_integrity()
            return [*answers, await ask(app, "/health")]
        finally:
            await model.close()

    return asyncio.run(run())


def usage_of(answer: Answer) -> dict[str, Any]:
    is_stream = answer.headers["content-type"].startswith("text/event-stream")
    body = answer.chunks[-1] if is_stream else answer.json
    assert isinstance(body["usage"], dict)
    return body["usage"]


def cached(answer: Answer) -> int:
    num = usage_of(answer)["prompt_tokens_details"]["cached_tokens"]
    assert isinstance(num, int)
    return num


@pytest.mark.parametrize("options", [{}, USAGE, {"n": 3}, USAGE | {"n": 6}])
def test_usage_and_timings_say_how_much_of_a_prompt_was_there(options: dict[str, Any]) -> None:
    """Of n choices, too, some of which wait until others have ended: the prompt counts once."""
    body = QUESTION | options | {"timings": True}
    *answers, health = asked(body, body)
    length = usage_of(answers[0])["prompt_tokens"]
    assert [cached(answer) for answer in answers] == [0, length - 1]
    last = [answer.chunks[-1] if "stream" in options else answer.json for answer in answers]
    assert [one["timings"]["cached_tokens"] for one in last] == [0, length - 1]
    (engine,) = health.json["engines"]
    assert engine["num_free_blocks"] == engine["num_blocks"] > engine["num_cached_blocks"] > 0
    assert engine["num_cache_queries"] >= engine["num_cache_hits"] >= length - 1


def test_running_usage_knows_it_with_the_first_token() -> None:
    running = {"stream": True, "stream_options": {"continuous_usage_stats": True}}
    _, answer, _ = asked(QUESTION, QUESTION | running)
    told = [chunk["usage"]["prompt_tokens_details"]["cached_tokens"] for chunk in answer.chunks]
    assert told[0] == 0 < told[1] and len(set(told[1:])) == 1


def test_what_goes_on_from_a_reply_computes_what_is_new() -> None:
    """Bytes are tokens here; of the reply the last one was drawn and not computed."""
    body = {"prompt": "hello, are you there?", "max_tokens": 5, "logit_bias": {"97": 100}}
    first, second, _ = asked(body, body | {"prompt": "hello, are you there?aaaaa yes?"}, path=TEXT)
    assert first.json["choices"][0]["text"] == "aaaaa"
    assert cached(second) == usage_of(first)["total_tokens"] - 1


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_keys_and_salts_share_nothing(path: str) -> None:
    body = QUESTION if path == CHAT else {"prompt": "hello, are you there?", "max_tokens": 2}
    salted = [body, body | {"cache_salt": "s"}, body | {"cache_salt": ""}, body | {"cache_salt": "s"}]
    *answers, _ = asked(*salted, path=path)
    assert [cached(answer) > 0 for answer in answers] == [False, False, True, True]
    *answers, _ = asked(*[body | {"cache_salt": "s"}] * 4, path=path, keys=("a", "b"))
    assert [cached(answer) > 0 for answer in answers] == [False, False, True, True]


def test_of_several_prompts_each_counts() -> None:
    body = {"prompt": ["one and", "the other", "one and"], "max_tokens": 1, "n": 2}
    first, second, _ = asked(body, body, path=TEXT)
    assert cached(first) in (0, len("one and") - 1), "the third may have found the first"
    assert cached(second) == usage_of(second)["prompt_tokens"] - 3


def test_a_scored_prompt_is_computed_and_says_so() -> None:
    body = {"prompt": "one and the other", "max_tokens": 1}
    *answers, _ = asked(body, body | {"echo": True, "logprobs": 0}, body, path=TEXT)
    assert [cached(answer) for answer in answers] == [0, 0, len("one and the other") - 1]


def deltas() -> list[TextDelta]:
    """Two choices, the second begun later, when the first had computed the prompt."""
    return [
        TextDelta(0, "a", 1, num_cached=1),
        TextDelta(1, "b", 1, FinishReason.STOP, num_cached=2),
        TextDelta(0, "c", 1, FinishReason.STOP, num_cached=1),
    ]


def test_the_first_choice_says_what_was_there() -> None:
    wanted = Wanted([1, 2, 3], 2)
    reply = complete(
        source(*deltas()),
        ChatReader(2, None),
        ReplyHead("m", "fp"),
        wanted,
        tiny_text_model().tokenizer,
        with_prompt_logprobs=False,
    )
    assert asyncio.run(reply)["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}


def test_the_first_choice_of_each_prompt_says_it() -> None:
    of = completions(num_prompts=2)
    streamed(of, *deltas())
    assert of.usage()["prompt_tokens_details"] == {"cached_tokens": 1 + 2}
