"""Ray Serve with a real cluster of two nodes on this machine; `two_nodes.py` acts, here it is judged.

One run for all tests, about three minutes once Ray's environment is there (it is kept, as the frameworks'
are). Counts and bounds only: two cores are no place to compare speeds, so those are printed.
"""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.endurance.tiny import save_tiny
from tests.frameworks.environments import python_environment

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).parent / "ray" / "requirements.txt"
RUN_SECONDS = 900
"""Far more than is ever needed: what hangs must end as a failure."""

pytestmark = pytest.mark.slow
Show = Callable[[str], None]


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Show:
    """Print a line that is seen although the test passes."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\nray: {line}")

    return say


@pytest.fixture(scope="module")
def interpreter(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with Ray and what Causerie itself needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    together = tmp_path_factory.mktemp("environment") / "ray" / "requirements.txt"
    together.parent.mkdir()
    together.write_text(REQUIREMENTS.read_text() + "\n".join(project["dependencies"]) + "\n")
    assert pytestconfig.cache is not None
    return python_environment(pytestconfig.cache.mkdir("frameworks"), together)


@pytest.fixture(scope="module")
def seen(interpreter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `two_nodes.py` saw."""
    folder = tmp_path_factory.mktemp("ray")
    checkpoint = save_tiny(folder / "tiny", num_positions=8192)
    surroundings = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    command = [str(interpreter), str(Path(__file__).with_name("two_nodes.py")), str(checkpoint)]
    with (folder / "log").open("w") as log:
        ran = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=surroundings, timeout=RUN_SECONDS
        )
    assert ran.returncode == 0, (folder / "log").read_text()[-8000:]
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_options_that_cannot_be_used_are_refused_in_one_line(seen: dict[str, Any]) -> None:
    assert "http_options" in seen["refused"]["port"]
    assert "--max-num-seqs" in seen["refused"]["max-num-seqs"]
    assert "--no-such" in seen["refused"]["no-such"]
    assert not any("\n" in line for line in seen["refused"].values())


def test_requests_spread_over_both_replicas(seen: dict[str, Any], show: Show) -> None:
    spread = seen["spread"]
    show(f"80 requests went {sorted(spread['by_replica'].values())}")
    assert spread["statuses"] == {"200": 80}
    assert len(spread["by_replica"]) == 2 and min(spread["by_replica"].values()) >= 16


def test_no_header_comes_twice(seen: dict[str, Any]) -> None:
    assert seen["spread"]["repeated_headers"] == []


def test_conversations_stay_with_their_replicas(seen: dict[str, Any], show: Show) -> None:
    """All, but for a replica that does not answer its proxy for a second. At random one in eight would."""
    whole = [homes[0] for homes in seen["affinity"] if len(homes) == 1]
    show(f"{len(whole)} of 12 conversations of four turns stayed with one replica")
    assert len(whole) >= 9 and all(whole)
    assert len(set(whole)) == 2  # one in 256 that nine agree


def test_a_busy_replica_loses_requests_of_its_conversations(seen: dict[str, Any]) -> None:
    own, other = seen["overflow"]
    assert own + other == 12 and other >= 2


def test_why_a_model_cannot_be_loaded_is_in_rays_status(seen: dict[str, Any]) -> None:
    assert "/no/such/checkpoint: no such file" in seen["unloadable"]


@pytest.mark.parametrize("kind", ["stream", "whole"])
def test_a_client_that_leaves_frees_its_blocks(seen: dict[str, Any], show: Show, kind: str) -> None:
    before, busy, after = seen["disconnect"][kind]["blocks"]
    show(f"{kind}: blocks free again {1000 * seen['disconnect'][kind]['seconds']:.0f} ms after a client left")
    assert busy < before == after


def test_a_stream_comes_piece_by_piece_through_the_proxy(seen: dict[str, Any]) -> None:
    reply = seen["unbuffered"]
    assert reply["pieces"] > 100
    assert reply["first_piece"] < reply["whole"] / 4


def test_a_killed_replicas_traffic_moves_on(seen: dict[str, Any], show: Show) -> None:
    kill = seen["kill"]
    show(
        f"kill -9 of one of two: {kill['failed_open']} open and {kill['failed_later']} later requests of "
        f"{kill['asked']} failed, the last {1000 * kill['seconds_until_last_failure']:.0f} ms after it; "
        f"another in its place after {kill['seconds_until_replaced']:.1f} s"
    )
    assert kill["victim_answered_later"] == 0
    assert kill["failed_open"] + kill["failed_later"] <= 12  # six lanes, each may lose one or two
    assert kill["failed_later"] <= 6
    assert all(
        failure.startswith("503 ") and "replica_unavailable" in failure for failure in kill["failures"]
    )


def test_a_stream_of_a_killed_replica_ends_with_an_error_and_done(seen: dict[str, Any]) -> None:
    cut = seen["kill"]["cut_stream"]
    assert cut["status"] == 200 and cut["pieces"] > 3
    assert cut["done"] and "replica_unavailable" in cut["error"]


def test_streams_survive_scaling(seen: dict[str, Any], show: Show) -> None:
    scaling = seen["scaling"]
    show(
        f"1 → 2 replicas {scaling['seconds_up']:.1f} s after load began, back "
        f"{scaling['seconds_down']:.1f} s after it ended; {len(scaling['witnesses'])} open streams complete"
    )
    first, *others = scaling["witnesses"]
    assert len({one["replica"] for one in others}) == 2
    assert {one["tokens"] for one in others} == {5000} and first["tokens"] == 6000
    assert all(one["finish"] == "length" and one["done"] and not one["error"] for one in (first, *others))
    assert any(one["outlived"] for one in others)
    assert set(scaling["load"]) == {"200"}


def test_throughput_is_told(seen: dict[str, Any], show: Show) -> None:
    speeds = seen["throughput"]
    show("tokens/s to 16 streams, causette: " + ", ".join(f"{k} {v:.0f}" for k, v in speeds.items()))
    assert set(speeds) == {"2 replicas", "1 replica", "one process"} and min(speeds.values()) > 0
