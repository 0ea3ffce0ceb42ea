"""A server under test: what its model is called, which of our fields it refuses, what it spends.

    >>> async with Target(Place("http://127.0.0.1:8000"), {"ignore_eos": True}, timeout=60) as target:
    ...     await target.prepare()
    ...     answer = read(await target.send(target.request(job)))

OpenAI's own API refuses fields that vLLM, llama.cpp and Causerie share; such a field is left out for that
server and said. Refuses to know how many requests are sent and when.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from clients.bench.answer import Answer, chunks, read
from clients.bench.pool import Note, Pool
from clients.bench.process import cpu_seconds, is_ours
from clients.bench.work import WORDS, Fit, Job
from clients.client import AsyncClient
from clients.wire import JSON, ApiError, ClientError, is_loopback, root_url

PATH = "/v1/chat/completions"
EXTENSIONS = ("ignore_eos", "top_k", "seed", "stream_options")
"""What a server may refuse and be measured without, in the order tried when it names none."""

REFUSED = (400, 422)
PROBE_WORDS = (1, 9)
"""Two lengths tell what a word costs and what the template adds; even 64 positions hold them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is.

    Attributes:
        pid: its process on this machine, when known.
        start_seconds: from the start of that process to its first token, where this program started it.
    """

    url: str
    api_key: str | None = None
    model: str | None = None
    pid: int | None = None
    start_seconds: float | None = None


class Clocks(NamedTuple):
    """CPU seconds and counters at one moment; None where the server does not tell."""

    server: float | None = None
    loop: float | None = None
    host: float | None = None  # the engines' threads beside the model: planning, drawing, telling
    num_steps: int | None = None


class Target:
    """One server, as a context manager.

    Args:
        place: where it is.
        fields: sent with every request, beside its messages; None is not sent.
        timeout: seconds that a request may take.

    Attributes:
        model: the id that requests carry, known after `prepare`.
        max_model_len: the model's positions, where the server tells.
        refused: fields that it does not take, and that are therefore not sent.
        counts: whether it sends a usage with streams; else chunks with text are counted.
        pid: its process on this machine, where given or told.
    """

    def __init__(self, place: Place, fields: Mapping[str, Any], timeout: float) -> None:
        self.place = place
        self.fields: JSON = {name: value for name, value in fields.items() if value is not None}
        self.fields |= {"stream": True, "stream_options": {"include_usage": True}}
        self.model = place.model or "default"
        self.max_model_len: int | None = None
        self.refused: list[str] = []
        self.counts = True
        self._limit_name = "max_tokens"
        self.pid = place.pid
        self._client = AsyncClient(place.url, place.api_key)
        self._pool = Pool(root_url(place.url), place.api_key, timeout)

    async def prepare(self) -> None:
        """Find out what it is called and what it refuses.

        Raises:
            ClientError: it does not answer a plain request.
        """
        models = {str(model.get("id")): model for model in await self._client.models()}
        self.model = self.place.model or next(iter(models), self.model)
        limit = models.get(self.model, {}).get("max_model_len")
        self.max_model_len = limit if isinstance(limit, int) else None
        self.counts = (await self._probe(PROBE_WORDS[0])).is_counted
        health = await self._health()
        pid = health.get("pid")
        if self.pid is None and isinstance(pid, int) and is_loopback(self.place.url) and is_ours(pid):
            self.pid = pid

    async def fit(self) -> Fit:
        """How it counts the words of a prompt; one token each where it does not say."""
        few, many = [(await self._probe(count)).prompt_tokens for count in PROBE_WORDS]
        per_word = (many - few) / (PROBE_WORDS[1] - PROBE_WORDS[0])
        return Fit(few - per_word * PROBE_WORDS[0], per_word) if per_word > 0 else Fit()

    def request(self, job: Job) -> bytes:
        """The bytes of a job, to be made before the run."""
        body = {"model": self.model, **self.fields, self._limit_name: job.max_tokens}
        if "seed" not in self.refused:
            body["seed"] = job.seed
        return self._pool.request(PATH, {**body, "messages": [{"role": "user", "content": job.prompt}]})

    async def send(self, request: bytes, due: float | None = None) -> Note:
        """What came of it."""
        return await self._pool.exchange(request, due)

    async def clocks(self) -> Clocks:
        """What it has spent until now."""
        health = await self._health()
        told = health.get("engines")
        engines: list[JSON] = told if isinstance(told, list) else []
        computing = _total(engines, "runner_cpu_seconds")
        whole = _total(engines, "cpu_seconds")
        return Clocks(
            server=None if self.pid is None else cpu_seconds(self.pid),
            loop=health.get("loop_cpu_seconds"),
            host=None if whole is None or computing is None else whole - computing,
            num_steps=_total(engines, "num_steps"),
        )

    async def _probe(self, num_words: int) -> Answer:
        """The answer to a prompt of the first words, one token long; leaves out what is refused."""
        job = Job(" ".join(WORDS[:num_words]), max_tokens=1, seed=0)
        while True:
            note = await self.send(self.request(job))
            try:
                for _ in chunks(note):
                    pass
                return read(note)
            except ApiError as error:
                if error.status not in REFUSED or not self._leave_out(error):
                    raise

    def _leave_out(self, error: ApiError) -> bool:
        """Stop sending the field it complains of; False when there is none left to try."""
        said = f"{error.param} {error.message}"
        if "max_completion_tokens" in said and self._limit_name == "max_tokens":
            self._limit_name = "max_completion_tokens"  # OpenAI's newer name, the only one of some models
            return True
        left = [name for name in EXTENSIONS if name in self.fields or name == "seed"]
        left = [name for name in left if name not in self.refused]
        name = next((name for name in left if name in said), next(iter(left), None))
        if name is None:
            return False
        self.refused.append(name)
        self.fields.pop(name, None)
        return True

    async def _health(self) -> JSON:
        """Ours says much, others little or nothing."""
        try:
            return await self._client.health()
        except ClientError:
            return {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        await self._pool.close()


def _total(engines: Sequence[JSON], name: str) -> Any:
    """The sum over all engines; None where one does not tell."""
    values = [engine.get(name) for engine in engines]
    return sum(values) if values and None not in values else None
