"""docs/security.md: its examples work, and its numbers are the code's."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from server.auth import OPEN_PATHS
from server.cors import LOCAL_DOMAINS, Origins
from server.keys import MAX_KEY_LENGTH, MAX_KEYS, Keyring, Rate
from server.limits import WORK
from server.parser import MAX_HEAD_BYTES, MAX_HEAD_FIELDS
from server.settings import Settings, load_settings
from tests.server.wire import app_of, call

PAGE = (Path(__file__).parent.parent / "docs/security.md").read_text()
WORDS = " ".join(PAGE.split())


def test_the_key_file_is_one(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(PAGE.split("```yaml\n")[1].split("```")[0])
    path.chmod(0o600)
    ring = Keyring.of(load_settings(["--api-key-file", str(path)]))
    assert [(key.name, key.requests_per_minute, key.max_concurrent) for key in ring.keys] == [
        ("alice", None, None),
        ("batch", 60, 2),
        ("operator", None, None),
    ]
    assert [key.is_admin for key in ring.keys] == [False, False, True]
    assert ring.find(b"password") is ring.keys[1], hashlib.sha256(b"password").hexdigest()


def test_the_flags_exist_and_the_defaults_are_these() -> None:
    known = {f"--{name.replace('_', '-')}" for name in Settings.model_fields} | {"--help"}
    switches = {name for name, field in Settings.model_fields.items() if field.annotation is bool}
    known |= {f"--no-{name.replace('_', '-')}" for name in switches}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= known
    settings = load_settings([])
    assert f"`--host` is {settings.host}." in PAGE
    assert not settings.log_requests and not settings.log_prompts
    assert not settings.cors_origin and not Keyring.of(settings)
    assert settings.adapter_dir is None
    for flag, number in (("--max-loras", settings.max_loras), ("--max-lora-rank", settings.max_lora_rank)):
        assert f"`{flag}` ({number})" in PAGE


def test_the_numbers_are_the_codes() -> None:
    assert f"Bodies of {load_settings([]).max_body_bytes >> 20} MiB" in WORDS
    assert f"heads of {MAX_HEAD_BYTES >> 10} KiB and {MAX_HEAD_FIELDS} fields" in WORDS
    assert f"1 to {MAX_KEY_LENGTH} printable" in WORDS and f"Up to {MAX_KEYS:,} keys" in WORDS
    assert Rate.SPAN == 60
    assert all(f"`{path}`" in PAGE for path in OPEN_PATHS)
    assert all(f"`{domain}`" in PAGE for domain in LOCAL_DOMAINS)
    work = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/score"}
    assert WORK == work, "what limits count"


@pytest.mark.parametrize("path", re.findall(r"`(/[a-z.]+)`", PAGE))
def test_the_paths_exist_and_are_as_open_as_it_says(path: str) -> None:
    open_to_all = call(app_of(api_key=("k",)), path).status
    assert call(app_of(), path).status != 404
    assert (open_to_all == 401) is (path not in OPEN_PATHS)


def test_the_origin_is_an_origin() -> None:
    for origin in re.findall(r"--cors-origin (\S+?)`", PAGE):
        assert Origins.of(load_settings(["--cors-origin", origin])).allow(origin)
