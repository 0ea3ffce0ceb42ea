"""What Prometheus reads at GET /metrics: vLLM's names under the prefix `causerie:`, since dashboards exist.

One registry per app. Whoever serves a request says what happened to it (`started`, `token`, `ended`, ...);
the state of the engines is read when somebody asks. All methods belong to the event loop and none waits; a
token costs half a microsecond. A label is a name the operator chose or one of a few words, never a client's
text: a series for every name that clients can think of would fill two machines' memory. The only file that
knows prometheus-client. Refuses to know requests, keys and what a token says. docs/metrics.md has the list.

    >>> metrics = Metrics(); metrics.ended("tiny", "stop", 0.2); print(metrics.render()[0].decode())
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from starlette.requests import Request

from llm.engine import EngineStats
from server import __version__

PREFIX = "causerie:"
OPENMETRICS = "application/openmetrics-text"

REJECTIONS = (
    "queue_full",
    "queue_timeout",
    "rate_limit",
    "concurrency_limit",
    "draining",
    "loading",
    "dead",
)
PHASES = ("waiting", "prefilling", "decoding")
FINISHES = ("stop", "length", "abort", "error")
"""Words that are there from the start, at 0: a rate cannot see the first of what was never 0."""

_SECONDS = (1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_MINUTES = (15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, *_SECONDS),
    *(160.0, 640.0, 2560.0),
)
BETWEEN_TOKENS = (
    *(0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, *_SECONDS),
)
WHOLE_REQUEST = (*(0.01, 0.025, 0.05, 0.1, 0.2), *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, *_MINUTES))
"""Upper bounds in seconds: vLLM's, and smaller ones before them, for a small model takes 3 ms for a token."""

Stats = Callable[[], Iterable[tuple[str, EngineStats]]]

# Else every counter and histogram has a second series, the time of its birth, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(slots=True)
class Tokens:
    """One model's reply tokens in plain numbers: the library's own take locks, 2 µs a token.

    Attributes:
        num_first: first tokens of replies.
        gaps: times from a token to the next, how many in each interval that BETWEEN_TOKENS ends, and beyond.
        seconds: their sum.
    """

    num_first: int = 0
    gaps: list[int] = field(default_factory=lambda: [0] * (len(BETWEEN_TOKENS) + 1))
    seconds: float = 0.0

    def add(self, gap: float) -> None:
        """A token came so long after the one before it."""
        self.gaps[bisect_left(BETWEEN_TOKENS, gap)] += 1
        self.seconds += gap

    @property
    def num_all(self) -> int:
        return self.num_first + sum(self.gaps)


@dataclass(frozen=True, slots=True)
class _ModelSeries:
    """One model's series, looked up once: `labels()` costs more than counting."""

    tokens: Tokens
    prompt_tokens: Counter
    queue_time: Histogram
    first_token: Histogram
    whole_request: Histogram
    cancelled: dict[str, Counter]
    finished: dict[str, Counter]


class Metrics:
    """Counters of one app. Model names are those served, never those asked for."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._models: dict[str, _ModelSeries] = {}
        self._stats: Stats = tuple
        of_model, of_key = ("model_name",), ("key", "model_name")
        counter, histogram = self._counter, self._histogram
        self._prompt_tokens = counter(
            "prompt_tokens", "Tokens of prompts that began to be computed.", of_model
        )
        self._finished = counter(
            "request_success", "Replies that ended, by reason.", (*of_model, "finished_reason")
        )
        self._cancelled = counter(
            "cancelled", "Requests whose client left, by what it left.", (*of_model, "phase")
        )
        self._rejected = counter("rejected", "Requests refused for load or state, by reason.", ("reason",))
        self._http = counter("http_requests", "Responses, by route template.", ("method", "route", "status"))
        self._key_requests = counter("key_requests", "Requests that used a model, by key.", of_key)
        self._key_prompt_tokens = counter("key_prompt_tokens", "Prompt tokens, by key.", of_key)
        self._key_generation_tokens = counter("key_generation_tokens", "Reply tokens, by key.", of_key)
        self._queue_time = histogram(
            "request_queue_time_seconds", "From arrival to the first step.", WHOLE_REQUEST
        )
        self._first_token = histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", FIRST_TOKEN
        )
        self._whole_request = histogram(
            "e2e_request_latency_seconds", "From arrival to a reply's end.", WHOLE_REQUEST
        )
        for reason in REJECTIONS:
            self._rejected.labels(reason)
        info = Gauge(PREFIX + "build_info", "Always 1.", ("version", "python"), registry=self._registry)
        info.labels(__version__, platform.python_version()).set(1)
        self._registry.register(_Replies(self._models))
        self._registry.register(_Engines(lambda: self._stats()))
        ProcessCollector(registry=self._registry)

    def watch(self, stats: Stats) -> None:
        """Where to read (model name, engine statistics) whenever metrics are asked for."""
        self._stats = stats

    def rejected(self, reason: str) -> None:
        """A request was refused for load or for the server's state: one of `REJECTIONS`."""
        self._rejected.labels(reason).inc()

    def cancelled(self, model: str, phase: str) -> None:
        """A client left: one of `PHASES`."""
        self._of(model).cancelled[phase].inc()

    def started(self, model: str, num_prompt_tokens: int, queue_seconds: float) -> None:
        """A prompt began to be computed."""
        series = self._of(model)
        series.prompt_tokens.inc(num_prompt_tokens)
        series.queue_time.observe(queue_seconds)

    def first_token(self, model: str, seconds: float) -> None:
        """A reply's first token came so long after its request."""
        series = self._of(model)
        series.tokens.num_first += 1
        series.first_token.observe(seconds)

    def token(self, model: str, gap: float) -> None:
        """A later token came so long after the one before it."""
        self._of(model).tokens.add(gap)

    def ended(self, model: str, finish: str, seconds: float) -> None:
        """A reply ended: one of `FINISHES`, so long after its request."""
        series = self._of(model)
        series.finished[finish].inc()
        series.whole_request.observe(seconds)

    def used(self, model: str, key: str, prompt_tokens: int, completion_tokens: int) -> None:
        """What a whole request used, once, at its end. `key` is a key's name, "" where none is needed."""
        self._key_requests.labels(key, model).inc()
        self._key_prompt_tokens.labels(key, model).inc(prompt_tokens)
        self._key_generation_tokens.labels(key, model).inc(completion_tokens)

    def answered(self, method: str, route: str, status: int) -> None:
        """A response began. `route` is a template, such as /v1/models/{model_id}."""
        self._http.labels(method, route, str(status)).inc()

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Body and content type: OpenMetrics if the Accept header names it, else the text format 0.0.4.

        The library's own choice fails on a version that is no number, and without being asked writes
        causerie_ for causerie:, so that names would depend on who reads them.
        """
        for model, _ in self._stats():
            self._of(model)  # all of its series are there, at 0, before its first request
        if OPENMETRICS in {item.partition(";")[0].strip().lower() for item in accept.split(",")}:
            body: bytes = openmetrics.generate_latest(self._registry, openmetrics.ALLOWUTF8)  # type: ignore[no-untyped-call]
            return body, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def _of(self, model: str) -> _ModelSeries:
        return self._models.get(model) or self._add(model)

    def _add(self, model: str) -> _ModelSeries:
        series = self._models[model] = _ModelSeries(
            Tokens(),
            self._prompt_tokens.labels(model),
            self._queue_time.labels(model),
            self._first_token.labels(model),
            self._whole_request.labels(model),
            {phase: self._cancelled.labels(model, phase) for phase in PHASES},
            {finish: self._finished.labels(model, finish) for finish in FINISHES},
        )
        return series

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, text, ("model_name",), registry=self._registry, buckets=bounds)


ENGINE_GAUGES: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "num_requests_running": ("Replies in the batch.", lambda s: s.num_running),
    "num_requests_waiting": ("Replies waiting for room in the batch.", lambda s: s.num_waiting),
    "kv_cache_usage_perc": (
        "Part of the KV cache in use; 1 is all of it.",
        lambda s: 1 - s.num_free_blocks / max(1, s.num_blocks),
    ),
    "kv_cache_blocks": ("Blocks of the KV cache.", lambda s: s.num_blocks),
    "engine_up": ("1 while the engine's thread lives.", lambda s: s.alive),
    "engine_last_step_age_seconds": (
        "Since the last step, or since work came.",
        lambda s: s.seconds_since_step,
    ),
}
ENGINE_COUNTERS: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "num_preemptions": ("Replies sent back to the queue to make room.", lambda s: s.num_preemptions),
    "engine_steps": ("Forward passes.", lambda s: s.num_steps),
    "engine_generation_tokens": ("Tokens drawn, as they are drawn.", lambda s: s.num_tokens),
    "engine_prompt_tokens": (
        "Prompt tokens computed, again after a preemption.",
        lambda s: s.num_prompt_tokens,
    ),
    "prefix_cache_queries": ("Prompt tokens looked up.", lambda s: s.num_cache_queries),
    "prefix_cache_hits": ("Prompt tokens found.", lambda s: s.num_cache_hits),
    "spec_decode_num_draft_tokens": ("Tokens guessed and computed.", lambda s: s.num_drafted),
    "spec_decode_num_accepted_tokens": ("Guesses that came.", lambda s: s.num_accepted),
}


class _Replies(Collector):
    """Tokens of replies, as they are counted."""

    def __init__(self, models: dict[str, _ModelSeries]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        labels = ["model_name"]
        number = CounterMetricFamily(PREFIX + "generation_tokens", "Tokens of replies.", labels=labels)
        gaps = HistogramMetricFamily(
            PREFIX + "inter_token_latency_seconds", "Between tokens of a reply.", labels=labels
        )
        bounds = [floatToGoString(bound) for bound in (*BETWEEN_TOKENS, float("inf"))]  # type: ignore[no-untyped-call]
        for model, series in self._models.items():
            number.add_metric([model], series.tokens.num_all)
            counts = accumulate(series.tokens.gaps)  # each bucket holds those before it
            gaps.add_metric([model], list(zip(bounds, counts, strict=True)), series.tokens.seconds)
        yield number
        yield gaps


class _Engines(Collector):
    """The engines as they are when somebody asks. `engine` is a number within the model, as vLLM has it."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        numbers: Tally[str] = Tally()
        engines: list[tuple[list[str], EngineStats]] = []
        for model, stats in self._stats():
            engines.append(([model, str(numbers[model]), stats.device], stats))
            numbers[model] += 1
        labels = ["model_name", "engine", "device"]
        for name, (text, read) in ENGINE_GAUGES.items():
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=labels)
            for values, stats in engines:
                gauge.add_metric(values, float(read(stats)))
            yield gauge
        for name, (text, read) in ENGINE_COUNTERS.items():
            counter = CounterMetricFamily(PREFIX + name, text, labels=labels)
            for values, stats in engines:
                counter.add_metric(values, float(read(stats)))
            yield counter


def metrics_of(request: Request) -> Metrics:
    """The metrics of the app that got this request."""
    metrics = request.app.state.metrics
    assert isinstance(metrics, Metrics)
    return metrics
