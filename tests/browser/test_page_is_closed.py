"""What the page is made of: little, nothing from elsewhere, and nothing runs but its own files."""

from __future__ import annotations

import pytest

from tests.browser.chat import Chat
from tests.browser.happened import Request
from tests.browser.stage import Stage
from tests.browser.tab import Tab

pytestmark = pytest.mark.slow

MAX_BYTES, MAX_REQUESTS = 250 << 10, 12

STRANGER = "http://stranger.test/"
MADE = (
    "const make = (tag, fields) => document.body.append(Object.assign(document.createElement(tag), fields))"
)
INJECTIONS = {
    "a script in the page": "make('script', {textContent: 'harm = 1'})",
    "a script of a stranger": "make('script', {src: stranger})",
    "an event handler": "document.body.setAttribute('onclick', 'harm = 1'); document.body.click()",
    "a javascript: link": "make('a', {href: 'javascript:harm = 1'}); document.body.lastChild.click()",
    "eval": "setTimeout(() => window.eval('harm = 1'))",  # later: what a tab evaluates may call it
    "markup past the sanitizer": "document.body.innerHTML += '<img src=x onerror=\"harm = 1\">'",
    "a picture of a stranger": "make('img', {src: stranger})",
    "a frame": "make('iframe', {src: stranger})",
    "a style of a stranger": "make('link', {rel: 'stylesheet', href: stranger})",
    "a style in the page": "make('style', {textContent: `@import '${stranger}'`})",
    "news from a stranger": "fetch(stranger).then(() => { harm = 1; }, () => {})",
}
"""What would run if a hole were found; `make` appends an element."""


def test_it_weighs_little(tab: Tab, stage: Stage) -> None:
    chat = Chat(tab, stage.url)
    chat.ask("x")
    opened = list(tab.happened.requests.values())
    assert len([one for one in opened if is_file(one)]) <= MAX_REQUESTS
    chat.inspect()
    tab.click("compare")
    tab.see("compare-run")
    sizes: dict[str, int] = {}
    for one in filter(is_file, tab.happened.requests.values()):
        assert one.status == 200
        sizes[one.path] = max(sizes.get(one.path, 0), one.num_bytes)
    print(f"{sum(sizes.values())} bytes in {len(sizes)} files")
    assert len(sizes) <= MAX_REQUESTS and 20_000 < sum(sizes.values()) <= MAX_BYTES


def is_file(request: Request) -> bool:
    """Whether it is of the page itself."""
    return request.path == "/" or request.path.startswith("/web/")


@pytest.mark.parametrize("how", INJECTIONS)
def test_nothing_else_runs_in_it(how: str, told: Chat) -> None:
    tab = told.tab
    tried = f"try {{ {INJECTIONS[how]}; }} catch (error) {{ console.error(error.message); }}"
    tab.evaluate(f"(stranger) => {{ {MADE}; {tried} }}", STRANGER)
    tab.pause(100)
    assert tab.evaluate("() => typeof harm") == "undefined"
    tab.happened.forgive("Content Security Policy|Trusted")
    for one in tab.happened.forget(STRANGER):
        assert one.failure == "csp", "refused before it was sent"
