"""The token inspector, with the real server and the default checkpoint."""

from __future__ import annotations

import math
import re

import pytest

from clients.child import ChildServer
from clients.client import Client
from tests.browser.chat import LAST, Chat

pytestmark = pytest.mark.slow

QUESTION = "what is a token?"
ASKED = [{"role": "user", "content": QUESTION}]


def test_every_token_of_a_reply_is_shown_with_what_the_model_thought(
    chat: Chat, causette: ChildServer
) -> None:
    reply = chat.ask(QUESTION)
    tokens = chat.inspect()
    assert "".join(tokens).replace("↵", "").strip().startswith(reply)
    with Client(causette.url) as client:
        params = {"temperature": 0, "logprobs": True, "top_logprobs": 3}
        (choice,) = client.chat(ASKED, **params)["choices"]
    for index in (0, len(choice["logprobs"]["content"]) - 2):
        said = choice["logprobs"]["content"][index]
        chat.tab.hover(f"{LAST} token[{index}]")
        chat.tab.see("token-card")
        card = chat.tab.text("token-card")
        assert "rank 1" in card and "ms" in card and "batch" in card
        (shown,) = re.findall(r"([\d.]+) % · logprob", card)
        assert float(shown) == pytest.approx(100 * math.exp(said["logprob"]), abs=0.6), "float16 keys"
        assert chat.tab.count("token-card alternative") >= 3
    chat.tab.hover("composer")
    chat.tab.miss("token-card")
    assert chat.tab.count(f"{LAST} entropy") == 1
    chat.tab.click(f"{LAST} prompt-tokens")
    prompt = chat.tab.text(f"{LAST} prompt-tokens")
    assert "System" in prompt and "token" in prompt and "Assistant" in prompt


def test_an_alternative_branches_the_reply_by_token_ids(chat: Chat, causette: ChildServer) -> None:
    first = chat.ask(QUESTION)
    tokens = chat.inspect()
    chat.tab.hover(f"{LAST} token[4]")
    chat.tab.see("token-card")
    choices = (
        "() => find('token-card alternative').filter((b) => !b.disabled).map((b) => Number(b.dataset.id))"
    )
    chosen = chat.tab.evaluate(choices)[0]
    place = "(id) => find('token-card alternative').findIndex((b) => b.dataset.id === String(id))"
    chat.tab.click(f"token-card alternative[{chat.tab.evaluate(place, chosen)}]")
    chat.tab.read(f"{LAST} sibling-count", "2/2")
    branch = chat.finish()
    with Client(causette.url) as client:
        params = {"temperature": 0, "return_token_ids": True}
        whole = client.chat(ASKED, **params)
    prompt = whole["prompt_token_ids"]
    ids = whole["choices"][0]["token_ids"]
    (sent,) = chat.tab.happened.asked("/v1/completions")[-1:]
    assert sent.json["prompt"] == [*prompt, *ids[:4], chosen] and chosen != ids[4]
    before = "".join(tokens[:4]).strip()
    assert branch.startswith(before) and not branch.startswith("".join(tokens[:5]).strip())
    given = chat.inspect()
    assert "".join(given[:4]).strip() == before
    chat.tab.hover(f"{LAST} token[4]")
    chat.tab.read("token-card", str(chosen))
    chat.tab.click(f"{LAST} sibling-prev")
    chat.tab.read(f"{LAST} sibling-count", "1/2")
    assert chat.finish() == first


def test_it_is_walked_with_keys(chat: Chat) -> None:
    chat.ask(QUESTION)
    chat.inspect()
    chat.tab.evaluate("() => find('token')[0].focus()")
    chat.tab.press("ArrowRight")
    chat.tab.press("ArrowRight")
    assert chat.tab.evaluate("() => document.activeElement.dataset.index") == "2"
    chat.tab.see("token-card")
    chat.tab.press("Enter")
    chat.tab.wait("() => document.activeElement.dataset.test === 'alternative'")
    chat.tab.press("Enter")
    chat.tab.read(f"{LAST} sibling-count", "2/2")
    chat.finish()
