"""Counts equal what clients saw, labels are nobody's invention, and docs/metrics.md lists what there is."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from llm.engine import EngineStats
from llm.errors import StepFailed
from server.app import create_app
from server.metrics import BETWEEN_TOKENS, FINISHES, PHASES, REJECTIONS, Metrics
from server.settings import Settings
from tests.fakes import Gate, ScriptedModel, tiny_text_model
from tests.server.wire import CHAT, HELLO, Connection, app_of, ask, call

DOCUMENT = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
DASHBOARD = Path(__file__).parents[2] / "deploy/grafana.json"
TEXT = "/v1/completions"
EMBEDDINGS, SCORE = "/v1/embeddings", "/v1/score"
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
ENGINE = EngineStats("cpu", 3, 5, 2, 8, 11, 13, 17, 19, 0.25, True, 1, 29, 23)

Samples = dict[str, float]


def samples(body: str) -> Samples:
    """Every sample under its name and sorted labels, as `name{a="b"}`."""
    found = {}
    for family in read_text(body):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def scrape(app: FastAPI) -> Samples:
    answer = call(app, "/metrics")
    assert answer.status == 200
    return samples(answer.body.decode())


def of(found: Samples, name: str, **labels: str) -> float:
    """One series of the scripted model; how many there were of it, when it is a histogram."""
    labels = labels or {"model_name": "scripted"}
    written = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return found[f"causerie:{name}{{{written}}}"]


def everything() -> Metrics:
    """Metrics that have been told one of everything."""
    metrics = Metrics()
    metrics.watch(lambda: [("tiny", ENGINE)])
    metrics.rejected("queue_full")
    metrics.cancelled("tiny", "waiting")
    metrics.started("tiny", 7, 0.1)
    metrics.first_token("tiny", 0.2)
    metrics.token("tiny", 0.3)
    metrics.ended("tiny", "stop", 0.4)
    metrics.used("tiny", "alice", 7, 2)
    metrics.answered("GET", "/health", 200)
    return metrics


def exported() -> dict[str, tuple[str, frozenset[str]]]:
    """Name → type and labels."""
    found = {}
    for family in read_text(everything().render()[0].decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (family.type, frozenset(labels))
    return found


def test_the_document_lists_every_metric_with_its_type_and_labels() -> None:
    rows = re.findall(r"^\| `([a-z_:0-9]+)` \| (\w+) \| (.*?) \|", DOCUMENT, re.M)
    listed = {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(listed) == len(rows), "no metric is listed twice"
    there = exported()
    for name in [name for name in listed if name.startswith("process_") and name not in there]:
        del listed[name]  # a system without /proc
    assert listed == there


def test_queries_of_the_document_name_what_there_is() -> None:
    text = everything().render()[0].decode()
    there = {sample.name for family in read_text(text) for sample in family.samples}
    queries = re.findall(r"```promql\n(.*?)```", DOCUMENT, re.S)
    named = {name for query in queries for name in re.findall(r"causerie:\w+", query)}
    assert len(queries) >= 5 and named and named <= there, named - there


def test_the_dashboard_asks_for_what_there_is() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {target["expr"] for panel in panels for target in panel["targets"]}
    text = everything().render()[0].decode()
    there = {sample.name: set(sample.labels) for family in read_text(text) for sample in family.samples}
    for expression in asked:
        for name, labels in re.findall(r"(causerie:\w+)(?:\{(.*?)\})?", expression):
            assert set(re.findall(r"(\w+)=~", labels)) <= there[name], expression


def test_words_of_the_document_are_those_of_the_code() -> None:
    table = {row.split("`")[1]: row for row in DOCUMENT.splitlines() if row.startswith("| `causerie:")}
    for name, words in (("rejected", REJECTIONS), ("cancelled", PHASES), ("request_success", FINISHES)):
        assert all(f"`{word}`" in table[f"causerie:{name}_total"] for word in words), name


def test_vllms_names_are_there() -> None:
    """Dashboards and autoscalers ask for these."""
    vllms = """num_requests_running num_requests_waiting kv_cache_usage_perc prefix_cache_queries_total
        prefix_cache_hits_total num_preemptions_total prompt_tokens_total generation_tokens_total
        time_to_first_token_seconds inter_token_latency_seconds e2e_request_latency_seconds
        request_queue_time_seconds request_success_total"""
    assert {f"causerie:{name}" for name in vllms.split()} <= set(exported())


def test_series_are_there_before_the_first_request() -> None:
    found = scrape(app_of())
    assert of(found, "prompt_tokens_total") == of(found, "inter_token_latency_seconds_count") == 0
    assert all(of(found, "rejected_total", reason=reason) == 0 for reason in REJECTIONS)
    for finish in FINISHES:
        assert of(found, "request_success_total", model_name="scripted", finished_reason=finish) == 0
    assert of(found, "cancelled_total", model_name="scripted", phase="decoding") == 0


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, HELLO),
    (CHAT, HELLO | STREAM),
    (CHAT, HELLO | STREAM | {"n": 3}),
    (CHAT, HELLO | {"n": 2, "max_tokens": 2}),
    (CHAT, HELLO | {"max_tokens": 1}),
    (TEXT, {"prompt": "once"}),
    (TEXT, {"prompt": ["once", "upon a", "time"], "n": 2, "max_tokens": 2}),
    (TEXT, {"prompt": ["once", "upon"], **STREAM}),
    (EMBEDDINGS, {"input": ["a", "bc"]}),
    (SCORE, {"input": ["ab", "cde"]}),
]


def test_counts_are_the_sums_of_what_clients_saw() -> None:
    app, used, finished = app_of(), Counter[str](), Counter[str]()
    for path, body in REQUESTS:
        answer = call(app, path, body)
        assert answer.status == 200, answer.body
        parts = answer.chunks if body.get("stream") else [answer.json]
        usage = next(part["usage"] for part in parts if part.get("usage"))
        used["prompt"] += usage["prompt_tokens"]
        used["reply"] += usage.get("completion_tokens", 0)
        if path in (EMBEDDINGS, SCORE):
            finished["stop"] += len(body["input"])
            continue
        ends = [c["finish_reason"] for part in parts for c in part["choices"] if c.get("finish_reason")]
        finished.update(ends)
        used["choices"] += len(ends)
    found = scrape(app)
    assert of(found, "prompt_tokens_total") == used["prompt"] > 0
    assert of(found, "generation_tokens_total") == used["reply"] > 0
    assert of(found, "time_to_first_token_seconds_count") == used["choices"]
    assert of(found, "inter_token_latency_seconds_count") == used["reply"] - used["choices"]
    assert of(found, "e2e_request_latency_seconds_count") == sum(finished.values())
    assert of(found, "request_queue_time_seconds_count") == 5 + 1 + 3 + 2 + 2 + 2, "one for each prompt"
    for finish in FINISHES:
        labels = {"model_name": "scripted", "finished_reason": finish}
        assert of(found, "request_success_total", **labels) == finished[finish]
    mine = {"key": "", "model_name": "scripted"}
    assert of(found, "key_requests_total", **mine) == len(REQUESTS)
    assert of(found, "key_prompt_tokens_total", **mine) == used["prompt"]
    assert of(found, "key_generation_tokens_total", **mine) == used["reply"]
    for path, times in Counter(path for path, _ in REQUESTS).items():
        assert of(found, "http_requests_total", method="POST", route=path, status="200") == times
    assert not any(of(found, "rejected_total", reason=reason) for reason in REJECTIONS)


def test_counts_of_a_real_model_are_exact() -> None:
    async def run() -> tuple[Samples, list[dict[str, int]]]:
        model = tiny_text_model()
        app = app_of(model)
        model.start()
        try:
            bodies = [HELLO | {"max_tokens": k, "seed": k, "stop": "e", "n": 1 + k % 3} for k in range(1, 5)]
            answers = await asyncio.gather(*(ask(app, CHAT, body) for body in bodies))
            assert {answer.status for answer in answers} == {200}
            return samples((await ask(app, "/metrics")).body.decode()), [a.json["usage"] for a in answers]
        finally:
            await model.close()

    found, usages = asyncio.run(run())
    tiny = {"model_name": "tiny"}
    assert of(found, "generation_tokens_total", **tiny) == sum(u["completion_tokens"] for u in usages) > 4
    assert of(found, "prompt_tokens_total", **tiny) == sum(u["prompt_tokens"] for u in usages)
    assert of(found, "e2e_request_latency_seconds_count", **tiny) == sum(1 + k % 3 for k in range(1, 5))
    engine = tiny | {"engine": "0", "device": "cpu"}
    drawn = of(found, "engine_generation_tokens_total", **engine)
    assert drawn >= of(found, "generation_tokens_total", **tiny), "what a stop string cut off was drawn too"


def test_a_client_that_leaves_is_counted_where_it_left() -> None:
    async def leave(app: FastAPI, *, streams: bool) -> None:
        connection = Connection(app, CHAT, json.dumps(HELLO | {"stream": streams}).encode())
        async with connection.running():
            if streams:
                while b"Hel" not in ((await connection.next()) or {}).get("body", b""):
                    pass
            connection.close()

    app = app_of(ScriptedModel("Hel", Gate(), "lo"))
    asyncio.run(leave(app, streams=True))
    asyncio.run(leave(app, streams=False))
    found = scrape(app)
    assert of(found, "request_success_total", model_name="scripted", finished_reason="abort") == 2
    assert of(found, "cancelled_total", model_name="scripted", phase="decoding") == 2
    assert of(found, "generation_tokens_total") == 2, "what they had been sent"
    assert of(found, "http_requests_total", method="POST", route=CHAT, status="200") == 1
    assert of(found, "http_requests_total", method="POST", route=CHAT, status="499") == 1


def test_failures_and_refusals_are_counted_by_their_kind() -> None:
    app = app_of(ScriptedModel(StepFailed("x"), "never"))
    assert [call(app, CHAT, body).status for body in (HELLO, {}, HELLO | {"model": "no"})] == [500, 400, 404]
    found = scrape(app)
    assert of(found, "request_success_total", model_name="scripted", finished_reason="error") == 1
    for status in ("500", "400", "404"):
        assert of(found, "http_requests_total", method="POST", route=CHAT, status=status) == 1


def test_a_full_server_counts_whom_it_turns_away() -> None:
    async def run() -> Samples:
        gate = Gate()
        app = app_of(ScriptedModel(gate, "late"), max_num_seqs=1, max_num_queued_seqs=1)
        waiting = [asyncio.create_task(ask(app, CHAT, HELLO)) for _ in range(2)]
        await asyncio.sleep(0)
        refused = []
        while sum(answer.status == 429 for answer in refused) < 3:
            refused.append(await ask(app, CHAT, HELLO | {"max_tokens": 1}))
        gate.open()
        assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}
        assert {answer.status for answer in refused} == {429}
        return samples((await ask(app, "/metrics")).body.decode())

    found = asyncio.run(run())
    assert of(found, "rejected_total", reason="queue_full") == 3
    assert of(found, "http_requests_total", method="POST", route=CHAT, status="429") == 3
    assert of(found, "http_requests_total", method="POST", route=CHAT, status="200") == 2


@given(st.lists(st.one_of(st.sampled_from([0.0, *BETWEEN_TOKENS]), st.floats(0, 1e6)), max_size=30))
def test_gaps_are_counted_as_the_library_would(gaps: list[float]) -> None:
    metrics, registry = Metrics(), CollectorRegistry()
    library = Histogram("gaps", "The slow twin.", buckets=BETWEEN_TOKENS, registry=registry)
    metrics.started("tiny", 1, 0.0)  # before its first token a model has its series, too
    for gap in gaps:
        metrics.token("tiny", gap)
        library.observe(gap)
    ours = samples(metrics.render()[0].decode())
    for family in registry.collect():
        for sample in family.samples:
            name = sample.name.replace("gaps", "inter_token_latency_seconds")
            assert of(ours, name, **{**sample.labels, "model_name": "tiny"}) == pytest.approx(sample.value)
    assert of(ours, "generation_tokens_total", model_name="tiny") == len(gaps)


def test_engines_are_numbered_within_their_model() -> None:
    class Twins(ScriptedModel):
        def stats(self) -> list[EngineStats]:
            return [ENGINE, replace(ENGINE, num_running=4, device="cuda:1", alive=False)]

    found = scrape(app_of(Twins(name="twins"), ScriptedModel(name="only")))
    first = {"model_name": "twins", "engine": "0", "device": "cpu"}
    second = {"model_name": "twins", "engine": "1", "device": "cuda:1"}
    assert [of(found, "num_requests_running", **e) for e in (first, second)] == [3, 4]
    assert [of(found, "engine_up", **e) for e in (first, second)] == [1, 0]
    told = ("num_requests_waiting", "kv_cache_usage_perc", "kv_cache_blocks", "engine_last_step_age_seconds")
    assert [of(found, name, **first) for name in told] == [5, 0.75, 8, 0.25]
    counted = ("engine_steps", "engine_generation_tokens", "engine_prompt_tokens", "num_preemptions")
    assert [of(found, f"{name}_total", **first) for name in counted] == [11, 13, 17, 19]
    looked_up = ("prefix_cache_queries", "prefix_cache_hits")
    assert [of(found, f"{name}_total", **first) for name in looked_up] == [29, 23]
    assert of(found, "num_requests_running", model_name="only", engine="0", device="cpu") == 0


def test_apps_count_apart() -> None:
    one, other = app_of(), app_of()
    call(one, CHAT, HELLO)
    assert of(scrape(one), "prompt_tokens_total") > 0 == of(scrape(other), "prompt_tokens_total")


@pytest.mark.parametrize("word", ["cancelled", "ended"])
def test_a_word_that_is_not_one_of_the_few_is_our_bug(word: str) -> None:
    metrics = Metrics()
    with pytest.raises(KeyError):
        metrics.cancelled("tiny", word) if word == "cancelled" else metrics.ended("tiny", word, 0.1)


OPENMETRICS = "application/openmetrics-text"


@pytest.mark.parametrize(
    ("accept", "is_openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        (";;,,==", False),
        (f"{OPENMETRICS};version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3", True),
        (f"{OPENMETRICS}; version=0.0.1", True),
        (f"{OPENMETRICS}; version=abc", True),
        (f'{OPENMETRICS}; version="1.0.0"; escaping=dots', True),
    ],
)
def test_both_forms_have_the_same_names_however_they_are_asked_for(accept: str, is_openmetrics: bool) -> None:
    answer = call(app_of(), "/metrics", accept=accept)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith(OPENMETRICS) is is_openmetrics
    assert answer.headers["cache-control"] == "no-store"
    text = answer.body.decode()
    families = list(read_openmetrics(text) if is_openmetrics else read_text(text))
    names = {sample.name for family in families for sample in family.samples}
    assert names == {name.partition("{")[0] for name in samples(call(app_of(), "/metrics").body.decode())}


def test_the_format_of_0_0_4_is_what_is_sent_by_default() -> None:
    answer = call(app_of(), "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert call(app_of(), "/metrics", method="HEAD").status == 200


def test_metrics_need_a_key_where_there_are_keys() -> None:
    app = app_of(api_key=("secret",))
    assert call(app, "/metrics").status == 401
    answer = call(app, "/metrics", authorization="Bearer secret")
    assert answer.status == 200 and b"secret" not in answer.body
    found = samples(answer.body.decode())
    assert of(found, "http_requests_total", method="GET", route="/metrics", status="401") == 1
    call(app, CHAT, HELLO, authorization="Bearer secret")
    again = samples(call(app, "/metrics", authorization="Bearer secret").body.decode())
    assert of(again, "key_requests_total", key="key-1", model_name="scripted") == 1


def test_metrics_answer_while_models_load() -> None:
    assert "causerie:build_info" in call(create_app(Settings(), None), "/metrics").body.decode()
