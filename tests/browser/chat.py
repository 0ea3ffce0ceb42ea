"""The chat page in a person's words: ask, finish, inspect, set. Knows its `data-test` names."""

from __future__ import annotations

from tests.browser.tab import Tab

LAST = "message[-1]"
LAST_TEXT = f"{LAST} message-text"


class Chat:
    """The page, in a tab.

    Args:
        url: where it is; None if the tab shows it already.
    """

    def __init__(self, tab: Tab, url: str | None = None) -> None:
        self.tab = tab
        if url is not None:
            tab.go(url)
        self.ready()

    def ready(self) -> None:
        """Wait until the page knows its server's models."""
        self.tab.wait("() => find('composer').length > 0 && find('model')[0]?.options?.length > 0")

    def send(self, text: str) -> None:
        """Write a message and press the button."""
        self.tab.fill("composer", text)
        self.tab.click("send")

    def finish(self, state: str = "done", place: str = LAST) -> str:
        """What a reply says, once it is in this state."""
        js = """(place, state) => {
          const {role, state: now} = find(place)[0]?.dataset ?? {};
          return role === 'assistant' && now === state;
        }"""
        self.tab.wait(js, place, state)
        return self.tab.text(f"{place} message-text").strip()

    def ask(self, text: str) -> str:
        """The reply to a message."""
        count = self.tab.count("message")
        self.send(text)
        self.tab.wait("(count) => find('message').length > count + 1", count)
        return self.finish()

    def set(self, **values: str) -> None:
        """Choose settings by their names, with _ for -."""
        if not self.tab.count("temperature"):
            self.tab.click("settings")
        for name, value in values.items():
            self.tab.fill(name.replace("_", "-"), value)
        self.tab.press("Escape")
        self.tab.miss("temperature")

    def start_new(self) -> None:
        """A conversation with nothing in it; on a phone the list slides in first."""
        if not self.tab.count("new-chat"):
            self.tab.click("open-sidebar")
        self.tab.click("new-chat")
        self.tab.miss("message")

    def inspect(self, place: str = LAST) -> list[str]:
        """The reply's tokens, once their probabilities are there."""
        self.tab.click(f"{place} inspect")
        self.tab.see(f"{place} token")
        return self.tab.texts(f"{place} token")

    def compare(self, text: str, **values: str) -> tuple[str, str]:
        """What the two sides say to a message, with their settings by name, such as `b_temperature`."""
        if not self.tab.count("compare-view"):
            self.tab.click("compare")
        for name, value in values.items():
            self.tab.fill(f"compare-{name.replace('_', '-', 1)}", value)
        self.tab.fill("compare-prompt", text)
        self.tab.click("compare-run")
        self.tab.wait("() => said(find('compare-run')[0]) !== 'Stop' && said(find('compare-kl')[0]).trim()")
        return self.tab.text("compare-a-text").strip(), self.tab.text("compare-b-text").strip()

    def siblings(self, place: str) -> tuple[int, int]:
        """Which of a message's alternatives is shown, of how many, as it is written there."""
        shown, _, count = self.tab.text(f"{place} sibling-count").partition("/")
        return int(shown), int(count)
