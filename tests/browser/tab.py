"""A tab, as a person uses it: what is seen and clicked is named by its `data-test`.

A place is a path of such names, each inside the one before, one of several chosen by its number as in a list:
`message[-1] token[3]`. What is not shown is not there. Acts wait until their place is there, stands still,
and nothing covers it. Refuses to know what page it shows.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.browser.devtools import DevTools, DevToolsError
from tests.browser.happened import Happened
from tests.browser.places import FILL, FIND, SAID, SPOT

WAIT_SECONDS = 30.0
"""Far more than any step needs: what never comes must end as a failure."""
WIDTH, HEIGHT = 1280, 860
KEYS = {"Enter": ("\r", 13), "Escape": ("", 27), "Tab": ("", 9), "Delete": ("", 46), " ": (" ", 32)}
KEYS |= {"ArrowLeft": ("", 37), "ArrowUp": ("", 38), "ArrowRight": ("", 39), "ArrowDown": ("", 40)}
"""What a key types, and its code."""
MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}


class Tab:
    """One tab of a profile of its own: no cookies, no storage, nothing kept afterwards.

    Attributes:
        happened: what it did and said since it was opened.
    """

    def __init__(self, devtools: DevTools, context: str, session: str) -> None:
        self.happened = Happened()
        self._devtools, self._context, self._session = devtools, context, session
        self._chooser: Future[dict[str, Any]] = Future()

    def start(self) -> None:
        """Note what happens, and be of a desktop's size."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.setInterceptFileChooserDialog", enabled=True)
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.size(WIDTH, HEIGHT)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A call of the protocol, for what no method here does."""
        return self._devtools.call(method, self._session, **params)

    def note(self, method: str, params: dict[str, Any]) -> None:
        """An event, in the reading thread; dialogs are answered, since they stop the page."""
        self.happened.note(method, params)
        if method == "Page.javascriptDialogOpening":
            self._devtools.start("Page.handleJavaScriptDialog", self._session, accept=True)
        elif method == "Page.fileChooserOpened":
            self._chooser.set_result(params)

    def check(self) -> None:
        """Nothing was complained of, nobody was asked anything, no stranger heard of it; then forget it all.

        Raises:
            AssertionError: something was; see Happened.forgive.
        """
        origin = str(self.evaluate("() => location.origin"))
        happened, self.happened = self.happened, Happened()
        strangers = happened.strangers(origin)
        wrong = {"complaints": happened.complaints, "dialogs": happened.dialogs, "strangers": strangers}
        assert not any(wrong.values()), wrong

    # -- where it is

    def go(self, url: str) -> None:
        """To a page, until it has loaded with all that it asked for at once."""
        with self._loaded():
            assert "errorText" not in self.call("Page.navigate", url=url), f"{url} cannot be had"

    def reload(self) -> None:
        """As the key does."""
        with self._loaded():
            self.call("Page.reload")

    @contextmanager
    def _loaded(self) -> Iterator[None]:
        loaded: Future[None] = Future()

        def see(method: str, params: dict[str, Any]) -> None:
            if method == "Page.loadEventFired" and not loaded.done():
                loaded.set_result(None)

        with self._devtools.listening(self._session, see):
            yield
            loaded.result(WAIT_SECONDS)

    def size(self, width: int, height: int) -> None:
        """The window's, in CSS pixels."""
        window = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **window)

    def prefer(self, **features: str) -> None:
        """What the person's system says: `prefer(prefers_color_scheme="dark")`."""
        said = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=said)

    def throttle(self, bytes_per_second: int | None) -> None:
        """A slow line, or none."""
        line = {"offline": False, "latency": 0, "uploadThroughput": -1}
        self.call("Network.emulateNetworkConditions", downloadThroughput=bytes_per_second or -1, **line)

    # -- what is seen

    def evaluate(self, function: str, *arguments: object) -> Any:
        """What a function of JavaScript gives, after it has waited. `find(path)` gives a place's elements,
        `said(element)` what is written in one.

        Raises:
            AssertionError: it threw.
        """
        given = ", ".join(map(json.dumps, arguments))
        answer = self.call(
            "Runtime.evaluate",
            expression=f"((find, said) => ({function})({given}))({FIND}, {SAID})",
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise AssertionError(details.get("exception", details).get("description", details["text"]))
        return answer["result"].get("value")

    def wait(self, function: str, *arguments: object) -> Any:
        """What a function gives, once that is true.

        Raises:
            AssertionError: it never was, in WAIT_SECONDS; says what the page shows and complained of.
        """
        loop = f"""async (...given) => {{
          const end = performance.now() + {WAIT_SECONDS * 1000};
          for (;;) {{
            const value = await ({function})(...given);
            if (value) return value;
            if (performance.now() > end) throw new Error('never: ' + {json.dumps(function)});
            await new Promise((resolve) => setTimeout(resolve, 20));
          }}
        }}"""
        try:
            return self.evaluate(loop, *arguments)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{arguments}\n{self.describe()}") from None

    def pause(self, milliseconds: int) -> None:
        """Time passes in the page: for what must not happen, which nobody can wait for."""
        self.evaluate("(ms) => new Promise((resolve) => { setTimeout(resolve, ms); })", milliseconds)

    def describe(self) -> str:
        """What it shows and what it complained of, for a failure's message."""
        shown = self.evaluate("() => document.body.innerText.slice(0, 4000)")
        asked = [f"{r.method} {r.url} {r.status}" for r in self.happened.requests.values()][-8:]
        return f"shows:\n{shown}\ncomplaints: {self.happened.complaints}\nlast requests: {asked}"

    def texts(self, path: str) -> list[str]:
        """What is written in each of a place's elements."""
        return list(self.evaluate("(path) => find(path).map(said)", path))

    def text(self, path: str) -> str:
        """What is written in the first element of a place, once there is one."""
        self.see(path)
        return self.texts(path)[0]

    def count(self, path: str) -> int:
        """How many elements a place has."""
        return int(self.evaluate("(path) => find(path).length", path))

    def attribute(self, path: str, name: str) -> str | None:
        """An attribute of a place, once it is there."""
        self.see(path)
        value = self.evaluate("(path, name) => find(path)[0].getAttribute(name)", path, name)
        return None if value is None else str(value)

    def see(self, path: str) -> None:
        """Wait until a place is there."""
        self.wait("(path) => find(path).length > 0", path)

    def miss(self, path: str) -> None:
        """Wait until a place is not there."""
        self.wait("(path) => find(path).length === 0", path)

    def read(self, path: str, words: str) -> None:
        """Wait until these words, in whatever case, stand in a place."""
        js = "(path, words) => find(path).some((e) => said(e).toLowerCase().includes(words))"
        self.wait(js, path, words.lower())

    def picture(self) -> bytes:
        """What it shows, as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    # -- what is done

    def click(self, path: str) -> None:
        """With the mouse, in the middle of a place."""
        x, y = self.hover(path)
        where = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", **where)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **where)

    def hover(self, path: str) -> tuple[float, float]:
        """The mouse stands on the middle of a place, which is told."""
        x, y = self._spot(path)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def fill(self, path: str, value: str) -> None:
        """Type over what is in a place, or choose a value."""
        self._spot(path)
        if not self.evaluate(FILL, path, value):
            return
        if value:
            self.call("Input.insertText", text=value)
        else:
            self.press("Delete")

    def press(self, key: str) -> None:
        """A key, such as `a`, `Enter`, `Control+Enter`."""
        *held, name = key.split("+")
        text, code = KEYS.get(name) or (name, ord(name.upper()))
        modifiers = sum(MODIFIERS[one] for one in held)
        pressed = {"key": name, "code": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        if text and modifiers in (0, MODIFIERS["Shift"]):
            pressed["text"] = text
        self.call("Input.dispatchKeyEvent", type="keyDown", **pressed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def choose(self, path: str, file: Path) -> None:
        """Click what asks for a file, and give it one."""
        self.click(path)
        asked = self._chooser.result(WAIT_SECONDS)
        self._chooser = Future()
        self.call("DOM.setFileInputFiles", files=[str(file)], backendNodeId=asked["backendNodeId"])

    def download(self, path: str, folder: Path) -> Path:
        """Click what gives a file, and wait until it is there."""
        done: Future[str] = Future()
        names: dict[str, str] = {}

        def see(method: str, params: dict[str, Any]) -> None:
            if method == "Browser.downloadWillBegin":
                names[params["guid"]] = params["suggestedFilename"]
            elif method == "Browser.downloadProgress" and params["state"] != "inProgress" and not done.done():
                done.set_result(names[params["guid"]] if params["state"] == "completed" else "")

        where = {"downloadPath": str(folder), "browserContextId": self._context, "eventsEnabled": True}
        with self._devtools.listening(None, see):
            self._devtools.call("Browser.setDownloadBehavior", behavior="allow", **where)
            self.click(path)
            name = done.result(WAIT_SECONDS)
        assert name, "the download was given up"
        return folder / name

    def _spot(self, path: str) -> tuple[float, float]:
        loop = f"""(path) => Promise.race([({SPOT})(path), new Promise((_, fail) =>
          setTimeout(() => fail(new Error(`${{path}} cannot be clicked`)), {WAIT_SECONDS * 1000}))])"""
        try:
            x, y = self.evaluate(loop, path)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None
        return x, y


@contextmanager
def opened(devtools: DevTools) -> Iterator[Tab]:
    """A tab in a profile of its own, gone afterwards."""
    context = devtools.call("Target.createBrowserContext")["browserContextId"]
    try:
        made = devtools.call("Target.createTarget", url="about:blank", browserContextId=context)
        session = devtools.call("Target.attachToTarget", targetId=made["targetId"], flatten=True)["sessionId"]
        tab = Tab(devtools, context, session)
        with devtools.listening(session, tab.note):
            tab.start()
            yield tab
    finally:
        with suppress(DevToolsError):  # the browser is gone, and the context with it
            devtools.call("Target.disposeBrowserContext", browserContextId=context)
