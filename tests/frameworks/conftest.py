from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.child import ChildServer

CAUSETTE = Path(__file__).parents[2] / "checkpoints" / "causette"


@pytest.fixture(scope="session")
def causette() -> Iterator[str]:
    """URL of a server of the default checkpoint, which is in every checkout."""
    options = ["--quantization", "none"]  # log probabilities are compared with the float32 model
    with ChildServer(["--checkpoint", str(CAUSETTE), *options]) as server:
        yield server.url
        assert "Traceback" not in server.last_lines(100_000)
