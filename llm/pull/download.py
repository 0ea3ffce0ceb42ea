"""One file over HTTP onto the disk: goes on where it broke off, is checked, and is in place only when whole.

    with client() as http, Meter(file.size) as meter:
        fetch(http, file, folder, meter)

The bytes gather in `NAME.DIGEST.part`, so that what is left of another version never mixes in. The only file
of `llm` that knows httpx. Refuses to know whose file it is.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import httpx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as SpeedColumn

from llm.checkpoint.record import one_line
from llm.errors import PullError

PAUSES = (0.0, 1.0, 3.0)
"""Seconds before each attempt after one that brought less than ENOUGH_BYTES; then it is an error."""
ENOUGH_BYTES = 1 << 20
CHUNK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to fetch.

    Attributes:
        name: what it is called in its folder; no path.
        url: http or https.
        size: bytes it must have.
        digest: hexadecimal: sha256 of the bytes (64 digits), or git's sha1 of the blob (40 digits).
        headers: sent to the URL's own host; credentials among them do not follow a redirect elsewhere.
    """

    name: str
    url: str
    size: int
    digest: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def part(self) -> str:
        """What its bytes are called until they are all there."""
        return f"{self.name}.{self.digest[:16]}.part"

    def new_hash(self) -> hashlib._Hash:
        if len(self.digest) == 64:
            return hashlib.sha256()
        assert len(self.digest) == 40
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    def have(self, folder: Path) -> int:
        """Bytes of it that an earlier attempt left in a folder."""
        for name in (self.name, self.part):
            if (path := folder / name).is_file():
                return min(path.stat().st_size, self.size)
        return 0


class Refused(PullError):
    """The server, or something on the way to it, wants no such request: another way may succeed."""


class Meter:
    """Bytes that arrived out of how many: a bar on a terminal, else a line for each tenth.

    Args:
        total: bytes in all.
        done: bytes that were there before.
    """

    def __init__(self, total: int, done: int = 0, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.total, self.done = total, done
        self._said = self._tenth()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
        self._bar = Progress(*columns, SpeedColumn(), TimeRemainingColumn(), console=self.console)
        self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._bar.stop()

    def file(self, name: str) -> None:
        """What arrives from now on."""
        self._bar.update(self._task, description=name)

    def advance(self, num_bytes: int) -> None:
        """So many more; fewer than 0 when a server made us start a file again."""
        self.done += num_bytes
        self._bar.update(self._task, completed=self.done)
        if not self.console.is_terminal and self._tenth() > self._said:
            self._said = self._tenth()
            self.console.print(
                f"{self.done / 1e6:,.1f} of {self.total / 1e6:,.1f} MB", markup=False, style=None
            )

    def _tenth(self) -> int:
        return 10 * self.done // max(self.total, 1)


def client() -> httpx.Client:
    """Proxies and certificates of the environment, and the certificates of the system."""
    certificates = httpx.create_ssl_context()
    certificates.load_default_certs()
    timeout = httpx.Timeout(30, connect=10)
    return httpx.Client(verify=certificates, timeout=timeout, follow_redirects=True)


def fetch(
    http: httpx.Client, file: RemoteFile, folder: Path, meter: Meter, pauses: Sequence[float] = PAUSES
) -> Path:
    """Bring a file into a folder; what an earlier attempt left there is kept.

    Returns:
        Its path; without a request when the very file is there.

    Raises:
        PullError: no way to the server, more or fewer bytes than announced, or other bytes.
        Refused: the server answers 401, 403, 407 or 404, or no connection can be made at all.
    """
    meter.file(file.name)
    path = folder / file.name
    if path.is_file():
        if _digest_of(path, file) == file.digest:
            return path
        meter.advance(-min(path.stat().st_size, file.size))  # `have` took it for ours
        path.unlink()
    with (folder / file.part).open("a+b") as out:
        part = _Part(file, out, meter)
        failures = 0
        while part.have < file.size:
            before = part.have
            if (reason := _attempt(http, part)) is None:
                continue
            failures = 0 if part.have - before >= ENOUGH_BYTES else failures + 1
            if failures > len(pauses):
                kind = PullError if part.have else Refused
                raise kind(f"{file.name}: {part.have:,} of {file.size:,} bytes came: {reason}")
            time.sleep(pauses[failures - 1] if failures else 0)
        part.finish()
    os.replace(folder / file.part, path)
    return path


def _digest_of(path: Path, file: RemoteFile) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, lambda: file.new_hash()).hexdigest()


class _Part:
    """The first bytes of a file, on disk and hashed."""

    def __init__(self, file: RemoteFile, out: BinaryIO, meter: Meter) -> None:
        self.file, self.out, self.meter = file, out, meter
        out.truncate(min(out.seek(0, os.SEEK_END), file.size))
        self.hash = file.new_hash()
        out.seek(0)
        while chunk := out.read(CHUNK_BYTES):
            self.hash.update(chunk)
        self.have = out.tell()

    def write(self, chunk: bytes) -> None:
        if self.have + len(chunk) > self.file.size:
            self.restart()
            raise PullError(
                f"{self.file.name}: the server sends more than the {self.file.size:,} bytes announced"
            )
        self.out.write(chunk)
        self.hash.update(chunk)
        self.have += len(chunk)
        self.meter.advance(len(chunk))

    def restart(self) -> None:
        self.out.truncate(0)
        self.hash = self.file.new_hash()
        self.meter.advance(-self.have)
        self.have = 0

    def finish(self) -> None:
        """The bytes are on the disk and are the right ones."""
        if self.hash.hexdigest() != self.file.digest:
            got = self.hash.hexdigest()
            self.restart()
            raise PullError(
                f"{self.file.name}: checksum mismatch: expected {self.file.digest}, got {got}; "
                "what came was thrown away"
            )
        self.out.flush()
        os.fsync(self.out.fileno())


def _attempt(http: httpx.Client, part: _Part) -> str | None:
    """One request for what is missing: None when all of it came, else why another try may help."""
    headers = {**part.file.headers, "accept-encoding": "identity"}
    if part.have:
        headers["range"] = f"bytes={part.have}-"
    try:
        with http.stream("GET", part.file.url, headers=headers) as response:
            if response.status_code == 429 or response.status_code >= 500:
                return f"the server answers HTTP {response.status_code}"
            _check_answer(part, response)
            for chunk in response.iter_bytes(CHUNK_BYTES):
                part.write(chunk)
    except httpx.UnsupportedProtocol as error:
        raise PullError(f"{part.file.name}: {one_line(error)}") from None
    except httpx.TransportError as error:
        return one_line(error)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PullError(f"{part.file.name}: {one_line(error)}") from None
    return None if part.have == part.file.size else "the server ends the file early"


def _check_answer(part: _Part, response: httpx.Response) -> None:
    """The body that follows goes on where the part ends, or the part is emptied for it."""
    status = response.status_code
    if status in (401, 403, 404, 407):
        raise Refused(f"{part.file.name}: the server answers HTTP {status}")
    if status == 416:
        raise PullError(f"{part.file.name}: the server has fewer than the {part.file.size:,} bytes announced")
    if status == 206:
        span = response.headers.get("content-range", "")
        found = re.fullmatch(r"bytes (\d{1,19})-\d{1,19}/(\d{1,19}|\*)", span)
        if found is None or int(found[1]) != part.have or found[2] not in ("*", str(part.file.size)):
            raise PullError(
                f"{part.file.name}: asked for bytes from {part.have}, the server sends {span[:60]!r}"
            )
    elif status == 200:
        part.restart()
    else:
        raise PullError(f"{part.file.name}: the server answers HTTP {status}")
