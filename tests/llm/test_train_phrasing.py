"""Phrasings are seeded, never empty, on one line, and keep what the question is about."""

from __future__ import annotations

import random

import pytest

from llm.train.phrasing import OPENERS, WordBag, content_words, vary

TEXTS = [
    ("what is a token?", "define token", "A token is a piece of text."),
    ("which port does it use?", "the port of the server", "The port is 8000."),
    ("who wrote the text?", "the text"),
]


def test_variations_differ_and_keep_most_words() -> None:
    question = "how do I start the server on another port?"
    ways = [vary(question, random.Random(n)) for n in range(300)]
    assert len(set(ways)) > 100
    assert question in ways
    assert sum("port" in way.lower() for way in ways) > 240
    assert ways == [vary(question, random.Random(n)) for n in range(300)]


@pytest.mark.parametrize("question", ["?", "a", "BPE?", "é", 'what\'s "n"?', "stop", "the", "!?"])
def test_any_question_survives_variation(question: str) -> None:
    for n in range(300):
        way = vary(question, random.Random(n))
        assert way.strip() and "\n" not in way


def test_a_bag_draws_telling_words_of_its_own_fact() -> None:
    bag = WordBag(TEXTS)
    openers = {word for opener in OPENERS for word in opener.split()}
    for fact, texts in enumerate(TEXTS):
        own = {word for text in texts for word in content_words(text)}
        for n in range(200):
            drawn = content_words(bag.draw(fact, random.Random(n)))
            assert drawn and set(drawn) <= own | openers
    tokens = [bag.draw(0, random.Random(n)).lower() for n in range(300)]
    assert sum("token" in draw for draw in tokens) > sum("text" in draw for draw in tokens), "rare elsewhere"


def test_content_words_keep_names_whole() -> None:
    text = "What is `top_p`, the --port of (/v1/models) at 0.8?"
    assert content_words(text) == ["what", "`top_p`", "--port", "/v1/models", "0.8"]
