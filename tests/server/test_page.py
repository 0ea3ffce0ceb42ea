"""The chat page as it is served: its files and no others, a policy that lets nothing else in, its weight."""

from __future__ import annotations

import asyncio
import hashlib
import re
import tomllib
from pathlib import Path

import pytest
from fastapi import FastAPI

from server.page import FOLDER, HEADERS, MEDIA_TYPES, Page, read_page
from tests.server.wire import Answer, Connection, app_of, call

ROOT = Path(__file__).parents[2]
FILES = read_page(FOLDER)
OURS = sorted(path for path in FOLDER.glob("*") if path.suffix in MEDIA_TYPES)
MAX_BYTES = 250_000
MAX_REQUESTS = 12


def ask(app: object, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
    """An answer without a body, or to HEAD, too."""
    connection = Connection(app, path, b"", method, headers)  # type: ignore[arg-type]
    asyncio.run(connection.run())
    start, *body = [connection.outgoing.get_nowait() for _ in range(connection.outgoing.qsize())][:-1]
    assert start is not None
    told = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], told, b"".join(m.get("body", b"") for m in body if m is not None))


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_answered_whole_with_its_headers(path: str) -> None:
    answer = ask(app_of(), path)
    assert answer.status == 200 and answer.body == FILES[path].body
    assert HEADERS.items() <= answer.headers.items()
    assert answer.headers["content-type"] == FILES[path].media_type
    head = ask(app_of(), path, "HEAD")
    assert (head.status, head.body) == (200, b"")
    drop = ("x-request-id",)
    assert {k: v for k, v in head.headers.items() if k not in drop} == {
        k: v for k, v in answer.headers.items() if k not in drop
    }


@pytest.mark.parametrize("known", ["{}", "W/{}", '"other", {}'])
def test_who_has_a_file_is_not_sent_it_again(known: str) -> None:
    etag = ask(app_of(), "/").headers["etag"]
    again = ask(app_of(), "/", headers={"if-none-match": known.format(etag)})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
    assert ask(app_of(), "/", headers={"if-none-match": '"other"'}).status == 200


def test_nothing_but_the_pages_own_files_may_run_load_or_frame() -> None:
    policy = dict(part.split(" ", 1) for part in HEADERS["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in policy if name.endswith("-src") and name != "default-src"} == {"'self'"}
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert "unsafe" not in HEADERS["content-security-policy"]


def test_it_is_light() -> None:
    assert sum(len(file.body) for file in FILES.values()) <= MAX_BYTES
    assert len(FILES) <= MAX_REQUESTS


def test_every_file_it_names_is_there_and_each_is_named() -> None:
    named = set(re.findall(r'(?:href|src)="(web/[^"]+)"', (FOLDER / "index.html").read_text()))
    for path in FOLDER.glob("*.js"):
        named |= {
            f"web/{name}" for name in re.findall(r'(?:from|import|import\()\s*"\./([^"]+)"', path.read_text())
        }
    assert {f"/{name}" for name in named} | {"/"} == set(FILES)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_no_file_speaks_of_another_place_or_makes_markup_of_text(path: Path) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//[a-z]+\.[a-z]", text), "works offline, and talks to one server"
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
    )
    assert not re.search(r"<style|style=\"|\son[a-z]+=\"", text), "the policy would refuse it"
    assert len(text.splitlines()) <= 400


def test_with_a_key_set_the_page_opens_and_what_it_asks_for_does_not() -> None:
    app = app_of(api_key=("k",))
    assert {ask(app, path).status for path in FILES} == {200}
    for path in (
        "/v1/models",
        "/metrics",
        "/web/nowhere.js",
        "/web/vendor/README.md",
        "/web/../pyproject.toml",
    ):
        assert ask(app, path).status == 401
    assert ask(app, "/", "POST").status == 401


def test_while_models_load_the_page_opens() -> None:
    from server.app import create_app
    from server.settings import load_settings

    assert ask(create_app(load_settings([])), "/").status == 200


def test_it_can_be_left_out() -> None:
    assert {ask(app_of(page=False), path).status for path in FILES} == {404}


def test_other_pages_and_names_are_kept_out_of_it_too() -> None:
    for headers in ({"host": "evil.example"}, {"host": "localhost", "origin": "http://evil.example"}):
        assert ask(app_of(), "/", headers=headers).status == 403


def test_without_its_folder_it_says_so_in_one_line(tmp_path: Path) -> None:
    async def nothing_else(scope: object, receive: object, send: object) -> None:
        raise AssertionError("went on")

    answer = ask(Page(nothing_else, tmp_path / "gone"), "/")
    assert answer.status == 404 and "clients/web" in answer.error["message"]


def test_metrics_and_the_log_have_two_names_for_its_paths() -> None:
    app: FastAPI = app_of()
    for path in ("/", "/web/chat.js", "/web/vendor/marked.js"):
        ask(app, path)
    text = call(app, "/metrics").body.decode()
    assert 'route="/",status="200"} 1.0' in text and 'route="/web/{file}",status="200"} 2.0' in text


def test_a_wheel_holds_every_file_of_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["clients"]
    packed = {path for pattern in patterns for path in (ROOT / "clients").glob(pattern)}
    assert {path for path in FOLDER.rglob("*") if path.is_file()} <= packed


def test_what_is_not_ours_is_what_its_authors_published() -> None:
    listed = (FOLDER / "vendor/README.md").read_text()
    for path in (FOLDER / "vendor").glob("*.js"):
        row = next(line for line in listed.splitlines() if line.startswith(f"| `{path.name}`"))
        assert hashlib.sha256(path.read_bytes()).hexdigest() in row
        version = row.split("|")[2].split()[-1]
        assert version in path.read_text()[:200] and "icense" in path.read_text()[:200]
