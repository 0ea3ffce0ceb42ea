"""The house: which room may import which, no cycles, no forbidden names, files a person can read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("llm", "server", "clients")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
FORBIDDEN = {
    "llm": {
        "server",
        "clients",
        "fastapi",
        "starlette",
        "sse_starlette",
        "uvicorn",
        "pydantic",
        "pydantic_settings",
        "httpx",
    },
    "server": {"clients"},
    "clients": {"llm", "server", "torch", "tiktoken", "numpy", "fastapi", "starlette", "pydantic"},
}
TORCH_FREE = (
    "llm/errors.py",
    "llm/config.py",
    "llm/sequence.py",
    "llm/batch.py",
    "llm/blocks.py",
    "llm/pace.py",
    "llm/prefix.py",
    "llm/scheduler.py",
    "llm/tables.py",
    "llm/waiting.py",
    "llm/detokenizer.py",
)
ALLOWED = {"llm/pull/download.py": {"httpx"}}
"""The exceptions: a download is not a request to a server of ours."""
ONLY_HERE = {
    "sse_starlette": "server/sse.py",
    "pydantic_settings": "server/settings.py",
    "huggingface_hub": "llm/pull/hub.py",
    "prometheus_client": "server/metrics.py",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = {module_name(path): path for path in FILES}


def edges() -> dict[str, set[str]]:
    return {name: {i for i in imports(path) if i in MODULES and i != name} for name, path in MODULES.items()}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_lies_below_it(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    tops = {name.split(".")[0] for name in imports(path)}
    assert not tops & (FORBIDDEN[where.split("/")[0]] - ALLOWED.get(where, set()))
    for package, home in ONLY_HERE.items():
        assert package not in tops or where == home, f"only {home} knows {package}"
    if where in TORCH_FREE:
        assert "torch" not in tops


def test_imports_have_no_cycle() -> None:
    graph, done = edges(), set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail, name))
        if name not in done:
            for below in sorted(graph[name]):
                # A package's __init__ is its interface: its own files may import it, it must not import them
                # back.
                visit(below, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_engine_never_sees_text() -> None:
    graph, seen, todo = edges(), set(), {"llm.engine"}
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= graph[name] - seen
    assert not seen & {"llm.tokenizer", "llm.detokenizer", "llm.chat.template", "llm.text"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_open_with_what_they_are_and_stay_readable(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module says what it is"
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in ("utils", "helpers", "misc", "common")
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            assert not re.search(r"(Manager|Helper|^Base[A-Z])", node.name), node.name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{node.name} is longer than a screen"


def test_step_is_as_short_as_the_sketch() -> None:
    tree = ast.parse((ROOT / "llm/engine.py").read_text())
    step = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "step")
    assert step.end_lineno is not None
    assert step.end_lineno - step.lineno <= 16
