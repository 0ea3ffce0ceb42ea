"""Comparing, with the real server: two settings, a model and its adapter, two vocabularies."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from clients.child import ChildServer
from llm.adapt.peft import save_adapter
from llm.checkpoint import open_checkpoint
from tests.adapters import random_adapter
from tests.browser.chat import Chat
from tests.browser.tab import Tab

pytestmark = pytest.mark.slow

QUESTION = "what is a token?"
CAUSETTE = Path(__file__).parents[2] / "checkpoints" / "causette"
TOP = 10
"""How many of a token's alternatives the page asks for."""


@pytest.fixture(scope="module")
def server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildServer]:
    folder, config = tmp_path_factory.mktemp("adapters") / "other", open_checkpoint(CAUSETTE).config
    save_adapter(folder, random_adapter(config, targets="attn.c_attn", alpha=12), config)
    models = ["--checkpoint", str(CAUSETTE), "--checkpoint", str(tiny_folder), "--adapter", f"other={folder}"]
    with ChildServer([*models, "--uvicorn-log-level", "error"]) as server:
        yield server
        assert "Traceback" not in server.last_lines(100_000)


def post(server: ChildServer, path: str, **body: Any) -> Any:
    answer = httpx.post(server.url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids_of(server: ChildServer, **params: Any) -> list[int]:
    """A reply's tokens."""
    messages = [{"role": "user", "content": QUESTION}]
    reply = post(server, "/v1/chat/completions", messages=messages, return_token_ids=True, **params)
    return list(reply["choices"][0]["token_ids"])


def test_two_settings_part_at_a_token_that_is_marked(tab: Tab, server: ChildServer) -> None:
    chat = Chat(tab, server.url)
    settings = {"a_temperature": "0", "b_temperature": "2", "b_top_k": "0", "b_top_p": "1"}
    said_a, said_b = chat.compare(QUESTION, b_model="causette", seed="7", **settings)
    a = ids_of(server, temperature=0, seed=7)
    b = ids_of(server, temperature=2, top_k=0, top_p=1, seed=7)
    at = next(i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other)
    marked = [tab.text(f"compare-{side}-text compare-diff") for side in "ab"]
    spelled = [post(server, "/detokenize", tokens=[ids[at]])["prompt"].strip() for ids in (a, b)]
    assert [one.strip() for one in marked] == spelled and said_a != said_b
    assert f"token {at + 1}" in tab.text("compare-kl")


def test_the_same_twice_differs_nowhere(tab: Tab, server: ChildServer) -> None:
    chat = Chat(tab, server.url)
    a, b = chat.compare(QUESTION, b_model="causette", a_temperature="1", b_temperature="1", seed="3")
    assert a == b and tab.count("compare-diff") == 0
    assert re.search(r"\bKL 0\b", tab.text("compare-kl"))


def test_a_model_and_its_adapter_are_compared_token_by_token(tab: Tab, server: ChildServer) -> None:
    chat = Chat(tab, server.url)
    chat.compare(QUESTION, b_model="causette:other", a_temperature="0", b_temperature="0")
    (told,) = re.findall(r"at least ([\d.]+) nats a token", tab.text("compare-kl"))
    ids = ids_of(server, model="causette", temperature=0)
    messages = [{"role": "user", "content": QUESTION}]
    prompt = post(server, "/tokenize", messages=messages)["tokens"]
    scored = []
    for model in ("causette", "causette:other"):
        asked = {"prompt": prompt + ids, "max_tokens": 0, "echo": True, "prompt_logprobs": TOP}
        reply = post(server, "/v1/completions", model=model, **asked)
        scored.append([top_of(entry) for entry in reply["choices"][0]["prompt_logprobs"][len(prompt) :]])
    nats = [divergence(p, q) for p, q in zip(*scored, strict=True)]
    assert float(told) == pytest.approx(sum(nats) / len(nats), rel=0.02) and float(told) > 0.1


def top_of(entry: dict[str, dict[str, float]]) -> dict[str, float]:
    """The ten likeliest tokens' probabilities."""
    return {i: math.exp(one["logprob"]) for i, one in entry.items() if one["rank"] <= TOP}


def divergence(p: dict[str, float], q: dict[str, float]) -> float:
    """Of p from q, whose tokens but the shared ones count as one: no more than the whole one."""
    shared = p.keys() & q.keys()
    rest = [1 - sum(side[i] for i in shared) for side in (p, q)]
    known = sum(p[i] * math.log(p[i] / q[i]) for i in shared)
    return max(0.0, known + (rest[0] * math.log(rest[0] / rest[1]) if min(rest) > 0 else 0))


def test_models_without_a_common_vocabulary_are_compared_by_their_words(
    tab: Tab, server: ChildServer
) -> None:
    chat = Chat(tab, server.url)
    a, b = chat.compare(QUESTION, a_model="causette", b_model="tiny", a_temperature="0", b_temperature="0")
    assert a and a != b
    assert "No KL" in tab.text("compare-kl") and tab.count("compare-diff") == 2
