"""What a model writes at its worst: the page shows it, does none of it, and goes on."""

from __future__ import annotations

import pytest

from tests.browser.chat import LAST_TEXT, Chat
from tests.browser.stage import Stage
from tests.browser.tab import Tab

pytestmark = pytest.mark.slow

MARKUP = {
    "script": "<script>harm()</script>",
    "script in a block": "<div>\n<script>harm()</script>\n</div>",
    "onerror": "<img src=x onerror=harm()>",
    "onload": "<svg onload=harm()><animate onbegin=harm() attributeName=x></svg>",
    "onerror in Markdown": '![x](x" onerror="harm())',
    "javascript link": "[a](javascript:harm()) [b](JaVaScRiPt&colon;harm()) [c](java\tscript:harm())",
    "javascript reference": "[click]\n\n[click]: javascript:harm()",
    "javascript in angle brackets": "<javascript:harm()>",
    "data link": "[click](data:text/html;base64,PHNjcmlwdD5oYXJtKCk8L3NjcmlwdD4=)",
    "vbscript link": "[click](vbscript:harm())",
    "frames": '<iframe src="javascript:harm()"></iframe><object data="x"></object><embed src="x">',
    "form": '<form action="//stranger.test/"><button formaction="javascript:harm()">go</button></form>',
    "meta refresh": '<meta http-equiv="refresh" content="0;url=http://stranger.test/">',
    "base": '<base href="http://stranger.test/">',
    "style": "<style>@import url(http://stranger.test/x.css); body { display: none }</style>",
    "style attribute": '<p style="position:fixed;inset:0;background:url(http://stranger.test/x)">over</p>',
    "remote image": "![x](http://stranger.test/x.png) ![y][z]\n\n[z]: //stranger.test/y.png",
    "remote image in HTML": '<img src="http://stranger.test/x.png"><video poster="http://stranger.test/v">',
    "prefetch": "<link rel=prefetch href=//stranger.test/x><link rel=stylesheet href=//stranger.test/s>",
    "mutation": '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;'
    '&lt;img src=x onerror=harm()&gt;">',
    "template": "<template><img src=x onerror=harm()></template>",
    "noscript": '<noscript><p title="</noscript><img src=x onerror=harm()>">',
    "code fence": '```"><img src=x onerror=harm()>\nx\n```',
    "clobbering": '<a id="composer"></a><form id="messages" name="body"><input name="attributes"></form>',
    "hooks of our own": '<button data-test="send" id="draft">send</button>',
}
HARM = "() => { window.harmed = 0; window.harm = () => { window.harmed += 1; }; }"
FORBIDDEN = (
    "script, img, svg, iframe, object, embed, form, input, button, meta, base, style, link, video, audio, "
    "template, math, [style], [id], [name], [data-test], [onerror], [onload], [onclick]"
)
"""What the page never makes of a reply. It would do nothing, by the page's policy, which complains."""


@pytest.mark.parametrize("kind", MARKUP)
def test_markup_of_a_model_does_nothing(kind: str, told: Chat, stage: Stage) -> None:
    told.tab.evaluate(HARM)
    stage.says(*MARKUP[kind], "\n\nthe end")  # a character at a time: whatever is half there is shown too
    assert told.ask("x").endswith("the end")
    told.tab.pause(20)
    assert told.tab.evaluate("() => window.harmed") == 0
    bad = "(path, forbidden) => [...find(path)[0].querySelectorAll(forbidden)].map((e) => e.outerHTML)"
    assert told.tab.evaluate(bad, LAST_TEXT, FORBIDDEN) == []
    links = "(path) => [...find(path)[0].querySelectorAll('a')].map((a) => [a.protocol, a.rel])"
    for protocol, rel in told.tab.evaluate(links, LAST_TEXT):
        assert protocol in ("http:", "https:", "mailto:", ":") and "noopener" in rel
    stage.says("still here")
    assert told.ask("y") == "still here"


def test_what_a_person_writes_is_text(told: Chat, stage: Stage) -> None:
    told.tab.evaluate(HARM)
    stage.says("fine")
    written = "<img src=x onerror=harm()> **not bold** [x](javascript:harm())"
    told.ask(written)
    assert told.tab.text("message[0] message-text").strip() == written
    assert told.tab.evaluate("() => window.harmed") == 0
    assert "<img" in told.tab.text("conversation[0]"), "its title as well"


MARKDOWN = """**bold** `code`

- one
- two

```python
print(1 < 2)
```

| a | b |
|---|---|
| 1 | 2 |
"""


def test_markdown_is_shown_as_it_is_meant(told: Chat, stage: Stage) -> None:
    stage.says(*MARKDOWN)
    told.ask("x")
    shown = "(path, tags) => [...find(path)[0].querySelectorAll(tags)].map((e) => e.textContent.trim())"
    said = told.tab.evaluate(shown, LAST_TEXT, "strong, code, li, td")
    assert said == ["bold", "code", "one", "two", "print(1 < 2)", "1", "2"]


@pytest.mark.parametrize("code", (0x202E, 0x202D, 0x2066, 0x2067, 0x202B, 0x200F, 0x61C))
def test_characters_that_turn_the_direction_turn_nothing(code: int, told: Chat, stage: Stage) -> None:
    stage.says(f"safe{chr(code)}gpj.exe `x{chr(code)}y` [a{chr(code)}b](http://a.test/{chr(code)})")
    said = told.ask(f"me{chr(code)}too")
    assert chr(code) not in said and f"{code:04X}" in said, "shown, not obeyed"
    assert chr(code) not in told.tab.text("message[0] message-text")
    assert chr(code) not in told.tab.text("conversation[0]")


LONG = {
    "one line": "x" * 100_000,
    "one line of words": "word " * 20_000,
    "one line of markup": "<b>" * 33_000,
    "a line of brackets": "[" * 4_900,
    "quotes in quotes": "> " * 2_400 + "x",
    "lists in lists": "\n".join("  " * depth + "- x" for depth in range(120)),
    "emphasis in emphasis": "*a **b _c " * 480,
    "many lines": "a line of *text* with `code`\n" * 3_500,
    "a table": "|a" * 500 + "|\n" + "|-" * 500 + "|\n" + ("|1" * 500 + "|\n") * 60,
    "an open fence": "```\n" + "x = 1\n" * 15_000,
    "marks on one letter": "e" + "\u0301" * 50_000,
}
PIECE = 2_000


@pytest.mark.parametrize("kind", LONG)
def test_a_hundred_thousand_characters_fit(kind: str, tab: Tab, stage: Stage) -> None:
    chat, text = Chat(tab, stage.url), LONG[kind]
    stage.says(*(text[i : i + PIECE] for i in range(0, len(text), PIECE)))
    chat.ask("x")
    assert tab.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), "no line widens the page"
    stage.says("still here")
    assert chat.ask("y") == "still here"
    tab.reload()  # what is kept is drawn again, all at once
    chat.ready()
    assert chat.finish() == "still here"
