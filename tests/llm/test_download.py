"""A download goes on where it broke off, and nothing is in place that was not checked."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from llm.errors import PullError
from llm.pull.download import Meter, Refused, RemoteFile, client, fetch
from tests.web import Web

DATA = bytes(range(256)) * 4096  # 1 MiB
PATH = "/weights.bin"


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as web:
        web.files[PATH] = DATA
        yield web


def remote(web: Web, data: bytes = DATA) -> RemoteFile:
    return RemoteFile("weights.bin", web.url + PATH, len(data), hashlib.sha256(data).hexdigest())


def get(file: RemoteFile, folder: Path, *, tries: int = 4, meter: Meter | None = None) -> Path:
    meter = meter or Meter(file.size, file.have(folder), Console(file=io.StringIO()))
    with client() as http:
        return fetch(http, file, folder, meter, pauses=(0.0,) * (tries - 1))


def test_a_whole_file_is_in_place_and_is_not_asked_for_again(web: Web, tmp_path: Path) -> None:
    meter = Meter(len(DATA), 0, Console(file=io.StringIO()))
    assert get(remote(web), tmp_path, meter=meter).read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["weights.bin"]
    assert meter.done == len(DATA)
    get(remote(web), tmp_path)
    assert web.ranges_of(PATH) == [None]


def test_a_broken_connection_is_continued_within_one_call(web: Web, tmp_path: Path) -> None:
    web.cuts[PATH] = [600_000, 300_000]
    meter = Meter(len(DATA), 0, Console(file=io.StringIO()))
    assert get(remote(web), tmp_path, meter=meter).read_bytes() == DATA
    assert meter.done == len(DATA)
    _, second, third = web.ranges_of(PATH)
    assert second is not None and third is not None
    assert 0 < int(second[6:-1]) <= 600_000 < int(third[6:-1]) <= 900_000


def test_what_an_earlier_call_left_is_kept(web: Web, tmp_path: Path) -> None:
    web.cuts[PATH] = [700_000]
    with pytest.raises(PullError, match=r"weights.bin: [\d,]+ of 1,048,576 bytes came: ") as caught:
        get(remote(web), tmp_path, tries=1)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, Refused)
    file = remote(web)
    assert 0 < (have := file.have(tmp_path)) <= 700_000
    assert get(file, tmp_path).read_bytes() == DATA
    assert web.ranges_of(PATH)[1:] == [f"bytes={have}-"]


def test_a_server_that_ignores_ranges_makes_it_start_again(web: Web, tmp_path: Path) -> None:
    web.cuts[PATH], web.ranges = [600_000], False
    meter = Meter(len(DATA), 0, Console(file=io.StringIO()))
    assert get(remote(web), tmp_path, meter=meter).read_bytes() == DATA
    assert meter.done == len(DATA)


def test_what_is_left_of_another_version_is_not_mixed_in(web: Web, tmp_path: Path) -> None:
    web.cuts[PATH] = [600_000]
    with pytest.raises(PullError):
        get(remote(web), tmp_path, tries=1)
    web.files[PATH] = DATA[::-1]
    assert get(remote(web, DATA[::-1]), tmp_path).read_bytes() == DATA[::-1]
    assert web.ranges_of(PATH)[1:] == [None]


def test_wrong_bytes_are_thrown_away(web: Web, tmp_path: Path) -> None:
    web.files[PATH] = b"x" + DATA[1:]
    with pytest.raises(
        PullError, match="weights.bin: checksum mismatch: expected [0-9a-f]{64}, got [0-9a-f]{64}"
    ):
        get(remote(web), tmp_path)
    assert not (tmp_path / "weights.bin").exists()
    web.files[PATH] = DATA
    assert get(remote(web), tmp_path).read_bytes() == DATA


def test_another_file_of_the_same_name_and_size_is_replaced(web: Web, tmp_path: Path) -> None:
    file = remote(web)
    (tmp_path / "weights.bin").write_bytes(DATA[::-1])
    meter = Meter(file.size, file.have(tmp_path), Console(file=io.StringIO()))
    assert get(file, tmp_path, meter=meter).read_bytes() == DATA
    assert meter.done == len(DATA)


def test_damage_to_what_was_left_is_noticed(web: Web, tmp_path: Path) -> None:
    file = remote(web)
    (tmp_path / file.part).write_bytes(b"y" * 1000)
    with pytest.raises(PullError, match="checksum mismatch"):
        get(file, tmp_path)
    assert get(file, tmp_path).read_bytes() == DATA


def test_a_part_longer_than_the_file_is_cut(web: Web, tmp_path: Path) -> None:
    file = remote(web)
    (tmp_path / file.part).write_bytes(DATA + b"more")
    assert get(file, tmp_path).read_bytes() == DATA
    assert web.seen == []


def test_more_bytes_than_announced_are_not_written(web: Web, tmp_path: Path) -> None:
    web.files[PATH] = DATA * 4
    with pytest.raises(PullError, match="sends more than the 1,048,576 bytes announced"):
        get(remote(web), tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


def test_fewer_bytes_than_announced_end(web: Web, tmp_path: Path) -> None:
    web.files[PATH] = DATA[:-1]
    with pytest.raises(PullError, match="fewer than the 1,048,576 bytes announced"):
        get(remote(web), tmp_path)


def test_a_range_nobody_asked_for_is_refused(web: Web, tmp_path: Path) -> None:
    file = remote(web)
    (tmp_path / file.part).write_bytes(DATA[:1000])
    web.headers = {"Content-Range": "bytes 5-1048575/1048576"}
    with pytest.raises(PullError, match="asked for bytes from 1000, the server sends"):
        get(file, tmp_path)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_told_apart(web: Web, tmp_path: Path, status: int) -> None:
    web.status[PATH] = status
    with pytest.raises(Refused, match=f"weights.bin: the server answers HTTP {status}"):
        get(remote(web), tmp_path)
    assert len(web.seen) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(web: Web, tmp_path: Path, status: int) -> None:
    web.status[PATH] = status
    with pytest.raises(PullError, match=f"HTTP {status}"):
        get(remote(web), tmp_path, tries=3)
    assert len(web.seen) == 3


def test_nobody_there(tmp_path: Path) -> None:
    with Web() as web:
        file = remote(web)
    with pytest.raises(Refused, match="weights.bin: 0 of 1,048,576 bytes came: .*refused"):
        get(file, tmp_path)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://[::1", "ftp://x/y"])
def test_other_addresses_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(PullError):
        get(RemoteFile("a", url, 3, "0" * 64), tmp_path)


def test_a_redirect_to_a_file_or_in_a_circle_is_refused(web: Web, tmp_path: Path) -> None:
    for where in ("file:///etc/passwd", PATH):
        web.moved[PATH] = where
        with pytest.raises(PullError) as caught:
            get(remote(web), tmp_path)
        assert "\n" not in str(caught.value)


def test_credentials_do_not_follow_a_redirect_to_another_host(tmp_path: Path, web: Web) -> None:
    with Web() as other:
        other.files[PATH] = DATA
        web.moved[PATH] = other.url + PATH
        get(replace(remote(web), headers={"authorization": "Bearer secret"}), tmp_path)
    assert web.seen[0][1]["authorization"] == "Bearer secret"
    assert "authorization" not in other.seen[0][1]


def test_gits_digest_and_an_empty_file(web: Web, tmp_path: Path) -> None:
    web.files |= {"/a": b"hello\n", "/b": b""}
    for name, size, blob in (
        ("a", 6, "ce013625030ba8dba906f756967f9e9ca394464a"),  # as `git hash-object` prints them
        ("b", 0, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
    ):
        assert get(RemoteFile(name, f"{web.url}/{name}", size, blob), tmp_path).stat().st_size == size


def test_elsewhere_than_on_a_terminal_the_meter_says_every_tenth_once() -> None:
    out = io.StringIO()
    with Meter(1_000_000, 250_000, Console(file=out)) as meter:
        for _ in range(75):
            meter.advance(10_000)
    lines = out.getvalue().splitlines()
    assert lines[0] == "0.3 of 1.0 MB" and lines[-1] == "1.0 of 1.0 MB" and len(lines) == 8
