"""Every example runs against a real server, as a person would run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "clients" / "examples"
NODE = Path(__file__).parent / "node"


def run(url: str, *command: str, text: str = "", cwd: Path = ROOT) -> str:
    env = {**os.environ, "CAUSERIE_URL": f"{url}/v1"}
    done = subprocess.run(
        command, input=text, capture_output=True, encoding="utf-8", env=env, cwd=cwd, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_example_is_left_out() -> None:
    tested = {
        "curl.sh",
        "openai_sync.py",
        "openai_async.py",
        "openai_stream.py",
        "openai.mjs",
        "chat_loop.py",
    }
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == tested


def test_curl(live_server: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    whole, _, stream = run(live_server, "sh", str(EXAMPLES / "curl.sh")).partition("\n")
    assert '"object":"chat.completion"' in whole.replace(" ", "")
    frames = [line for line in stream.splitlines() if line]
    assert all(frame.startswith("data: {") for frame in frames[:-1])
    assert '"role":"assistant"' in frames[0].replace(" ", "")
    assert frames[-1] == "data: [DONE]"


def test_openai_sync(live_server: str) -> None:
    assert "CompletionUsage(" in run(live_server, sys.executable, str(EXAMPLES / "openai_sync.py"))


def test_openai_stream(live_server: str) -> None:
    assert run(live_server, sys.executable, str(EXAMPLES / "openai_stream.py")).endswith(" tokens\n")


def test_openai_async(live_server: str) -> None:
    out = run(live_server, sys.executable, str(EXAMPLES / "openai_async.py"))
    for question in ("what is a token?", "what is a KV cache?", "what does temperature do?"):
        assert f"{question}\n  " in out


def test_chat_loop(live_server: str) -> None:
    out = run(
        live_server, sys.executable, "-m", "clients.examples.chat_loop", text="hi\nagain\n/reset\nhi\n/quit\n"
    )
    assert out.count("Assistant: ") == 3
    assert len((EXAMPLES / "chat_loop.py").read_text().splitlines()) <= 30


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The SDK for Node, installed once beside its package.json and kept."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    if not (NODE / "node_modules" / "openai" / "package.json").exists():
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
        done = subprocess.run(command, cwd=NODE, capture_output=True, encoding="utf-8", timeout=120)
        if done.returncode != 0:
            pytest.skip(
                f"npm cannot install the SDK: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
            )
    return NODE / "node_modules"


@pytest.mark.slow
def test_openai_node(live_server: str, node_modules: Path, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(node_modules)  # modules are looked up beside the program
    shutil.copy(EXAMPLES / "openai.mjs", tmp_path)
    out = run(live_server, "node", "openai.mjs", cwd=tmp_path)
    assert out.count(" tokens\n") == 2
