"""The README's commands, paths and file tree are what the project has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import causerie

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def test_the_file_tree_is_the_file_tree() -> None:
    tree = README.split("<!-- tree")[1].split("```")[1]
    named, parent = set(), ""
    for line in tree.strip().splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            parent = name if name.endswith("/") else ""
            named.add(name)
        else:
            named.add(parent + name)
    rooms = {"llm", "server", "clients", "checkpoints", "docs", "deploy", "tests"}
    there = {"causerie.py"} | {f"{room}/" for room in rooms}
    for room in rooms - {"docs"}:
        there |= {f"{room}/{p.name}/" for p in (ROOT / room).iterdir() if p.is_dir() and is_ours(p)}
    assert named == there


def is_ours(path: Path) -> bool:
    """Whether a folder is the project's: of checkpoints, what is pulled and trained here is not."""
    if path.parent.name == "checkpoints":
        return f"!/checkpoints/{path.name}/" in (ROOT / ".gitignore").read_text().splitlines()
    return not path.name.startswith(("__", ".")) and path.name != "node_modules"


def test_every_make_target_it_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    named = set(re.findall(r"(?:^    |`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"serve", "test", "check", "bench"} <= named <= targets


def test_every_causerie_command_it_or_the_makefile_names_exists() -> None:
    for text in (README, MAKEFILE):
        for words in re.findall(r"causerie((?: [a-z-]+){1,2})", text):
            first, *rest = words.split()
            if first in ("train", "serve", "chat", "eval", "inspect") or first.startswith("bench"):
                name = f"train {rest[0]}" if first == "train" and rest else first
                assert name == "train" or name in causerie.COMMANDS


def test_every_path_it_names_exists() -> None:
    for path in re.findall(r"`((?:llm|server|clients|tests|checkpoints|docs)/[\w./]*)`", README):
        if path not in ("checkpoints/model_sft.pt", "checkpoints/model.pt"):
            assert (ROOT / path).exists(), path


def test_its_curl_is_a_request() -> None:
    body = re.search(r"curl -N localhost:8000/v1/chat/completions .*?-d '(.*?)'", README, re.DOTALL)
    assert body is not None
    assert json.loads(body[1])["stream"] is True


def test_it_stays_short() -> None:
    assert len(README.splitlines()) <= 200
