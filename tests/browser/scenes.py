"""What a person meets in the page, one scene each: for the checker of accessibility and for pictures.

python -m tests.browser.scenes docs/screens checkpoints/smollm2-135m-instruct    # takes the pictures again
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from clients.child import ChildServer
from tests.browser.chat import LAST, Chat
from tests.browser.chromium import Chromium, find_chromium
from tests.browser.tab import Tab, opened

LOOKS = {"light": ("light", 1120, 760), "dark": ("dark", 1120, 760), "phone": ("light", 390, 844)}
"""A person's system, and the window."""
COLOURS = 64
"""Of a picture: enough for text, and a third of the bytes."""


def look(tab: Tab, name: str) -> None:
    """Give a tab one of the LOOKS, in which nothing moves."""
    scheme, width, height = LOOKS[name]
    tab.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    tab.size(width, height)


def first(chat: Chat) -> None:
    """Nothing said yet."""


def conversation(chat: Chat) -> None:
    """Questions and answers, the last one drawn twice."""
    chat.ask("Who are you?")
    chat.ask("Write hello world in Python.")
    chat.set(temperature="0.7", seed="7")
    chat.tab.click(f"{LAST} regenerate")
    chat.tab.read(f"{LAST} sibling-count", "2/2")
    chat.finish()


def inspector(chat: Chat) -> None:
    """A reply's tokens, one that was a close choice looked at."""
    chat.set(temperature="0.7", seed="3", max_tokens="60")
    chat.ask("What is the sea like in winter?")
    chat.inspect()
    chat.tab.hover(f"{LAST} token[{chat.tab.evaluate(CLOSEST)}]")
    chat.tab.see("token-card")


CLOSEST = """() => {
  const certain = find('token').map((token) => 1 - Number(token.style.getPropertyValue('--off')));
  return certain.map((p, i) => [Math.abs(p - 0.35), i]).toSorted(([a], [b]) => a - b)[0][1];
}"""
"""The token whose probability is nearest to a third."""


def settings(chat: Chat) -> None:
    """Open beside a conversation."""
    chat.ask("what is a token?")
    chat.tab.click("settings")
    chat.tab.see("temperature")


def editor(chat: Chat) -> None:
    """A question being edited."""
    chat.ask("what is a token?")
    chat.tab.click("message[0] edit")
    chat.tab.see("edit-box")


def compare(chat: Chat) -> None:
    """Two replies beside each other."""
    chat.set(max_tokens="60")
    chat.compare("What is the sea like in winter?", a_temperature="0", b_temperature="0.7", seed="5")


Scene = Callable[[Chat], None]
SCENES: list[Scene] = [first, conversation, inspector, settings, editor, compare]
PICTURES: list[Scene] = [conversation, inspector, compare]


def take(tab: Tab) -> bytes:
    """What the tab shows, as a small PNG."""
    tab.pause(500)  # the count follows, fades are over
    picture = Image.open(io.BytesIO(tab.picture())).convert("RGB")
    small = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def main() -> None:
    """Every picture in every look, into a folder."""
    folder, checkpoint = Path(sys.argv[1]), sys.argv[2]
    folder.mkdir(parents=True, exist_ok=True)
    with ChildServer(["--checkpoint", checkpoint]) as server, Chromium(find_chromium()) as chromium:
        for name in LOOKS:
            for scene in PICTURES:
                with opened(chromium.devtools) as tab:
                    look(tab, name)
                    chat = Chat(tab, server.url)
                    chat.set(temperature="0")
                    scene(chat)
                    file = folder / f"{scene.__name__}-{name}.png"
                    file.write_bytes(take(tab))
                    print(file, file.stat().st_size)


if __name__ == "__main__":
    main()
