"""Measurements without HTTP, each a command: `offline`, `adapters`, `cache`, `grammar`, `peers`.

Here are only the numbers that their command lines share. `streams` drives a whole engine, `steps` a runner
alone, `ceiling` says what the hardware would allow.
"""

from __future__ import annotations


def positive(text: str) -> int:
    """A command line's whole number from 1; argparse turns the ValueError into its own message."""
    if (value := int(text)) < 1:
        raise ValueError
    return value


def levels(text: str) -> list[int]:
    """Whole numbers from 1, each once, ascending: "16,1,4" → [1, 4, 16]."""
    return sorted({positive(n) for n in text.split(",")})
