"""--adapter-dir: the one folder below which a request may name an adapter. Refuses to know what is in one.

Looked at are the words of a path first, then where its links lead: what is not below the folder is refused in
one and the same way, whether it exists or not.

    >>> folder_below(Path("adapters"), "pirate")
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from llm.adapt.base import SAMPLES
from llm.adapt.peft import CONFIG, WEIGHTS
from server.errors import ApiError, invalid, shown

FILES = (CONFIG, WEIGHTS, SAMPLES)
"""What is read of an adapter."""


def folder_below(root: Path, named: str) -> Path:
    """The folder, resolved; every file of it that will be read lies below the root too, and is a plain one.

    Raises:
        ApiError: 400 for any other path.
    """
    words = PurePosixPath(named)
    if words.is_absolute() or ".." in words.parts or not words.parts or not named.isprintable():
        raise _refusal(named)
    try:
        top = root.resolve(strict=True)
        folder = (top / words).resolve()
        files = [(folder / name).resolve() for name in FILES]
        if folder == top or not all(path.is_relative_to(top) for path in (folder, *files)):
            raise _refusal(named)
        if any(path.exists() and not path.is_file() for path in files):  # a pipe would be waited for
            raise _refusal(named)
    except (OSError, RuntimeError):  # too long a name, links in a circle; no such root
        raise _refusal(named) from None
    return folder


def _refusal(named: str) -> ApiError:
    return invalid(
        f"lora_path must name an adapter's folder below --adapter-dir, without '..', got {shown(named)}",
        "lora_path",
    )
