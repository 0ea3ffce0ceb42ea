"""--adapter [MODEL:]NAME=PATH: which adapters on which models. Refuses to know what is in their folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.errors import OptionError

_OPTION = re.compile(r"(?:(?P<base>[^=]+):)?(?P<name>[\w.-]{1,64})=(?P<path>.+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """One --adapter.

    Attributes:
        text: as it was given, for messages.
        base: the model's id, or None for the first model.
    """

    text: str
    base: str | None
    name: str
    path: Path

    def is_on(self, model: str, *, is_first: bool) -> bool:
        """Whether it is for the model of that id."""
        return is_first if self.base is None else self.base == model


def find_adapters(given: Sequence[str]) -> list[NamedAdapter]:
    """The adapters of --adapter.

    Raises:
        OptionError: not MODEL:NAME=PATH or NAME=PATH, or one name twice.
    """
    found: list[NamedAdapter] = []
    for text in given:
        option = _OPTION.fullmatch(text)
        if option is None:
            raise OptionError(
                f"--adapter {text[:200]}: write NAME=PATH or MODEL:NAME=PATH; a name is 1 to 64 letters, "
                "digits, -, _ and ."
            )
        one = NamedAdapter(text, option["base"], option["name"], Path(option["path"]))
        if any((other.base, other.name) == (one.base, one.name) for other in found):
            raise OptionError(f"--adapter {text[:200]}: another adapter of this model has that name")
        found.append(one)
    return found
