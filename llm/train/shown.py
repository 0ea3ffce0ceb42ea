"""One example as it is learned: the text, with what the model is taught to write marked.

Colour on a terminal, [[double brackets]] elsewhere: a wrong template is seen before hours of training.
Refuses to know files, templates and models.

    >>> print(marked(tokenizer, example).plain)
    User: what is a token?
    Assistant:[[ A piece of text.
    ]]
"""

from __future__ import annotations

from itertools import groupby

from rich.text import Text

from llm.tokenizer import Tokenizer
from llm.train.data import Example

TAUGHT = "bold green"
MAX_TOKENS = 600
"""Tokens of a long example that are shown; the last ones, where the last reply is."""


def marked(tokenizer: Tokenizer, example: Example, colour: bool = False) -> Text:
    """The example's text; control tokens by their spelling, characters that would move a cursor as "?"."""
    spelling = {i: text for text, i in tokenizer.control.items()}
    shown = Text("…") if len(example.ids) > MAX_TOKENS else Text()
    pairs = list(zip(example.ids.tolist(), example.trained.tolist(), strict=True))[-MAX_TOKENS:]
    for taught, run in groupby(pairs, key=lambda pair: pair[1]):
        text = _text(tokenizer, spelling, [i for i, _ in run])
        if not taught:
            shown.append(text)
        elif colour:
            shown.append(text, style=TAUGHT)
        else:
            shown.append(f"[[{text}]]")
    return shown


def _text(tokenizer: Tokenizer, spelling: dict[int, str], ids: list[int]) -> str:
    parts = []
    for control, run in groupby(ids, key=spelling.__contains__):
        some = list(run)
        parts.append("".join(spelling[i] for i in some) if control else tokenizer.decode(some))
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in "".join(parts))
