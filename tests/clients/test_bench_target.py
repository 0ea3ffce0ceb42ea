"""A server under test: its name, what it refuses, how it counts."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from clients.bench.target import Place, Target
from clients.bench.work import Fit, Job
from clients.wire import ApiError, Unreachable
from tests.clients.fake_server import FakeServer


def prepared(url: str, place: Place | None = None, **fields: Any) -> tuple[Target, Fit]:
    async def prepare() -> Fit:
        async with target:
            await target.prepare()
            return await target.fit()

    target = Target(place or Place(url), {"temperature": 0.0, "ignore_eos": True, **fields}, timeout=10)
    return target, asyncio.run(prepare())


def body(target: Target, fake: FakeServer) -> dict[str, Any]:
    """A job's request as the server sees it."""

    async def send() -> None:
        await target.send(target.request(Job("hello", max_tokens=9, seed=5)))
        await target.__aexit__()

    asyncio.run(send())
    return fake.requests[-1]


def test_it_is_called_what_it_calls_itself_and_gets_all_fields(fake: FakeServer) -> None:
    target, fit = prepared(fake.url, top_k=50, top_p=None)
    assert (target.model, target.refused, target.counts) == ("fake", [], True)
    assert fit == Fit(extra=2, per_word=1), "the fake counts words, two of its own before them"
    assert body(target, fake) == {
        "model": "fake",
        "temperature": 0.0,
        "ignore_eos": True,
        "top_k": 50,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
        "seed": 5,
        "messages": [{"role": "user", "content": "hello"}],
    }


def test_a_model_may_be_named(fake: FakeServer) -> None:
    target, _ = prepared(fake.url, Place(fake.url, api_key="k", model="other"))
    assert body(target, fake)["model"] == "other"
    assert fake.headers[-1]["authorization"] == "Bearer k"


@pytest.mark.parametrize(
    "unknown", [{"ignore_eos"}, {"top_k", "ignore_eos"}, {"seed"}, {"stream_options", "seed"}]
)
def test_a_field_that_is_refused_is_left_out_and_said(fake: FakeServer, unknown: set[str]) -> None:
    fake.unknown = unknown
    target, _ = prepared(fake.url, top_k=50)
    assert set(target.refused) == unknown
    assert not unknown & body(target, fake).keys()
    assert {"temperature", "max_tokens", "stream"} <= fake.requests[-1].keys()


def test_a_refusal_that_names_nothing_drops_one_after_the_other(fake: FakeServer) -> None:
    for _ in range(2):
        fake.fail(422, {"error": {"message": "extra inputs are not permitted"}})
    target, _ = prepared(fake.url, top_k=50)
    assert target.refused == ["ignore_eos", "top_k"]


def test_a_server_that_refuses_everything_is_an_error(fake: FakeServer) -> None:
    for _ in range(9):
        fake.fail(400, {"error": {"message": "no"}})
    with pytest.raises(ApiError, match="no"):
        prepared(fake.url)
    assert len(fake.requests) == 4, "once with all, once without each of three"


def test_the_newer_name_of_max_tokens(fake: FakeServer) -> None:
    said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    fake.fail(400, {"error": {"message": said, "param": "max_tokens"}})
    target, _ = prepared(fake.url)
    assert target.refused == [] and body(target, fake)["max_completion_tokens"] == 9
    assert "max_tokens" not in fake.requests[-1]


def test_another_error_is_not_taken_for_a_refusal(fake: FakeServer) -> None:
    fake.fail(401, {"error": {"message": "no key"}})
    with pytest.raises(ApiError, match="no key"):
        prepared(fake.url)
    assert len(fake.requests) == 1


def test_a_server_without_usage_is_counted_by_chunks(fake: FakeServer) -> None:
    fake.has_usage = False
    target, fit = prepared(fake.url)
    assert (target.counts, fit) == (False, Fit())


def test_a_health_that_is_none_of_ours_tells_nothing(fake: FakeServer) -> None:
    fake.health = ["ok"]  # type: ignore[assignment]
    target, _ = prepared(fake.url)
    assert target.pid is None


def test_only_a_process_that_may_be_ours_is_read(fake: FakeServer) -> None:
    fake.health = {"pid": 1}
    assert prepared(fake.url)[0].pid is None
    assert prepared(fake.url, Place(fake.url, pid=os.getpid()))[0].pid == os.getpid()


def test_nobody_there() -> None:
    with pytest.raises(Unreachable):
        prepared("http://127.0.0.1:1")
