"""What a tokenizer was made from, so that it can be written down again: a tokenizer.json and tokens' roles.

A vocabulary out of a GGUF file or of GPT-2's older files has a tokenizer.json too, made up when it is read.
Refuses to know what is in it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Roles:
    """Which tokens have a role, by spelling.

    Attributes:
        begin: begin of text.
        end: end of text; None when the checkpoint does not say: a usual one is looked for.
        add_begin: sequences begin with `begin`; None leaves it to the post-processor.
        control: more spellings that only a template may use.
    """

    begin: str | None = None
    end: str | None = None
    add_begin: bool | None = None
    control: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Description:
    """Enough to make the same tokenizer again.

    Attributes:
        json: the text of a tokenizer.json.
        roles: what it was read with.
    """

    json: bytes
    roles: Roles
