"""The process that a contestant runs in: JSON lines in, JSON lines out, one answer to each.

    python -I peers_worker.py peers_llama.py '{"model": "q8_0.gguf", "threads": 2}'

The file named first has `start(options) -> (facts, measure)`; the facts are the first line out, and `measure`
takes a piece of work and returns figures. What went wrong is a line too: {"error": "..."}. Only Python's own
library is imported here, since every contestant has an environment of its own and the project is in none of
them. Refuses to know what is measured.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable
from typing import Any, TextIO

Measure = Callable[[dict[str, Any]], dict[str, Any]]


def answer(file: str, options: dict[str, Any], requests: TextIO, answers: TextIO) -> None:
    """Start the contestant and answer every line until there are no more."""

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        facts, measure = runpy.run_path(file)["start"](options)
    except Exception as error:  # whatever the contestant's library raises
        return say({"error": _one_line(error)})
    say(facts)
    for line in requests:
        try:
            say(measure(json.loads(line)))
        except Exception as error:
            say({"error": _one_line(error)})


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def main() -> None:
    """Run with standard output kept for the answers: what libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        answer(sys.argv[1], json.loads(sys.argv[2]), sys.stdin, answers)


if __name__ == "__main__":
    main()
