"""What a ticket counts is what the client saw."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from llm.choice import TextDelta
from llm.config import SamplingParams
from llm.errors import QueueTimeout, ReaderTooSlow, RequestError, StepFailed
from llm.sequence import FinishReason, Sequence
from server.metrics import Metrics
from server.settings import Settings
from server.ticket import Ticket
from tests.fakes import Gate, ScriptedModel
from tests.server.wire import CHAT, HELLO, Connection, app_of, ask, call, num_taken


def counts(app: Any, *names: str) -> dict[str, float]:
    """Samples that are not 0, without their prefix: request_success_total{finished_reason="stop"}."""
    text = app.state.metrics.render()[0].decode()
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.removeprefix("causerie:").replace('model_name="scripted",', "")
            name = name.replace(',model_name="scripted"', "").replace('{model_name="scripted"}', "")
            if float(value) and any(name.startswith(one) for one in names):
                found[name] = float(value)
    return found


def test_a_reply_is_counted_as_its_usage() -> None:
    app = app_of(ScriptedModel("a", "b", "c"))
    usage = call(app, CHAT, HELLO | {"n": 2}).json["usage"]
    assert counts(app, "prompt_tokens", "generation_tokens", "request_success", "cancelled", "rejected") == {
        "prompt_tokens_total": usage["prompt_tokens"],
        "generation_tokens_total": usage["completion_tokens"],
        'request_success_total{finished_reason="stop"}': 2,
    }
    histograms = ("time_to_first_token_seconds_count", "inter_token_latency_seconds_count")
    assert counts(
        app, *histograms, "e2e_request_latency_seconds_count", "request_queue_time_seconds_count"
    ) == {
        "time_to_first_token_seconds_count": 2,
        "inter_token_latency_seconds_count": 4,
        "e2e_request_latency_seconds_count": 2,
        "request_queue_time_seconds_count": 1,
    }


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ScriptedModel("a", finish=FinishReason.LENGTH), "length"),
        (ScriptedModel("a", StepFailed("no"), "b"), "error"),
        (ScriptedModel(StepFailed("no"), "b"), "error"),
        (ScriptedModel("a", ReaderTooSlow("nobody reads"), "b"), "abort"),
        (ScriptedModel("a", ValueError("a bug"), "b"), "error"),
        (ScriptedModel("a", RequestError("a grammar that cannot go on"), "b"), "abort"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_how_a_reply_ended(model: ScriptedModel, reason: str, stream: bool) -> None:
    app = app_of(model)
    call(app, CHAT, HELLO | {"stream": stream})
    assert counts(app, "request_success", "cancelled") == {
        f'request_success_total{{finished_reason="{reason}"}}': 1
    }


def test_a_turn_that_never_came_is_a_rejection() -> None:
    app = app_of(ScriptedModel(QueueTimeout("no turn came"), "b"))
    answer = call(app, CHAT, HELLO)
    assert (answer.status, answer.error["code"]) == (503, "queue_timeout")
    assert counts(app, "rejected") == {'rejected_total{reason="queue_timeout"}': 1}


COMPLETIONS, EMBEDDINGS = "/v1/completions", "/v1/embeddings"


@pytest.mark.parametrize(("path", "field"), [(COMPLETIONS, "prompt"), (EMBEDDINGS, "input")])
def test_turns_that_never_came_are_one_rejection_of_one_request(path: str, field: str) -> None:
    app = app_of(ScriptedModel(QueueTimeout("no turn came"), "b"))
    answer = call(app, path, {field: ["a", "b", "c"]})
    assert (answer.status, answer.error["code"]) == (503, "queue_timeout")
    assert counts(app, "rejected", "cancelled") == {'rejected_total{reason="queue_timeout"}': 1}


class OneLate(ScriptedModel):
    """No turn comes for the prompt "b"; the others are at work."""

    @contextmanager
    def _observed(self, prompt: list[int], *rest: Any) -> Iterator[Any]:
        with super()._observed(prompt, *rest) as observer:
            if prompt == [98]:
                raise QueueTimeout("no turn came")
            yield observer


@pytest.mark.parametrize(("path", "field"), [(COMPLETIONS, "prompt"), (EMBEDDINGS, "input")])
def test_prompts_that_go_down_with_another_were_not_left_by_their_client(path: str, field: str) -> None:
    model = OneLate("a", Gate(), "b")
    app = app_of(model, max_num_seqs=3, max_num_queued_seqs=0)
    assert call(app, path, {field: ["a", "b", "c"]}).error["code"] == "queue_timeout"
    assert counts(app, "rejected", "cancelled", "request_success") == {
        'rejected_total{reason="queue_timeout"}': 1,
        'request_success_total{finished_reason="abort"}': 2,
        'request_success_total{finished_reason="error"}': 1,
    }
    assert (model.num_open, num_taken(app)) == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "phase"), [(("a", "GATE", "b"), "decoding"), (("GATE", "b"), "prefilling")]
)
def test_a_client_that_leaves_is_counted_once_by_what_it_left(
    script: tuple[str, ...], phase: str, stream: bool
) -> None:
    async def leave() -> None:
        gate = Gate()
        app = app_of(ScriptedModel(*(gate if step == "GATE" else step for step in script)))
        body = b'{"messages":[{"role":"user","content":"hi"}],"n":2'
        connection = Connection(app, CHAT, body + (b',"stream":true}' if stream else b"}"))
        async with connection.running():
            model = app.state.registry.models[0]
            while not model.num_open:
                await asyncio.sleep(0)
            for _ in range(100):
                await asyncio.sleep(0)
            connection.close()
        assert counts(app, "cancelled", "request_success") == {
            f'cancelled_total{{phase="{phase}"}}': 1,
            'request_success_total{finished_reason="abort"}': 2,
        }
        assert num_taken(app) == 0

    asyncio.run(leave())


def test_a_refusal_counts_as_nothing_else() -> None:
    async def fill() -> None:
        gate = Gate()
        app = app_of(ScriptedModel("a", gate, "b"), max_num_seqs=1, max_num_queued_seqs=0)
        first = asyncio.create_task(ask(app, CHAT, HELLO))
        while not num_taken(app):
            await asyncio.sleep(0)
        for _ in range(3):
            await ask(app, CHAT, HELLO)
        gate.open()
        await first
        assert counts(app, "rejected", "request_success") == {
            'rejected_total{reason="queue_full"}': 3,
            'request_success_total{finished_reason="stop"}': 1,
        }

    asyncio.run(fill())


def test_places_are_given_back_as_replies_end_and_the_rest_with_the_request() -> None:
    given_back: list[int] = []
    ticket = Ticket(
        model="m",
        key="",
        num_places=5,
        decode=str,
        settings=Settings(),
        metrics=Metrics(),
        give_back=lambda num, served: given_back.append(num if served else -num),
        leave=lambda: None,
    )
    observer = ticket.terms(None).observer
    assert observer is not None
    observer.submitted([Sequence([1, 2], SamplingParams(max_tokens=4)) for _ in range(2)])
    observer.received(TextDelta(0, "a", 1, at=1.0))
    assert given_back == []
    observer.received(TextDelta(0, "b", 1, FinishReason.STOP, at=2.0))
    assert given_back == [1], "it is complete, whoever reads it"
    observer.received(TextDelta(1, "c", 1, FinishReason.STOP, at=2.0))
    observer.ended(GeneratorExit())  # left after the last of it: nothing was cancelled
    assert given_back == [1, 1]
    lines = ticket.metrics.render()[0].decode().splitlines()
    assert not [line for line in lines if "cancelled_total{" in line and not line.endswith(" 0.0")]
    ticket.close()
    ticket.close()
    assert given_back == [1, 1, -3], "three were never made"


def test_an_embedding_is_a_prompt_and_no_tokens() -> None:
    app = app_of(ScriptedModel())
    usage = call(app, "/v1/embeddings", {"input": ["a", "bc"]}).json["usage"]
    assert counts(app, "prompt_tokens", "generation_tokens", "request_success") == {
        "prompt_tokens_total": usage["prompt_tokens"],
        'request_success_total{finished_reason="stop"}': 2,
    }
