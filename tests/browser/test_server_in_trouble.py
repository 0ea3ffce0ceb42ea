"""A server that wants a key, goes away, and comes back: the page says so, and goes on where it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from clients.child import ChildServer
from tests.browser.chat import LAST, Chat
from tests.browser.stage import Pause, Stage, staged
from tests.browser.tab import Tab

pytestmark = pytest.mark.slow

KEY = "a-key-of-ours"
GONE = "ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_EMPTY_RESPONSE"
DENIED = "status of 401"
LOADING = "status of 503"


@pytest.fixture(scope="module")
def locked() -> Iterator[Stage]:
    with staged(api_key=(KEY,)) as stage:
        yield stage


def test_a_key_is_asked_for_kept_for_the_tab_and_sent(tab: Tab, locked: Stage) -> None:
    locked.says("open")
    tab.go(locked.url)
    tab.fill("key", "not-the-key")
    tab.click("key-save")
    tab.wait("() => find('key').length && !said(find('key')[0])")
    tab.fill("key", KEY)
    tab.click("key-save")
    tab.miss("key")
    chat = Chat(tab)
    assert chat.ask("x") == "open"
    assert tab.happened.asked("/v1/chat/completions")[-1].headers["authorization"] == f"Bearer {KEY}"
    tab.reload()
    chat.ready()
    assert chat.ask("x") == "open", "asked once"
    for place in ("document.cookie", "location.href", "document.documentElement.outerHTML"):
        assert KEY not in tab.evaluate(f"() => {place}")
    assert KEY not in tab.evaluate("() => JSON.stringify(localStorage)"), "nobody asked to remember it"
    tab.happened.forgive(DENIED)


def test_a_key_that_was_forgotten_is_asked_for_again(tab: Tab, locked: Stage) -> None:
    locked.says("open")
    tab.go(locked.url)
    tab.fill("key", KEY)
    tab.press("Enter")
    chat = Chat(tab)
    chat.tab.evaluate("() => sessionStorage.clear()")
    chat.tab.reload()
    tab.see("key")
    tab.fill("key", KEY)
    tab.press("Enter")
    chat.ready()
    assert chat.ask("x") == "open"
    tab.happened.forgive(DENIED)


def test_a_server_that_was_killed_is_waited_for(tab: Tab) -> None:
    options = ["--uvicorn-log-level", "error"]
    with ChildServer(options) as server:
        chat = Chat(tab, server.url)
        chat.set(temperature="0")
        first = chat.ask("what is a token?")
        os.kill(server.pid, signal.SIGKILL)
        chat.send("what is attention?")
        chat.finish("error")
        tab.see("banner")
        assert tab.text("banner").strip()
    with ChildServer(options, port=server.port):
        tab.miss("banner")
        tab.click("retry")
        second = chat.finish()
        assert second and second != first
        assert chat.tab.texts("message message-text")[1].strip() == first
    tab.happened.forgive(f"{GONE}|{LOADING}")  # it may have been asked before its model was there


def test_a_server_that_dies_within_a_reply_leaves_what_it_said(tab: Tab) -> None:
    with staged() as stage:
        stage.says("Hello", Pause(60), "never")
        chat = Chat(tab, stage.url)
        chat.send("x")
        tab.read(f"{LAST} message-text", "Hello")
    assert chat.finish("error") == "Hello"
    tab.see("retry")
    tab.see("banner")
    tab.happened.forgive(GONE)
