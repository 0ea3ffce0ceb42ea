"""One answer as it is read, and what all of them cost."""

from __future__ import annotations

from typing import Any

import pytest

from clients.chat.reply import Piece, Reply
from clients.chat.stats import Stats
from tests.clients.fake_server import chunk


def usage(prompt: object, completion: object, cached: object = None) -> dict[str, Any]:
    return {
        "choices": [],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


def reply_of(*timed: tuple[float, dict[str, Any]], sent: float = 0.0) -> Reply:
    reply = Reply(sent)
    for when, part in timed:
        reply.take(when, part)
    return reply


def test_times_and_tokens_are_those_of_the_text() -> None:
    reply = reply_of(
        (1.1, chunk({"role": "assistant", "content": ""})),
        (1.5, chunk({"content": "a"})),
        (2.0, chunk({"content": "b"})),
        (2.5, chunk({"content": "c"})),
        (3.0, chunk({}, "length")),
        (3.0, usage(7, 3, 4)),
        sent=1.0,
    )
    assert (reply.text, reply.finish, reply.num_texts) == ("abc", "length", 3)
    assert (reply.first_seconds, reply.tokens_per_second) == (0.5, 2.0)
    assert (reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens) == (7, 4, 3)


def test_thoughts_are_told_apart_and_not_kept() -> None:
    reply = Reply(0.0)
    assert reply.take(1.0, chunk({"reasoning_content": "hm"})) == Piece("", "hm")
    assert reply.take(2.0, chunk({"reasoning": "so"})) == Piece("", "so")
    assert reply.take(3.0, chunk({"content": "yes"})) == Piece("yes", "")
    assert (reply.text, reply.first) == ("yes", 1.0)


STRANGE = [
    {},
    {"choices": None},
    {"choices": "x"},
    {"choices": [None]},
    {"choices": [{"delta": None, "finish_reason": 7}]},
    {"choices": [{"delta": {"content": ["x"]}}]},
    {"choices": {"0": {}}},
    {"usage": 5},
    {"usage": {"prompt_tokens": "many", "completion_tokens": True, "prompt_tokens_details": 1}},
    {"usage": {"completion_tokens": -1}},
]


@pytest.mark.parametrize("part", STRANGE, ids=repr)
def test_a_strange_chunk_says_nothing_and_ends_nothing(part: dict[str, Any]) -> None:
    reply = Reply(0.0)
    assert reply.take(1.0, part) == Piece()
    assert (reply.text, reply.first, reply.finish, reply.completion_tokens) == ("", None, None, None)


def test_stats_are_of_the_last_reply_and_of_all() -> None:
    stats = Stats()
    assert stats.lines() == ["no reply yet"]
    stats.add(reply_of((0.1, chunk({"content": "a"})), (0.2, chunk({"content": "b"})), (0.2, usage(5, 2, 0))))
    second = reply_of((2.0, chunk({"content": "a"})), (2.4, chunk({"content": "b"})), (2.4, usage(8, 3, 5)))
    second.seed = "9"
    stats.add(second)
    assert stats.lines() == [
        "last reply: first token after 2.0 s, 5.0 tokens/s, 8 tokens of prompt (5 cached), 3 of reply, "
        "seed 9",
        "session: 2 replies, first token after 1.1 s on average, 6.0 tokens/s, "
        "13 tokens of prompt (5 cached), 5 of reply",
    ]


def test_what_a_server_does_not_count_is_not_guessed() -> None:
    stats = Stats()
    stats.add(reply_of((0.25, chunk({"content": "a"}))))
    assert stats.lines() == [
        "last reply: first token after 250 ms, 1 chunk of text, whose tokens the server did not count",
        "session: 1 reply, first token after 250 ms on average, "
        "0 tokens of prompt, 0 of reply, 1 without the server's count",
    ]
    stats.add(reply_of((0.5, usage(1, 0))))
    assert stats.lines()[0] == "last reply: 1 token of prompt, 0 of reply", "and an empty one has no speed"
