"""Schemathesis, a fuzzer that knows nothing of us but GET /openapi.json, in an environment of its own.

It sends what the document allows and what it forbids, a case for every bound and keyword, then random ones;
all of its checks hold: no 5xx, no undocumented status, type or form, nothing accepted that the document
forbids, 405 with the methods there are. One check is left out, that whatever the document allows is accepted:
no schema says that `top_logprobs` needs `logprobs`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.child import ChildServer
from tests.frameworks.environments import python_environment, run_step

REQUIREMENTS = Path(__file__).parent / "schemathesis" / "requirements.txt"
SEED, NUM_EXAMPLES = 1, 60
FEWEST_CASES = 1000


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Iterator[ChildServer]:
    """A server of its own, so that its log is about this alone."""
    with ChildServer(["--checkpoint", str(tiny_folder), "--uvicorn-log-level", "error"]) as server:
        yield server


@pytest.mark.slow
def test_nothing_is_found(tiny: ChildServer, environments: Path, tmp_path: Path) -> None:
    python = python_environment(environments, REQUIREMENTS)
    command = [
        *(str(python.parent / "schemathesis"), "run", f"{tiny.url}/openapi.json"),
        *("--mode", "all", "--phases", "coverage,fuzzing", "--continue-on-failure", "--no-color"),
        *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
        *("--seed", str(SEED), "--max-examples", str(NUM_EXAMPLES), "--generation-database", "none"),
    ]
    said = run_step(command, url=tiny.url, home=tmp_path)
    found = re.search(r"(\d+) generated, (\d+) passed", said)
    assert found is not None, said
    assert int(found[1]) == int(found[2]) > FEWEST_CASES, said
    assert "Traceback" not in tiny.last_lines(100_000)
