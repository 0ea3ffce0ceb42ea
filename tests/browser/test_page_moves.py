"""While a long reply streams the page stays quick and small.

A task of the page that takes longer than 200 ms is one that a person notices. What the machine does meanwhile
is no fault of the page: a try counts only if a second tab, which does nothing, was not frozen as well, and
the best of three tries decides.
"""

from __future__ import annotations

import pytest

from tests.browser.chat import Chat
from tests.browser.chromium import Chromium
from tests.browser.stage import Pause, Stage
from tests.browser.tab import Tab, opened

pytestmark = pytest.mark.slow

NUM_TOKENS, TOKENS_PER_SECOND, TOGETHER = 2_000, 1_000, 10
MAX_TASK_MS = 200
MAX_NODES = 1_500
TRIES = 3

WATCH = """() => {
  window.tasks = []; window.nodes = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) window.tasks.push(Math.round(entry.duration));
  }).observe({type: 'longtask'});
  const count = () => { window.nodes = Math.max(window.nodes, document.getElementsByTagName('*').length); };
  setInterval(count, 50);
}"""
"""Every task of more than 50 ms, and the most elements there ever were."""

IDLE = """() => {
  window.late = 0;
  let before = performance.now();
  setInterval(() => {
    const now = performance.now();
    window.late = Math.max(window.late, now - before - 10);
    before = now;
  }, 10);
}"""
"""How late a timer was at most in a tab that does nothing else."""

PARAGRAPH = """## A heading

A *paragraph* with `code`, **weight** and a [link](https://example.com/), of a few lines that go on and on.

- one
- two

```python
for i in range(10):
    print(i)
```

| a | b |
|---|---|
| 1 | 2 |

"""
REPLIES = {
    "markdown": PARAGRAPH * 40,
    "one block of code": "```python\n" + "for i in range(10): print(i)\n" * 280,
    "one list": "- an item of a list with *some* words\n" * 210,
    "one line of 100,000 characters": "0123456789" * 10_000,
}
"""Each in 2,000 tokens."""


def script(text: str) -> list[str | Pause]:
    """A text in tokens, ten of which come together."""
    cuts = [number * len(text) // NUM_TOKENS for number in range(NUM_TOKENS + 1)]
    steps: list[str | Pause] = []
    for number in range(NUM_TOKENS):
        if number % TOGETHER == 0:
            steps.append(Pause(TOGETHER / TOKENS_PER_SECOND))
        steps.append(text[cuts[number] : cuts[number + 1]])
    return steps


def watch_one(chat: Chat, idle: Tab) -> tuple[int, int, float]:
    """A reply's longest task in ms, the most elements, and how late the idle tab was."""
    idle.evaluate("() => { window.late = 0; }")
    chat.tab.evaluate("() => { window.tasks.length = 0; window.nodes = 0; }")
    chat.send("x")
    chat.finish()
    longest = chat.tab.evaluate("() => Math.max(0, ...window.tasks)")
    return longest, chat.tab.evaluate("() => window.nodes"), idle.evaluate("() => window.late")


@pytest.mark.parametrize("kind", REPLIES)
def test_two_thousand_tokens_block_nothing(kind: str, tab: Tab, chromium: Chromium, stage: Stage) -> None:
    stage.says(*script(REPLIES[kind]))
    measured = []
    with opened(chromium.devtools) as idle:
        idle.go(stage.url)
        idle.evaluate(IDLE)
        chat = Chat(tab, stage.url)
        tab.evaluate(WATCH)
        for _ in range(TRIES):
            tab.click("new-chat")
            measured.append(watch_one(chat, idle))
            if measured[-1][0] <= MAX_TASK_MS:
                break
    print("longest task in ms, elements, idle tab late by ms:", measured)
    assert max(nodes for _, nodes, _ in measured) <= MAX_NODES
    fair = [longest for longest, _, late in measured if late <= MAX_TASK_MS]
    if not fair:
        pytest.skip(f"the machine itself stood still: {measured}")
    assert min(fair) <= MAX_TASK_MS
