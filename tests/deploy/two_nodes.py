"""A Ray cluster of two nodes on this machine, and what becomes of requests there. Run in Ray's environment.

    $ PYTHONPATH=. python tests/deploy/two_nodes.py FOLDER

The cluster is real: two raylets with one CPU each, a proxy for each, `deploy/ray_serve.yaml` through `serve
run`. Prints what it saw as one JSON object, the last line; judging that is left to `test_ray.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import yaml  # type: ignore[import-untyped]

from tests.deploy.ray_client import Door, Reply, prompt

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
"""Seconds anything may take: what hangs must end as a failure."""
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


HEAD_PORT, WORKER_PORT = free_port(), free_port()
HEAD, WORKER = f"http://127.0.0.1:{HEAD_PORT}", f"http://127.0.0.1:{WORKER_PORT}"
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(WORKER_PORT),  # two proxies on one machine
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.ray_proxy.middlewares",
}
import ray  # noqa: E402  (reads the variables above)
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from deploy.ray_serve import build_app  # noqa: E402
from server.settings import SettingsError  # noqa: E402

PINNING = {
    "request_router_class": "deploy.ray_routing:ConversationRouter",
    "request_router_kwargs": {"slack": 1000},
}
"""A session stays with its replica however busy that is. Known to proxies that start after it is set."""
Redeploy = Callable[..., Awaitable[float]]
Stream = tuple[Reply, asyncio.Task[None]]
Replicas = dict[str, tuple[str, dict[str, Any]]]
"""Replica → a session that leads there, and its /health."""


async def until(what: str, holds: Callable[[], bool]) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > PATIENCE:
            raise TimeoutError(f"{what}: not after {PATIENCE:.0f} s; replicas: {states()}")
        await asyncio.sleep(0.1)
    return time.monotonic() - began


def states() -> dict[str, int]:
    """How many replicas are in which state."""
    app = serve.status().applications.get("causerie")
    deployment = app.deployments.get("Causerie") if app else None
    return {str(state): n for state, n in deployment.replica_states.items() if n} if deployment else {}


def submit(address: str, checkpoint: str, **deployment: Any) -> float:
    """`serve run` of the shipped file, with this port, checkpoint and scale. Returns when."""
    config = yaml.safe_load((ROOT / "deploy/ray_serve.yaml").read_text())
    config["http_options"]["port"] = HEAD_PORT
    (app,) = config["applications"]
    app["args"] |= {"checkpoint": checkpoint, "max-num-seqs": 16, "drain-timeout": 90}
    if checkpoint != "causette":  # of which the throughput is told
        app["args"]["runner"] = "eager"  # at torch's pace streams last as long as what is done to them
    app["deployments"][0] |= deployment
    if "num_replicas" in deployment:
        del app["deployments"][0]["autoscaling_config"]
    command = [str(Path(sys.executable).parent / "serve"), "run", "--non-blocking", "--address", address]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        asked = time.time()
        subprocess.run([*command, file.name], check=True, cwd=ROOT, stdout=sys.stderr)
    return asked


async def deploy(address: str, checkpoint: str, running: int, **deployment: Any) -> float:
    """Seconds until so many replicas run, and no others."""
    asked = submit(address, checkpoint, **deployment)

    def is_deployed() -> bool:
        now = serve.status().applications["causerie"]
        is_new = now.status == "RUNNING" and now.last_deployed_time_s >= asked
        return is_new and states() == {"RUNNING": running}

    return await until(f"{running} replicas", is_deployed)


async def unloadable(address: str) -> str:
    """What Ray's status says when there is no checkpoint."""
    submit(address, "/no/such/checkpoint", num_replicas=1)
    said = ""

    def is_said() -> bool:
        nonlocal said
        deployments = serve.status().applications["causerie"].deployments
        said = deployments["Causerie"].message if deployments else ""
        return "of this replica" in said

    await until("a reason", is_said)
    return said.rstrip().splitlines()[-1]


async def replicas(head: Door, count: int) -> Replicas:
    """As many as there should be, found by asking sessions at random."""
    found: Replicas = {}
    for number in range(200):
        replica, health = await head.health(f"probe-{number}")
        found.setdefault(replica, (f"probe-{number}", health))
        if len(found) == count:
            return found
    raise AssertionError(f"{count} replicas expected, only {sorted(found)} answered")


async def spread(head: Door, worker: Door) -> dict[str, Any]:
    """80 requests, eight at a time, half through each proxy: who answered."""
    gate = asyncio.Semaphore(8)

    async def one(number: int) -> Any:
        async with gate:
            return await (head, worker)[number % 2].ask(prompt(f"{number}: hello", 8))

    replies = await asyncio.gather(*(one(number) for number in range(80)))
    return {
        "by_replica": Counter(reply.replica for reply in replies),
        "statuses": Counter(reply.status for reply in replies),
        "repeated_headers": sorted(name for name, n in Counter(replies[0].headers).items() if n > 1),
    }


async def affinity(head: Door, worker: Door) -> list[list[str]]:
    """Twelve conversations of four turns, through both proxies: the replicas of each."""
    homes = []
    for number in range(12):
        text = f"conversation {number}: " + "how it begins " * 80
        turns = [await (head, worker)[n % 2].ask(prompt(text + "and on " * n, 4)) for n in range(4)]
        homes.append(sorted({turn.replica for turn in turns}))
    return homes


async def overflow(head: Door) -> list[int]:
    """Twelve open streams of one session, begun one after the other: how many each replica got."""
    streams = []
    for number in range(12):
        streams.append(head.stream(prompt(f"{number}", 8000), "one session"))
        await until("a piece", lambda: streams[-1][0].pieces > 0)
    for _, reading in streams:
        reading.cancel()
    return [n for _, n in Counter(reply.replica for reply, _ in streams).most_common()]


async def unbuffered(head: Door) -> dict[str, float]:
    """Seconds until the first piece of a long stream, and until its end."""
    reply, reading = head.stream(prompt("a long one", 600))
    await reading
    first, whole = reply.first_piece - reply.began, reply.ended - reply.began
    return {"pieces": reply.pieces, "first_piece": first, "whole": whole}


async def disconnect(head: Door) -> dict[str, Any]:
    """Clients leave a stream, and a whole reply: how long until the replica has its blocks back."""
    (session, _), *_ = (await replicas(head, 2)).values()
    seen = {}
    for kind in ("stream", "whole"):
        before = await engine_where(head, session, lambda now: now["num_running"] == 0)
        body = prompt("I shall leave", 8000)
        if kind == "stream":
            _, work = head.stream(body, session)
        else:
            sent = head.client.post(
                head.url + "/v1/completions", json=body, headers={"x-session-id": session}
            )
            work = asyncio.create_task(sent)  # type: ignore[arg-type]
        busy = await engine_where(head, session, lambda now: now["num_running"] > 0)
        work.cancel()
        left = time.monotonic()
        after = await engine_where(head, session, lambda now: now["num_running"] == 0)
        blocks = [engine["num_free_blocks"] for engine in (before, busy, after)]
        seen[kind] = {"seconds": time.monotonic() - left, "blocks": blocks}
    return seen


async def engine_where(head: Door, session: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The engine of a session's replica, as soon as this is true of it."""
    deadline = time.monotonic() + PATIENCE
    while not holds(now := (await head.health(session))[1]["engines"][0]):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the replica stayed at {now}")
    return dict(now)


async def kill(head: Door, redeploy: Redeploy) -> dict[str, Any]:
    """One of two replicas is killed with SIGKILL under load, and with a stream open on it."""
    await redeploy(2, num_replicas=2)
    victim, (session, health) = min((await replicas(head, 2)).items())
    cut, reading = head.stream(prompt("cut", 8000), session)
    async with head.load(6) as replies:
        await until("the stream", lambda: cut.pieces > 3)
        await until("load on both", lambda: len({one.replica for one in replies}) == 2)
        os.kill(health["pid"], signal.SIGKILL)
        killed = time.monotonic()
        await until("answers", lambda: sum(one.began > killed + 0.5 for one in replies) > 20)
        replaced = await until(
            "another in its place",
            lambda: len({one.replica for one in replies if one.began > killed} - {victim, ""}) == 2,
        )
    await reading
    failed = [one for one in replies if one.status != 200]
    return {
        "asked": len(replies),
        "failed_open": sum(one.began <= killed for one in failed),
        "failed_later": sum(one.began > killed for one in failed),
        "failures": Counter(f"{one.status} {one.error}" for one in failed),
        "seconds_until_last_failure": max([one.ended for one in failed], default=killed) - killed,
        "seconds_until_replaced": replaced,
        "victim_answered_later": sum(one.began > killed and one.replica == victim for one in replies),
        "cut_stream": asdict(cut),
    }


async def scaling(head: Door, redeploy: Redeploy) -> dict[str, Any]:
    """Load makes one replica two, its end makes them one again; streams are open on both meanwhile."""
    scale = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 4, "metrics_interval_s": 0.4}
    delays = {"look_back_period_s": 1, "upscale_delay_s": 0.5, "downscale_delay_s": 2}
    await redeploy(1, autoscaling_config=scale | delays)
    streams = [head.stream(prompt("first", 6000))]
    async with head.load(8) as replies:
        up = await until("the second replica", lambda: states().get("RUNNING") == 2)
        both = await replicas(head, 2)
    for replica in both:
        streams.append(await stream_on(head, replica))
    down = await until("the end of one", lambda: states().get("RUNNING") == 1)
    decided = time.monotonic()
    await asyncio.gather(*(reading for _, reading in streams))
    await until("one replica", lambda: states() == {"RUNNING": 1})
    return {
        "seconds_up": up,
        "seconds_down": down,
        "witnesses": [asdict(reply) | {"outlived": reply.ended > decided} for reply, _ in streams],
        "load": Counter(f"{one.status} {one.error or ''}".strip() for one in replies),
    }


async def stream_on(head: Door, replica: str) -> Stream:
    """A stream open on that replica, of the first session that comes there: which one would, said under load,
    may have been said by a replica that helped out.
    """
    for number in range(50):
        session = f"witness-{number}"
        reply, reading = head.stream(prompt(session, 5000), session)
        while not reply.pieces and not reading.done():
            await asyncio.sleep(0.02)
        if reply.replica == replica:
            return reply, reading
        reading.cancel()
    raise AssertionError(f"no session came to {replica}")


async def throughput(head: Door, redeploy: Redeploy) -> dict[str, float]:
    """Tokens per second to 16 streams at a time: two replicas, one of them, and a server without Ray; the
    median of rounds in turn, since the machine has other things to do.
    """
    serve.shutdown()  # type: ignore[no-untyped-call]
    await redeploy(2, num_replicas=2, checkpoint="causette", request_router_config=PINNING)
    sessions = [session for session, _ in (await replicas(head, 2)).values()]
    port = free_port()
    alone = Door(head.client, f"http://127.0.0.1:{port}")
    command = [sys.executable, "-m", "server", "--checkpoint=causette", f"--port={port}", "--threads=1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr, stderr=sys.stderr) as server:
        try:
            await until("the server", lambda: is_ready(alone.url))
            ways = {
                "2 replicas": (head, sessions),
                "1 replica": (head, sessions[:1]),
                "one process": (alone, ["-"]),
            }
            speeds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(4):
                for name, (door, spread_over) in ways.items():
                    speeds[name].append(await speed(door, spread_over))
        finally:
            server.kill()
    return {name: statistics.median(found[1:]) for name, found in speeds.items()}  # the first warms up


async def speed(door: Door, sessions: list[str]) -> float:
    gate = asyncio.Semaphore(16)

    async def one(number: int) -> int:
        async with gate:
            reply, reading = door.stream(prompt(f"Number {number} is", 64), sessions[number % len(sessions)])
            await reading
            return reply.tokens

    began = time.monotonic()
    tokens = await asyncio.gather(*(one(number) for number in range(32)))
    return sum(tokens) / (time.monotonic() - began)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(url + "/ready", timeout=5).is_success
    except httpx.HTTPError:
        return False


def refused(option: str) -> str:
    """What is said of an option."""
    try:
        build_app({option: 0})
    except SettingsError as error:
        return str(error)
    return ""


async def scenarios(address: str, checkpoint: str) -> dict[str, Any]:
    """All of them, one after the other."""

    async def redeploy(running: int, checkpoint: str = checkpoint, **deployment: Any) -> float:
        return await deploy(address, checkpoint, running, **deployment)

    seen: dict[str, Any] = {"refused": {name: refused(name) for name in ("port", "max-num-seqs", "no-such")}}
    seen["unloadable"] = await unloadable(address)
    seen["seconds_to_deploy"] = await redeploy(2, num_replicas=2)
    await until("the worker's proxy", lambda: is_ready(WORKER))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=PATIENCE, limits=limits) as client:
        head, worker = Door(client, HEAD), Door(client, WORKER)
        seen["spread"] = await spread(head, worker)
        seen["affinity"] = await affinity(head, worker)
        seen["overflow"] = await overflow(head)
        seen["unbuffered"] = await unbuffered(head)
        seen["disconnect"] = await disconnect(head)
        for work in (kill, scaling, throughput):
            print(json.dumps(seen), file=sys.stderr, flush=True)
            seen[work.__name__] = await work(head, redeploy)
    return seen


def main(checkpoint: str) -> None:
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder  # where the address of the cluster is written, as "ray" below it
        head = NODE | {"include_dashboard": False, "temp_dir": os.path.join(folder, "ray")}
        os.mkdir(head["temp_dir"])
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(**NODE)
            ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
            print(json.dumps(asyncio.run(scenarios(cluster.address, checkpoint))))
        finally:
            ray.shutdown()
            cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(sys.argv[1])
