"""Who may come in: places, keys' limits, turns, and how long to wait."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from server.limits import MAX_RETRY_SECONDS, WORK, Places
from server.settings import Settings
from tests.fakes import Gate, ScriptedModel
from tests.server.wire import CHAT, HELLO, Answer, Connection, app_of, ask, call, num_taken

COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_places_are_taken_all_or_none() -> None:
    places = Places(2, 1)
    assert places.take(2) and not places.take(2) and places.take(1) and places.is_full
    places.give_back(3, served=True)
    assert places.take(9), "who asks for more than there is may have the house for himself"
    assert not places.take(1)
    places.give_back(9, served=True)
    assert places.num_taken == 0


def test_retry_after_is_the_line_at_the_rate_of_the_last_minute() -> None:
    clock = Clock()
    places = Places(2, 10, clock)
    places.take(12)
    assert places.retry_after() == 5, "nothing is known"
    for _ in range(4):  # a reply every 2 s; ten wait, so 20 s
        clock.now += 2
        places.give_back(1, served=True)
        places.take(1)
    clock.now += 2
    assert places.retry_after() == 20
    clock.now += 30
    assert places.retry_after() == 95, "nobody has left since: 4 in 38 s"
    clock.now += 60
    assert places.retry_after() == 5, "too long ago to tell"
    places.give_back(12, served=True)
    places.take(1)
    clock.now += 0.01
    assert places.retry_after() == 1, "never 0"


def test_what_was_refused_or_left_says_nothing_of_the_rate() -> None:
    clock = Clock()
    places = Places(1, 9, clock)
    for _ in range(8):
        clock.now += 0.1
        places.take(1)
        places.give_back(1, served=False)
    places.take(10)
    assert places.retry_after() == 5, "nobody was served"


def test_no_client_is_told_to_wait_longer_than_it_will() -> None:
    clock = Clock()
    places = Places(1, 100_000, clock)
    places.take(100_001)
    for _ in range(3):
        clock.now += 10
        places.give_back(1, served=True)
        places.take(1)
    clock.now += 10
    assert places.retry_after() == MAX_RETRY_SECONDS


async def crowd(app: Any, gate: Gate, bodies: list[tuple[str, dict[str, Any]]]) -> list[Answer]:
    """All at once; the gate opens when every refusal is there."""
    tasks = [asyncio.create_task(ask(app, path, body)) for path, body in bodies]
    for _ in range(200):
        await asyncio.sleep(0)
    assert app.state.limits.num_inside == sum(not task.done() for task in tasks)
    gate.open()
    return await asyncio.gather(*tasks)


@pytest.mark.parametrize("stream", [False, True])
def test_exactly_as_many_are_admitted_as_there_are_places(stream: bool) -> None:
    gate = Gate()
    app = app_of(ScriptedModel("a", gate, "b"), max_num_seqs=2, max_num_queued_seqs=3)
    answers = asyncio.run(crowd(app, gate, [(CHAT, HELLO | {"stream": stream})] * 50))
    refused = [answer for answer in answers if answer.status == 429]
    assert [answer.status for answer in answers].count(200) == 5 and len(refused) == 45
    for answer in refused:
        assert answer.error["code"] == "queue_full" and answer.error["type"] == "rate_limit_error"
        assert int(answer.headers["retry-after"]) >= 1
    assert num_taken(app) == 0
    assert call(app, CHAT, HELLO).status == 200, "every place is free again"


def test_a_request_takes_a_place_for_each_choice_and_prompt() -> None:
    gate = Gate()
    app = app_of(ScriptedModel("a", gate, "b"), max_num_seqs=4, max_num_queued_seqs=8)
    bodies: list[tuple[str, dict[str, Any]]] = [
        (CHAT, HELLO | {"n": 3}),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 2}),
        (EMBEDDINGS, {"input": ["a", "b", "c"]}),
        (CHAT, HELLO | {"n": 3}),  # two are left
        (CHAT, HELLO | {"n": 2}),
        (CHAT, HELLO),
    ]
    answers = asyncio.run(crowd(app, gate, bodies))
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 200, 429]
    assert all(len(model.prompts) == 7 for model in app.state.registry.models)


def test_one_full_model_does_not_close_the_others() -> None:
    async def run() -> None:
        gate = Gate()
        busy, idle = ScriptedModel("a", gate, "b"), ScriptedModel(name="idle")
        app = app_of(busy, idle, max_num_seqs=1, max_num_queued_seqs=0)
        first = asyncio.create_task(ask(app, CHAT, HELLO))
        while not num_taken(app):
            await asyncio.sleep(0)
        assert (await ask(app, CHAT, HELLO)).status == 429
        assert (await ask(app, CHAT, HELLO | {"model": "idle"})).status == 200
        gate.open()
        assert (await first).status == 200

    asyncio.run(run())


@pytest.mark.parametrize("bad", [{"max_tokens": 0}, {"logit_bias": {"999": 1}}, {"model": "no"}])
def test_what_is_refused_for_itself_leaves_no_place_taken(bad: dict[str, Any]) -> None:
    app = app_of(ScriptedModel(), max_num_seqs=1, max_num_queued_seqs=0)
    for _ in range(3):
        assert call(app, CHAT, HELLO | bad).status in (400, 404)
    assert call(app, CHAT, HELLO).status == 200


@pytest.mark.parametrize("error", [ValueError("bug"), TimeoutError()])
def test_what_fails_leaves_no_place_taken(error: Exception) -> None:
    app = app_of(ScriptedModel("a", error, "b"), max_num_seqs=1, max_num_queued_seqs=0)
    for stream in (False, True, False):
        assert call(app, CHAT, HELLO | {"stream": stream}).status in (200, 500)


def test_a_client_that_leaves_frees_its_place() -> None:
    async def leave() -> None:
        gate = Gate()
        app = app_of(ScriptedModel("a", gate, "b"), max_num_seqs=1, max_num_queued_seqs=0)
        for stream in (b'"stream":true', b'"stream":false'):
            body = b'{"messages":[{"role":"user","content":"hi"}],' + stream + b"}"
            connection = Connection(app, CHAT, body)
            async with connection.running():
                while not num_taken(app):
                    await asyncio.sleep(0)
                assert (await ask(app, CHAT, HELLO)).status == 429
                connection.close()
            assert num_taken(app) == 0
        gate.open()
        assert (await ask(app, CHAT, HELLO)).status == 200

    asyncio.run(leave())


def test_a_full_server_refuses_before_it_has_read_anything() -> None:
    async def fill() -> None:
        gate = Gate()
        app = app_of(ScriptedModel("a", gate, "b"), max_num_seqs=1, max_num_queued_seqs=0)
        first = asyncio.create_task(ask(app, CHAT, HELLO))
        while not num_taken(app):
            await asyncio.sleep(0)
        for path in WORK:
            silent = Connection(app, path)
            silent.incoming.get_nowait()  # its body never comes
            await asyncio.wait_for(silent.run(), 30)
            start = silent.outgoing.get_nowait()
            assert start is not None and start["status"] == 429
        assert (await ask(app, "/v1/models")).status == 200, "what takes no place is answered"
        gate.open()
        assert (await first).status == 200

    asyncio.run(fill())


def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(
        "often: {key: sk-often, requests-per-minute: 3}\n"
        "wide: {key: sk-wide, max-concurrent: 2}\n"
        "free: sk-free\n"
    )
    path.chmod(0o600)
    return path


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer sk-{name}"}


def test_a_key_may_ask_so_often(tmp_path: Path) -> None:
    app = app_of(api_key_file=keys(tmp_path))
    answers = [asyncio.run(ask(app, CHAT, HELLO, headers=bearer("often"))) for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert (
        answers[3].error["code"] == "rate_limit_exceeded"
        and "3 times a minute" in answers[3].error["message"]
    )
    assert 15 <= int(answers[3].headers["retry-after"]) <= 20
    assert asyncio.run(ask(app, CHAT, HELLO, headers=bearer("free"))).status == 200, "others have their own"
    assert asyncio.run(ask(app, "/v1/models", headers=bearer("often"))).status == 200


def test_a_key_may_have_so_many_open(tmp_path: Path) -> None:
    async def run() -> None:
        gate = Gate()
        app = app_of(ScriptedModel("a", gate, "b"), api_key_file=keys(tmp_path))
        tasks = [asyncio.create_task(ask(app, CHAT, HELLO, headers=bearer("wide"))) for _ in range(4)]
        other = asyncio.create_task(ask(app, CHAT, HELLO, headers=bearer("free")))
        for _ in range(200):
            await asyncio.sleep(0)
        gate.open()
        answers = await asyncio.gather(*tasks)
        assert [answer.status for answer in answers] == [200, 200, 429, 429]
        assert answers[3].error["code"] == "concurrency_limit_exceeded"
        assert (await other).status == 200
        assert (await ask(app, CHAT, HELLO, headers=bearer("wide"))).status == 200

    asyncio.run(run())


def test_terms_carry_the_key_and_the_operators_limits(tmp_path: Path) -> None:
    model = ScriptedModel()
    app = app_of(model, api_key_file=keys(tmp_path), queue_timeout=7, request_timeout=9)
    body = {"prompt": ["a", "b"], "priority": -3}
    assert asyncio.run(ask(app, COMPLETIONS, body, headers=bearer("free"))).status == 200
    for terms in model.terms:
        assert (terms.client, terms.priority) == ("free", -3)
    deadline = model.terms[0].deadline
    assert deadline is not None and deadline == model.terms[1].deadline
    assert deadline <= time.monotonic() + 9
    assert asyncio.run(ask(app, EMBEDDINGS, {"input": "a"}, headers=bearer("wide"))).status == 200
    assert model.terms[-1].client == "wide"


@pytest.mark.parametrize(("path", "field"), [(COMPLETIONS, "prompt"), (EMBEDDINGS, "input")])
def test_a_request_whose_first_prompt_has_had_its_turn_waits_no_longer(path: str, field: str) -> None:
    """Else a batch of more prompts than run together could never be served by a slow machine."""
    model = ScriptedModel()
    app = app_of(model, queue_timeout=7)
    for _ in range(2):
        assert call(app, path, {field: ["a", "b", "c"]}).status == 200
    assert [terms.queue_timeout for terms in model.terms] == [7, None, None] * 2


def test_every_route_that_takes_a_place_is_work() -> None:
    """By asking: a route whose request opens a ticket must refuse early too."""
    app = app_of(ScriptedModel())
    opened: list[str] = []
    admit = app.state.limits.admit

    def note(request: Any, *rest: Any) -> Any:
        opened.append(request.url.path)
        return admit(request, *rest)

    app.state.limits.admit = note
    for path in call(app, "/openapi.json").json["paths"]:
        for body in (HELLO, {"prompt": "a"}, {"input": "ab"}, {"tokens": [65]}):
            call(app, path.replace("{model_id}", "scripted"), body)
    assert set(opened) == WORK


def test_the_default_line_is_four_for_each_that_may_run() -> None:
    app = app_of(ScriptedModel(), max_num_seqs=3)
    assert app.state.limits._places["scripted"].num_places == 15
    assert Settings().max_num_queued_seqs is None
