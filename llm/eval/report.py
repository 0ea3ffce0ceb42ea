"""A comparison as one page that stands alone, Markdown or HTML: figures first, then the answers side by side.

Questions of which one checkpoint's answers are right and the other's are not come first, then those with
other words, then those with the same. What a model wrote is hostile until it is escaped: nothing of it
becomes markup, a link or a change of direction. Refuses to know how anything was measured.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.errors import OptionError
from llm.eval.cases import Case
from llm.eval.compare import Comparison

Row = tuple[str, ...]
KINDS = (".md", ".html")
RIGHT, WRONG = "✓", "✗"


@dataclass(frozen=True, slots=True)
class Pair:
    """One question and what both said, for each seed: (seed, first, whether right, second, whether right)."""

    case: Case
    said: tuple[tuple[int | None, str, bool, str, bool], ...]
    kl: float | None

    @property
    def rank(self) -> int:
        """0 when who was right differs, 1 when the words do, 2 when nothing does."""
        if any(good != other for _, _, good, _, other in self.said):
            return 0
        return 1 if any(one != two for _, one, _, two, _ in self.said) else 2


HEADINGS = ("Right and wrong", "Other words", "The same words")
"""Of the ranks."""


def check_path(path: Path) -> None:
    """Before anything is computed.

    Raises:
        OptionError: a name whose end says no kind of page.
    """
    if path.suffix not in KINDS:
        raise OptionError(f"--report {path}: the name must end with {' or '.join(KINDS)}")


def write_report(path: Path, comparison: Comparison) -> None:
    """The page, by the end of its name."""
    check_path(path)
    page = _markdown(comparison) if path.suffix == ".md" else _html(comparison)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def pairs(comparison: Comparison) -> list[Pair]:
    """Questions, those that tell most first; otherwise in the order of the file."""
    first, second, seeds = comparison.first, comparison.second, comparison.terms.seeds
    found = []
    for i, case in enumerate(comparison.terms.cases):
        said = tuple(
            (
                seed,
                first.answers[s][i],
                first.scores[s].right[i],
                second.answers[s][i],
                second.scores[s].right[i],
            )
            for s, seed in enumerate(seeds)
        )
        kl = comparison.kl[i] if comparison.kl else None
        found.append(Pair(case, said, None if kl is None else kl.mean_kl))
    return sorted(found, key=lambda pair: pair.rank)


def figures(comparison: Comparison) -> list[Row]:
    """The table at the top: a head, then what was measured."""
    first, second = comparison.first, comparison.second
    both = (first, second)
    rows: list[Row] = [("", first.name, second.name)]
    rows.append(("digest", *(one.checkpoint.digest for one in both)))
    for i, seed in enumerate(comparison.terms.seeds if comparison.terms.cases else ()):
        rows.append((f"right, {_way(seed)}", *(_share(one.scores[i].all) for one in both)))
        if first.scores[i].unknown[1]:
            rows.append(("— in domain", *(_share(one.scores[i].in_domain) for one in both)))
            rows.append(("— outside", *(_share(one.scores[i].unknown) for one in both)))
    if comparison.terms.passages:
        rows.append(("perplexity", *(f"{one.likelihood.perplexity:.4g}" for one in both)))
        rows.append(("nats per token", *(f"{one.likelihood.mean:.4f}" for one in both)))
        rows.append(("tokens scored", *(str(one.likelihood.num_tokens) for one in both)))
    if (found := comparison.divergence) is not None:
        rows.append(("KL per token, mean", f"{found.mean_kl:.4f}", ""))
        rows.append(("KL per token, largest", f"{found.max_kl:.4f}", ""))
        rows.append(("same first choice", f"{found.top1:.1%} of {found.num_positions}", ""))
    return rows


def about(comparison: Comparison) -> Iterator[str]:
    """What the figures are, in sentences."""
    terms = comparison.terms
    if terms.cases:
        ways = ", ".join(map(_way, terms.seeds))
        yield (
            f"{len(terms.cases)} questions, answered {ways}, at most {terms.max_tokens} tokens. An answer is "
            "right when it has one string of each group that was expected."
        )
    if terms.passages:
        yield (
            f"Perplexity is over {len(terms.passages)} texts: of conversations the assistant's tokens, of "
            "others all but the first. Of different vocabularies it cannot be compared."
        )
    if comparison.divergence is not None:
        yield (
            "KL is that of the first model's next-token probabilities to the second's, in nats, over the "
            "first one's first answers."
        )
    elif terms.cases and not comparison.kl:
        yield "KL is not told: the vocabularies differ."


def _way(seed: int | None) -> str:
    return "greedy" if seed is None else f"seed {seed}"


def _share(part: tuple[int, int]) -> str:
    right, count = part
    return f"{right}/{count} = {right / count:.1%}" if count else "–"


def _clean(text: str) -> str:
    """Without what is no character: controls, changes of direction, halves of pairs."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _answer(text: str, is_right: bool, escape: Callable[[str], str]) -> str:
    return f"{RIGHT if is_right else WRONG} {escape(text)}"


_MARKS = re.compile(r"([\\`*_{}\[\]<>()#+\-!|&~$:@=])")


def _plain(text: str) -> str:
    """As text of a Markdown table's cell: no mark means anything, a line's end is a break."""
    escaped = _MARKS.sub(r"\\\1", _clean(text)).replace("www.", "www\\.")
    return "<br>".join(escaped.split("\n"))


def _markdown(comparison: Comparison) -> str:
    first, second = comparison.first, comparison.second
    lines = [f"# {_plain(first.name)} and {_plain(second.name)}", ""]
    lines += [*_markdown_table([tuple(map(_plain, row)) for row in figures(comparison)]), ""]
    lines += [f"{sentence}\n" for sentence in about(comparison)]
    for rank, group in _groups(pairs(comparison)):
        lines += [f"## {HEADINGS[rank]}: {len(group)}", ""]
        head = ("question", "expected", "", _plain(first.name), _plain(second.name), "KL")
        lines += [*_markdown_table([head, *(row for pair in group for row in _rows(pair, _plain))]), ""]
    return "\n".join(lines)


def _markdown_table(rows: Sequence[Row]) -> list[str]:
    head, *body = rows
    return [_cells(head), _cells(("---",) * len(head)), *map(_cells, body)]


def _cells(row: Row) -> str:
    return f"| {' | '.join(row)} |"


def _rows(pair: Pair, escape: Callable[[str], str]) -> Iterator[Row]:
    """A row for each seed; the question stands in the first."""
    for i, (seed, one, good, two, other) in enumerate(pair.said):
        question = "\n".join(f"{m.role}: {m.content}" for m in pair.case.messages)
        if len(pair.case.messages) == 1:
            question = pair.case.question
        told = (escape(question), escape(pair.case.expected)) if i == 0 else ("", "")
        kl = "" if pair.kl is None or i else f"{pair.kl:.3f}"
        yield (*told, _way(seed), _answer(one, good, escape), _answer(two, other, escape), kl)


def _groups(found: Sequence[Pair]) -> Iterator[tuple[int, list[Pair]]]:
    for rank in range(len(HEADINGS)):
        group = [pair for pair in found if pair.rank == rank]
        if group:
            yield rank, group


_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em; }
table { border-collapse: collapse; width: 100%; }
td, th { border: 1px solid #8886; padding: .35em .6em; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; unicode-bidi: isolate; white-space: pre-wrap; }
td:nth-child(3):nth-last-child(4), td:nth-child(6) { overflow-wrap: normal; white-space: nowrap; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd; } }
</style>
"""


def _text(text: str) -> str:
    """As text of an HTML page."""
    return html.escape(_clean(text))


def _html(comparison: Comparison) -> str:
    first, second = comparison.first, comparison.second
    title = f"{_text(first.name)} and {_text(second.name)}"
    parts = [_HEAD, f"<title>{title}</title>\n<h1>{title}</h1>\n"]
    parts.append(_html_table([tuple(map(_text, row)) for row in figures(comparison)]))
    parts += [f"<p>{_text(sentence)}</p>\n" for sentence in about(comparison)]
    for rank, group in _groups(pairs(comparison)):
        parts.append(f"<h2>{HEADINGS[rank]}: {len(group)}</h2>\n")
        head = ("question", "expected", "", _text(first.name), _text(second.name), "KL")
        parts.append(_html_table([head, *(row for pair in group for row in _rows(pair, _text))]))
    return "".join(parts) + "</html>\n"


def _html_table(rows: Sequence[Row]) -> str:
    head, *body = rows
    lines = ["<table>", _html_row(head, "th"), *(_html_row(row, "td") for row in body), "</table>\n"]
    return "\n".join(lines)


def _html_row(row: Row, tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in row) + "</tr>"
