"""Environments of their own for the frameworks: made once, kept in pytest's cache, made again when broken.

Each is a folder named after its recipe, so that other requirements make another one. Where the package index
cannot be reached the test is skipped with the installer's own reason; a recipe that the index refuses is a
failure. Refuses to know what runs inside.

    >>> python = python_environment(cache, Path("tests/frameworks/litellm/requirements.txt"))
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet", "--retries", "2")
NPM = (
    *("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"),
    *("--fetch-retries=1", "--fetch-retry-mintimeout=1000"),
)
INSTALL_SECONDS, STEP_SECONDS = 900, 300
"""Far more than is ever needed: what hangs must end as a failure."""
OLDEST_NODE = 18
_UNREACHABLE = re.compile(
    r"connection broken|from versions: none|"
    r"\bE(?:NOTFOUND|CONNREFUSED|CONNRESET|TIMEDOUT|AI_AGAIN|HOSTUNREACH|NETUNREACH)\b"
)


class InstallFailed(Exception):
    """What the installer wrote."""

    @property
    def unreachable(self) -> str | None:
        """The line that says that the index could not be asked; None when it was asked and said no."""
        for line in str(self).splitlines():
            if _UNREACHABLE.search(line):
                return line.strip()[:200]
        return None


def kept(
    cache: Path, name: str, recipe: str, make: Callable[[Path], None], works: Callable[[Path], bool]
) -> Path:
    """The folder that `make` fills for this recipe; made again when it is half made or does not work.

    Raises:
        InstallFailed: from `make`; nothing is left behind.
    """
    folder = cache / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    done = folder / "complete"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}.lock"):  # another run of the tests may be making it
        if done.exists() and works(folder):
            return folder
        for old in cache.iterdir():  # half made, broken, or of a recipe that is no longer ours
            if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}", old.name):
                shutil.rmtree(old)
        try:
            make(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        done.touch()
        return folder


def python_environment(cache: Path, requirements: Path) -> Path:
    """The interpreter of a virtual environment with these requirements.

    Skips the test where the index cannot be reached.
    """

    def make(folder: Path) -> None:
        install(sys.executable, "-m", "venv", str(folder))
        install(str(_interpreter(folder)), *PIP, "--requirement", str(requirements))

    def works(folder: Path) -> bool:
        return succeeds(str(_interpreter(folder)), "-I", "-m", "pip", "check")

    recipe = sys.version + requirements.read_text()
    return _interpreter(_kept_or_skipped(cache, requirements.parent.name, recipe, make, works))


def node_environment(cache: Path, package: Path) -> Path:
    """A folder with the node_modules of this package.json.

    Skips the test without a node that is new enough, or where the index cannot be reached.
    """
    if (version := node_version()) is None or version < OLDEST_NODE or shutil.which("npm") is None:
        pytest.skip(f"needs npm and node {OLDEST_NODE} or newer, has node {version}")

    def make(folder: Path) -> None:
        folder.mkdir()
        shutil.copy(package, folder / "package.json")
        install(*NPM, cwd=folder)

    def works(folder: Path) -> bool:
        return succeeds("npm", "ls", cwd=folder)

    recipe = f"{version} {package.read_text()}"
    return _kept_or_skipped(cache, package.parent.name, recipe, make, works)


def node_version() -> int | None:
    """Node's major version, None without it."""
    if shutil.which("node") is None:
        return None
    said = subprocess.run(["node", "--version"], capture_output=True, encoding="utf-8", check=True).stdout
    return int(said.lstrip("v").partition(".")[0])


def run_step(command: Sequence[str], *, url: str, home: Path, environment: Mapping[str, str] = {}) -> str:
    """What a program prints that talks to the server at `url`; it must succeed.

    It sees an empty home, and of our environment nothing but where programs are: no keys, no proxies, no
    settings of a person's own.
    """
    surroundings = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "CAUSERIE_URL": f"{url}/v1",
        "OPENAI_API_KEY": "unused",
        **environment,
    }
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env=surroundings, cwd=home, timeout=STEP_SECONDS
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout


def install(*command: str, cwd: Path | None = None) -> None:
    """Run an installer.

    Raises:
        InstallFailed: it did not succeed.
    """
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        cwd=cwd,
        timeout=INSTALL_SECONDS,
    )
    if done.returncode != 0:
        raise InstallFailed(done.stdout)


def succeeds(*command: str, cwd: Path | None = None) -> bool:
    """Whether a short program ends with 0; False too when it cannot be started."""
    try:
        return subprocess.run(command, capture_output=True, cwd=cwd, timeout=STEP_SECONDS).returncode == 0
    except OSError:
        return False


def _interpreter(folder: Path) -> Path:
    return folder / "bin" / "python"


def _kept_or_skipped(
    cache: Path, name: str, recipe: str, make: Callable[[Path], None], works: Callable[[Path], bool]
) -> Path:
    try:
        return kept(cache, name, recipe, make, works)
    except InstallFailed as failure:
        if failure.unreachable is not None:
            pytest.skip(f"{name} cannot be installed: {failure.unreachable}")
        raise
