"""buildah with a store of its own: what is built there touches no other image of this machine.

Refuses to know what is built. Needs Linux and root, no daemon and no user namespaces: buildah runs a build's
commands in a chroot. Images are kept as overlays where the file system allows it, else as whole copies (vfs).

    >>> store = Store(Path("runs/images"))
    >>> with store.mounted("localhost/causerie") as root: print(os.listdir(root))
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NOT_HERE = 3
"""Exit status of a script that cannot run on this machine: the reason is its last line."""


class NotHere(Exception):
    """This machine cannot do it; one line says why."""


def need(tools: Sequence[str], *, install: bool) -> None:
    """Check for Linux, root and these commands; with `install`, apt-get brings missing ones.

    Raises:
        NotHere: one of them is missing.
    """
    if not sys.platform.startswith("linux"):
        raise NotHere(f"needs Linux, this is {sys.platform}")
    if os.geteuid() != 0:
        raise NotHere("needs root: it mounts and changes users")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing and install and shutil.which("apt-get"):
        say = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "update", "-q"], check=False, **say)  # type: ignore[call-overload]
        command = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing]
        subprocess.run(command, check=False, **say)  # type: ignore[call-overload]
        missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise NotHere(f"needs {', '.join(missing)}: apt-get install {' '.join(missing)}, or --install-tools")


class Store:
    """Images below one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self.driver = next(driver for driver in ("overlay", "vfs") if self._works(driver))

    def _command(self, driver: str) -> list[str]:
        root, state = self.folder / driver, self.folder / "state"
        return ["buildah", "--storage-driver", driver, "--root", str(root), "--runroot", str(state)]

    def _works(self, driver: str) -> bool:
        if driver == "vfs":
            return True
        done = subprocess.run([*self._command(driver), "info"], capture_output=True)
        return done.returncode == 0

    def run(self, *arguments: str | Path) -> None:
        """A buildah command whose output is for people to read."""
        subprocess.run([*self._command(self.driver), *map(str, arguments)], check=True)

    def ask(self, *arguments: str | Path) -> str:
        """A buildah command's answer."""
        command = [*self._command(self.driver), *map(str, arguments)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        """Whether an image of this name is here."""
        command = [*self._command(self.driver), "inspect", "--type", "image", image]
        return subprocess.run(command, capture_output=True).returncode == 0

    def inspect(self, image: str) -> dict[str, Any]:
        """What buildah says about an image: `Docker.config` is the part that `docker run` obeys."""
        answer: dict[str, Any] = json.loads(self.ask("inspect", "--type", "image", image))
        return answer

    def size(self, image: str) -> int:
        """Bytes of an image's layers, uncompressed, as `docker images` counts them."""
        layers = json.loads(self.inspect(image)["Manifest"])["layers"]
        return sum(layer["size"] for layer in layers)

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """An image's files, for as long as the block lasts."""
        container = self.ask("from", "--pull-never", image)
        try:
            yield Path(self.ask("mount", container))
        finally:
            self.ask("rm", container)
