"""The image, built from the Dockerfile and run behind a closed door: start, requests, stop. Needs root.

What buildah and runc need is installed where it is missing, as root may; elsewhere the tests are skipped and
say why. The base is kept in pytest's cache; the built image is removed at the end.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.docker.build_without_daemon import IMAGE, ROOT
from deploy.docker.buildah import NOT_HERE, Store
from llm.runner.native.build import NativeUnavailable, best_isa

MOST_BYTES = 800_000_000
"""Uncompressed; torch's libraries alone are 369 MB, the base 126 MB."""

pytestmark = pytest.mark.slow


def run(module: str, cache: Path, *arguments: str) -> dict[str, Any]:
    """A script's last line, or a skip with the reason it gives."""
    command = [sys.executable, "-m", f"deploy.docker.{module}", "--cache", str(cache), "--install-tools"]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, encoding="utf-8")
    if done.returncode == NOT_HERE:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    print(done.stdout[-6000:])
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def kernel_here() -> str:
    try:
        return best_isa()
    except NativeUnavailable:
        return "None"


@pytest.fixture(scope="module")
def cache(pytestconfig: pytest.Config) -> Iterator[Path]:
    folder = pytestconfig.cache.mkdir("image")
    yield folder
    if shutil.which("buildah"):
        store = Store(folder)
        if store.has(IMAGE):
            store.ask("rmi", IMAGE)


@pytest.fixture(scope="module")
def built(cache: Path) -> dict[str, Any]:
    return run("build_without_daemon", cache)


@pytest.fixture(scope="module")
def tried(cache: Path, built: dict[str, Any]) -> dict[str, Any]:
    return run("try_image", cache)


def test_the_image_is_small_and_holds_what_serves(built: dict[str, Any]) -> None:
    assert built["bytes"] < MOST_BYTES
    packages = {Path(path).name for path in built["parts"]}
    assert {"torch", "numpy"} <= packages
    assert not packages & {"matplotlib", "networkx", "transformers", "pip"}
    assert built["kernels"] == (["avx2", "avx512"] if platform.machine() == "x86_64" else [])


@pytest.mark.parametrize("name", ["baked", "mounted"])
def test_behind_a_closed_door_it_starts_answers_and_stops(tried: dict[str, Any], name: str) -> None:
    run = tried[name]
    assert run["held"] and run["exit_status"] == 0 and run["reply_whole"]
    assert run["stop_seconds"] <= 25 and run["chunks"] > 1
    server, proof = run["proof"]["server"], run["proof"]
    assert set(server["Uid"].split()) == {"10001"} and server["NoNewPrivs"] == "1"
    assert not any(int(server[name], 16) for name in server if name.startswith("Cap"))
    assert proof["interfaces"] == ["lo"] and proof["outside"] == "ENETUNREACH"
    assert set(proof["writes"].values()) == {"EROFS"}
    assert str(proof["kernel"]).split("-")[0] == kernel_here(), (
        "compiled during the build, chosen at the start"
    )


def test_a_checkpoint_from_outside_is_served_by_its_own_name(tried: dict[str, Any]) -> None:
    assert tried["baked"]["model"] == "causette" and tried["mounted"]["model"] == "model"
    assert tried["mounted"]["proof"]["writes"]["/model"] == "EROFS"
    assert tried["mounted"]["without_key"] == 401
