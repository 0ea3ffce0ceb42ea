"""The tests' own eyes and hands: what a tab does not see or do, no test of the page would notice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.tab import Tab
from tests.web import Web

pytestmark = pytest.mark.slow

PAGE = """<!doctype html><title>tab</title><link rel=icon href=data:,>
<p data-test=said></p>
<div data-test=row><button data-test=do>one</button></div>
<div data-test=row><button data-test=do>two</button><button data-test=do hidden>three</button></div>
<textarea data-test=field>old</textarea>
<select data-test=choice><option>a<option>b</select>
<input data-test=range type=range max=10>
<input data-test=file type=file>
<a data-test=get download=some.txt href=data:text/plain,text>get</a>
<script>
const say = (words) => { document.querySelector('p').textContent += words + ' '; };
for (const button of document.querySelectorAll('button')) button.onclick = () => say(button.textContent);
for (const name of ['select', 'input', 'textarea'])
  document.querySelector(name).onchange = (event) => say(event.target.value);
document.querySelector('textarea').onkeydown = (event) => say((event.ctrlKey ? 'Control+' : '') + event.key);
document.querySelector('[type=file]').onchange = async (event) => say(await event.target.files[0].text());
</script>"""


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as web:
        web.headers = {"Content-Type": "text/html"}
        web.files["/"] = PAGE.encode()
        yield web


def test_it_sees_and_does(tab: Tab, web: Web, tmp_path: Path) -> None:
    tab.go(web.url)
    assert tab.texts("do") == ["one", "two"], "what is hidden is not there"
    assert tab.texts("row[-1] do") == ["two"] and tab.count("row") == 2
    tab.click("row[1] do[0]")
    tab.fill("field", "new")
    tab.press("Control+Enter")
    tab.fill("choice", "b")
    tab.fill("range", "7")
    (tmp_path / "file").write_text("inside")
    tab.choose("file", tmp_path / "file")
    tab.read("said", "INSIDE")
    assert tab.text("said").split() == ["two", "Control+Enter", "new", "b", "7", "inside"]
    assert tab.download("get", tmp_path).read_text() == "text"
    tab.fill("field", "")
    assert tab.text("field") == ""
    tab.reload()
    tab.miss("nothing")
    assert tab.text("said") == "" and tab.attribute("file", "type") == "file"


def test_it_notes_what_goes_wrong(tab: Tab, web: Web) -> None:
    tab.go(web.url)
    web.status["/gone"] = 404
    tab.evaluate("""() => {
      console.error('an error', 1);
      setTimeout(() => { throw new Error('thrown'); });
      new Image().src = 'http://stranger.test/x.png';
      alert('hello');
      return fetch('/gone', {method: 'GET'});
    }""")
    tab.pause(50)
    for provoked in ("an error 1", "Error: thrown", "404", "ERR_NAME_NOT_RESOLVED"):
        tab.happened.forgive(provoked)
    assert tab.happened.dialogs == ["alert: hello"]
    tab.happened.dialogs.clear()
    assert tab.happened.strangers(web.url) == ["http://stranger.test/x.png"]
    assert [one.status for one in tab.happened.asked("/gone", "GET")] == [404]
    tab.happened.requests.clear()


def test_what_never_comes_says_what_there_was(tab: Tab, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.browser.tab.WAIT_SECONDS", 0.1)
    tab.go(web.url)
    with pytest.raises(AssertionError, match=r"(?s)never.*nowhere.*two"):
        tab.see("nowhere")
    tab.evaluate("() => { find('do')[0].disabled = true; }")
    with pytest.raises(AssertionError, match=r"(?s)cannot be clicked.*two"):
        tab.click("row[0] do")
    tab.evaluate("() => { document.body.innerHTML += '<div style=\"position:fixed;inset:0\"></div>'; }")
    with pytest.raises(AssertionError, match="cannot be clicked"):
        tab.click("row[1] do")
