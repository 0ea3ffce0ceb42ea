"""What an answer counts: tokens by usage or else by chunk, times of text alone, errors as errors."""

from __future__ import annotations

from typing import Any

import pytest

from clients.bench.answer import Answer, read
from clients.bench.pool import Note
from tests.clients.fake_server import chunk, frame, reply_frames

HEAD = b"HTTP/1.1 200 OK\r\nx-ignored-params: %b\r\n\r\n"


def note(*pieces: bytes, ignored: bytes = b"") -> Note:
    """As if the pieces had come at 1, 2, 3 … s."""
    made = Note(sent=0.5)
    for when, data in enumerate([HEAD % ignored + pieces[0], *pieces[1:]], 1):
        made.times.append(float(when))
        made.pieces.append(made.response.feed(data))
    made.response.close()
    return made


def test_only_chunks_with_text_are_timed_and_tokens_are_the_usages() -> None:
    answer = read(note(*reply_frames(("a", "b")), ignored=b"user"))
    assert answer == Answer(
        sent=0.5,
        texts=[2.0, 3.0],  # the role came at 1, the finish at 4
        prompt_tokens=3,
        completion_tokens=2,
        is_counted=True,
        ignored="user",
    )


def test_frames_that_come_together_have_one_time_and_a_cut_one_that_of_its_end() -> None:
    first, second = frame(chunk({"content": "a"})), frame(chunk({"content": "b"}))
    answer = read(note(first + second, first[:9], first[9:], b"data: [DONE]\n\n"))
    assert answer.texts == [1.0, 1.0, 3.0]


def test_without_a_usage_chunks_with_text_are_counted() -> None:
    answer = read(note(frame(chunk({"content": "a"})), frame(chunk({})), b"data: [DONE]\n\n"))
    assert (answer.completion_tokens, answer.is_counted, answer.prompt_tokens) == (1, False, 0)


def test_cached_tokens_are_the_usages() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}}
    assert read(note(frame({"choices": [], "usage": usage}), b"data: [DONE]\n\n")).cached_tokens == 4


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thought_counts_as_text(name: str) -> None:
    assert read(note(frame(chunk({name: "hm"})), b"data: [DONE]\n\n")).texts == [1.0]


@pytest.mark.parametrize(
    "strange",
    [
        {"choices": None},
        {"choices": [None, {"delta": None}, {}]},
        {"usage": [1]},
        {"usage": {"prompt_tokens": "x", "prompt_tokens_details": 3}},
    ],
)
def test_a_server_may_say_strange_things(strange: dict[str, Any]) -> None:
    answer = read(note(frame(strange), b"data: [DONE]\n\n"))
    assert (answer.error, answer.texts, answer.prompt_tokens) == (None, [], 0)


def test_an_answer_that_breaks_off_is_an_error_with_what_came_before() -> None:
    answer = read(note(frame(chunk({"content": "a"}))))
    assert answer.texts == [1.0] and "without [DONE]" in (answer.error or "")
