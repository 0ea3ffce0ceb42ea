from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from clients.child import ChildServer
from tests.browser.chat import Chat
from tests.browser.chromium import Chromium, NoChromium, find_chromium
from tests.browser.stage import Stage, staged
from tests.browser.tab import Tab, opened


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """One browser for all tests; a tab has a profile of its own."""
    with ExitStack() as stack:
        try:
            browser = stack.enter_context(Chromium(find_chromium()))
        except NoChromium as reason:
            pytest.skip(str(reason))
        yield browser


@pytest.fixture
def tab(chromium: Chromium) -> Iterator[Tab]:
    """A tab in which nothing must go wrong."""
    with opened(chromium.devtools) as tab:
        yield tab
        tab.check()


@pytest.fixture(scope="session")
def causette() -> Iterator[ChildServer]:
    """A server of the default checkpoint."""
    with ChildServer(["--uvicorn-log-level", "error"]) as server:
        yield server
        assert "Traceback" not in server.last_lines(100_000)


@pytest.fixture
def chat(tab: Tab, causette: ChildServer) -> Chat:
    """The page of the default checkpoint, whose replies are the likeliest ones."""
    chat = Chat(tab, causette.url)
    chat.set(temperature="0")
    return chat


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A server that says what it is told."""
    with staged() as stage:
        yield stage


@pytest.fixture(scope="module")
def worn_tab(chromium: Chromium) -> Iterator[Tab]:
    """One for a module: what a test leaves behind, the next one has to bear."""
    with opened(chromium.devtools) as tab:
        yield tab


@pytest.fixture
def told(worn_tab: Tab, stage: Stage) -> Iterator[Chat]:
    """The page of the stage, in a new conversation, in which nothing must go wrong."""
    chat = Chat(worn_tab, stage.url)
    chat.start_new()
    yield chat
    chat.tab.check()
