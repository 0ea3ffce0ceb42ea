"""Answers of the engine are those of the course's loop, many at once or one by one."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from llm.chat.template import Message, PlainTemplate, drop_oldest
from llm.config import COURSE_DEFAULTS, GenerationDefaults
from llm.detokenizer import Detokenizer
from llm.eval.answers import answer_all, policy, running
from llm.generate import generate_cached
from llm.model import Decoder
from llm.text import TextModel
from llm.tokenizer import ByteTokenizer
from tests.fakes import ScriptedModel, tiny_model, tiny_text_model

QUESTIONS = ["hi", "what is a token?", "a", "which port is it, please?", "x" * 90]
MODEL = tiny_model(num_positions=64)


def slow_answer(
    model: Decoder, messages: list[Message], defaults: GenerationDefaults, seed: int | None
) -> str:
    """The slow twin: one question, one token at a time, cut where the text says so."""
    tokenizer = ByteTokenizer()
    room = model.config.num_positions - 1
    prompt, _ = drop_oldest(tokenizer, PlainTemplate(), messages, room)
    params = policy(defaults, seed, 20)
    ids, _ = generate_cached(model, prompt, params)
    text = Detokenizer(tokenizer.token_bytes, params.stop, strip_start=True)
    return (text.feed(i for i in ids if i not in params.stop_token_ids) + text.flush()).strip()


def conversations() -> list[list[Message]]:
    history = [Message("user", "one of many"), Message("assistant", "yes")]
    asked = [Message("user", question[:40]) for question in QUESTIONS]
    return [[one] for one in asked] + [[*history, one] for one in asked]


def with_defaults(defaults: GenerationDefaults) -> TextModel:
    model = tiny_text_model(MODEL)
    model.defaults = defaults
    return model


@pytest.mark.parametrize("stop", [(), ("\n",), ("e", "\x00")])
def test_they_are_what_the_loop_says(stop: tuple[str, ...]) -> None:
    defaults = dataclasses.replace(COURSE_DEFAULTS, stop=stop, stop_token_ids=frozenset({256}))
    seeds = [None, 1, 2]

    async def ask() -> list[list[str]]:
        model = with_defaults(defaults)
        async with running(model):
            return await answer_all(model, conversations(), seeds, 20)

    found = asyncio.run(ask())
    expected = [[slow_answer(MODEL, c, defaults, seed) for c in conversations()] for seed in seeds]
    assert found == expected
    assert found[0] != found[1] != found[2], "the seeds draw"


def test_greedy_keeps_the_checkpoints_penalty() -> None:
    """As a server does for temperature 0: nothing else of the policy is left out."""
    params = policy(GenerationDefaults(temperature=0.7, repetition_penalty=1.3, top_k=5), None, 9)
    assert (params.temperature, params.repetition_penalty, params.max_tokens) == (0.0, 1.3, 9)
    assert policy(GenerationDefaults(temperature=0.7), 3, 9).temperature == 0.7


def test_white_space_around_an_answer_is_not_part_of_it() -> None:
    model: Any = ScriptedModel("yes", " ", "\t")

    async def ask() -> list[list[str]]:
        return await answer_all(model, [[Message("user", "a")]], [None], 60)

    assert asyncio.run(ask()) == [["yes"]]
