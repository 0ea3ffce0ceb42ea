"""What the endurance tests print, and the checkpoints they serve.

    $ python -m pytest -m slow tests/endurance

Every test here starts real server processes and holds ratios, counts and bounds that a noisy machine keeps;
what it measured it hands to `figure`, and the terminal shows those lines after the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

LINES = pytest.StashKey[list[str]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line after the tests: figure("burst: 80 admitted, 720 refused, median 429 12 ms")."""
    return request.config.stash.setdefault(LINES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The figures, in the order of the tests."""
    if lines := config.stash.get(LINES, []):
        terminalreporter.section("endurance")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def roomy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A servable checkpoint of two layers and 16,384 positions: a step takes a third of a millisecond or
    more, a reply as many steps as a test wants.
    """
    from tests.endurance.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("checkpoints") / "roomy", num_positions=16_384)
