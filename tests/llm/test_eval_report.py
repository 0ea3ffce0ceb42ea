"""The page: what differs comes first, and nothing a model wrote becomes markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.chat.template import Message
from llm.checkpoint import Checkpoint, open_checkpoint
from llm.errors import OptionError
from llm.eval.cases import Case, grade
from llm.eval.compare import Comparison, Findings, Terms
from llm.eval.divergence import Divergence
from llm.eval.passages import Passage
from llm.eval.report import check_path, figures, pairs, write_report
from llm.likelihood import Likelihood

HOSTILE = [
    "<script>alert(1)</script>",
    "</td></table><img src=x onerror=alert(1)>",
    "a | b || \\| c\n| --- |\n# head",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png) <http://evil.example>",
    "http://evil.example www.evil.example `code` **bold** ~~gone~~ &lt;b&gt; $x$",
    "\u202eright to left\u2066 \x00\x1b[31m\u2028 end",
    "'\" onmouseover=alert(1) x='",
    "",
]


def cases(*questions: str) -> list[Case]:
    return [Case((Message("user", q),), (("yes",),), "yes") for q in questions]


def comparison(checkpoint: Checkpoint, asked: list[Case], one: list[str], two: list[str]) -> Comparison:
    terms = Terms(cases=asked, passages=[Passage("f:1", (), "ab")])
    both = [
        Findings(f"m{i}", checkpoint, [said], [grade(asked, said)], [Likelihood(2.0 + i, 2)])
        for i, said in enumerate((one, two))
    ]
    return Comparison(terms, both[0], both[1], [None] * len(asked), Divergence(7, 0.25, 1.5, 0.5))


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Checkpoint:
    return open_checkpoint(tiny_folder)


def test_what_differs_comes_first(tiny: Checkpoint) -> None:
    asked = cases("same", "words", "right", "also same")
    found = comparison(tiny, asked, ["no", "yes a", "yes", "yes"], ["no", "yes b", "no", "yes"])
    assert [(pair.case.question, pair.rank) for pair in pairs(found)] == [
        ("right", 0),
        ("words", 1),
        ("same", 2),
        ("also same", 2),
    ]


def test_the_figures(tiny: Checkpoint) -> None:
    found = comparison(tiny, cases("a", "b"), ["yes", "no"], ["yes", "yes"])
    rows = {row[0]: row[1:] for row in figures(found)}
    assert rows[""] == ("m0", "m1")
    assert rows["right, greedy"] == ("1/2 = 50.0%", "2/2 = 100.0%")
    assert rows["perplexity"] == ("2.718", "4.482")
    assert rows["KL per token, mean"][0] == "0.2500"


class Tags(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


OURS = {"html", "meta", "style", "title", "h1", "h2", "p", "table", "tr", "td", "th"}


def test_a_hostile_model_writes_no_markup(tiny: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "report.html"
    write_report(path, comparison(tiny, cases(*HOSTILE), HOSTILE, HOSTILE[::-1]))
    page = Tags(path.read_text())
    assert page.tags == OURS
    assert page.attributes == {"lang", "charset", "http-equiv", "content", "name"}
    assert HOSTILE[0] in page.text and HOSTILE[1] in page.text, "as it was, for people to read"
    assert not re.search("[\u202e\u2066\u2028\x00\x1b]", path.read_text())


@given(st.text(max_size=60))
def test_no_text_becomes_a_tag(text: str) -> None:
    from llm.eval.report import _text

    assert not Tags(f"<p>{_text(text)}</p>").tags - {"p"}


_UNESCAPED = re.compile(r"(?<!\\)(?:\\\\)*[`*_\[\]<>()#!|&~$]")


def test_markdown_keeps_its_tables(tiny: Checkpoint, tmp_path: Path) -> None:
    """Every row has its six cells, and every mark of the model's is escaped."""
    path = tmp_path / "report.md"
    write_report(path, comparison(tiny, cases(*HOSTILE), HOSTILE, HOSTILE[::-1]))
    body = path.read_text().split("## ", 1)[1]
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert len(rows) == len(HOSTILE) + 2 * body.count("| question |")
    for row in rows:
        cells = re.split(r"(?<!\\)(?:\\\\)*\|", row)[1:-1]
        assert len(cells) == 6, row
        assert not _UNESCAPED.search("".join(cells).replace("<br>", "")), row
    assert "www.evil" not in body and "http://" not in body


def test_the_end_of_the_name_says_what_it_is() -> None:
    for name in ("a.txt", "a", "a.HTML.gz"):
        with pytest.raises(OptionError, match=r"\.md or \.html"):
            check_path(Path(name))
