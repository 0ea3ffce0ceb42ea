"""Keys: what a file may hold, how a key is found, how often it may ask."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.keys import MAX_FILE_BYTES, MAX_KEYS, Key, Keyring, Rate, digest_of, key_of, read_key_file
from server.settings import SettingsError, load_settings

SECRET = "s3cret-of-alice"
SHA = hashlib.sha256(b"of-batch").hexdigest()


def ring_of(tmp_path: Path, text: str | bytes, *argv: str) -> Keyring:
    path = tmp_path / "keys.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o600)
    return Keyring.of(load_settings(["--api-key-file", str(path), *argv]))


def refusal(tmp_path: Path, text: str | bytes, *argv: str) -> str:
    """What is said of a file, without its path."""
    with pytest.raises(SettingsError) as caught:
        ring_of(tmp_path, text, *argv)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    return message.replace(str(tmp_path / "keys.yaml"), "FILE")


def test_a_file_names_keys_and_their_limits(tmp_path: Path) -> None:
    ring = ring_of(
        tmp_path,
        f"""# who may come in
        alice: {SECRET}
        batch:
          sha256: {SHA}
          requests-per-minute: 60
          max-concurrent: 2
          admin: true
        carol: {{key: 0123, max_concurrent: 1, admin: false}}
        """,
    )
    assert [key.name for key in ring.keys] == ["alice", "batch", "carol"]
    assert ring.find(SECRET.encode()) == Key("alice", digest_of(SECRET.encode()))
    batch, carol = ring.find(b"of-batch"), ring.find(b"0123")
    assert batch is not None and (batch.requests_per_minute, batch.max_concurrent) == (60, 2)
    assert carol is not None and (carol.name, carol.max_concurrent) == ("carol", 1), "not YAML's number 83"
    assert [key.is_admin for key in ring.keys] == [False, True, False]


def test_keys_of_the_command_come_first_and_are_numbered(tmp_path: Path) -> None:
    ring = ring_of(tmp_path, f"alice: {SECRET}", "--api-key", "one", "--api-key", "two")
    assert [key.name for key in ring.keys] == ["key-1", "key-2", "alice"]
    found = ring.find(b"two")
    assert found is not None and found.name == "key-2"
    assert [key.is_admin for key in ring.keys] == [True, True, False]


def test_none_are_none() -> None:
    ring = Keyring.of(load_settings([]))
    assert not ring and ring.find(b"") is None and ring.find(b"x") is None


@pytest.mark.parametrize(
    "token", [b"", b" ", b"s", SECRET.encode()[:-1], SECRET.encode() + b"x", b"\xff" * 9, SHA.encode()]
)
def test_what_is_not_a_key_finds_none(tmp_path: Path, token: bytes) -> None:
    ring = ring_of(tmp_path, f"alice: {SECRET}\nbatch: {{sha256: {SHA}}}")
    assert ring and ring.find(token) is None
    assert ring.find(bytes.fromhex(SHA)) is None, "a hash is not a key"


@given(st.binary(max_size=64))
def test_only_the_keys_themselves_are_found(token: bytes) -> None:
    ring = Keyring([Key("a", digest_of(b"aa")), Key("b", digest_of(b"b"))])
    found = ring.find(token)
    assert (found and found.name) == {b"aa": "a", b"b": "b"}.get(token)


class Watched(tuple[Key, ...]):
    """Keys that notice who looks at them."""

    seen: list[str]

    def __iter__(self) -> Iterator[Key]:
        for key in super().__iter__():
            self.seen.append(key.name)
            yield key


@pytest.mark.parametrize("token", [b"a", b"b", b"c", b"x", b""])
def test_every_key_is_compared_whichever_it_is(token: bytes) -> None:
    ring = Keyring([Key(name, digest_of(name.encode())) for name in "abc"])
    ring.keys = Watched(ring.keys)
    ring.keys.seen = []
    ring.find(token)
    assert ring.keys.seen == ["a", "b", "c"]


LONG = "x" * 513
MANY = "\n".join(f"k{i}: k{i}" for i in range(MAX_KEYS + 1))
FIELDS = "key, sha256, requests-per-minute, max-concurrent, admin"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "FILE: there is no key in it"),
        ("# nothing\n", "FILE: there is no key in it"),
        ("{}", "FILE: there is no key in it"),
        (SECRET, "FILE, line 1: expected a name and its key on each line, such as `alice: KEY`"),
        (f"\n- {SECRET}", "FILE, line 2: expected a name and its key on each line, such as `alice: KEY`"),
        (f"a: {SECRET}\na: other", "FILE, line 2: two keys are named a"),
        (f"a: {SECRET}\nb: {SECRET}", "API keys: a and b are the same one"),
        ("a:", "FILE, line 1: a: a key must be 1 to 512 characters of printable ASCII without spaces"),
        ("a: ~", "FILE, line 1: a: a key must be"),
        ("a: ''", "FILE, line 1: a: a key must be"),
        (f"a: {SECRET} b", "FILE, line 1: a: a key must be"),
        (f'a: "{SECRET}\\n"', "FILE, line 1: a: a key must be"),
        (f"a: {SECRET}é", "FILE, line 1: a: a key must be"),
        (f"a: {LONG}", "FILE, line 1: a: a key must be"),
        (f"a: [{SECRET}]", f"FILE, line 1: a: expected a key, or {FIELDS} below the name"),
        (f"a:\n  key: [{SECRET}]", "FILE, line 2: a: a key must be"),
        (f"a:\n  key: {SECRET}\n  sha256: {SHA}", "FILE, line 2: a: give either key or sha256"),
        ("a:\n  max-concurrent: 2", "FILE, line 2: a: give either key or sha256"),
        (f"a:\n  key: {SECRET}\n  key: x", "FILE, line 3: a: a field is given twice"),
        (
            f"a:\n  key: {SECRET}\n  max-concurrent: 2\n  max_concurrent: 3",
            "FILE, line 4: a: a field is given twice",
        ),
        (f"a:\n  key: {SECRET}\n  rate: 3", f"FILE, line 3: a: no such field; there are {FIELDS}"),
        (f"a:\n  {SECRET}: 1", "FILE, line 2: a: no such field"),
        (f"a:\n  key: {SECRET}\n  admin: yes", "FILE, line 3: a: admin must be true or false"),
        (f"a:\n  key: {SECRET}\n  admin: [true]", "FILE, line 3: a: admin must be true or false"),
        ("a: {sha256: 12ab}", "FILE, line 1: a: sha256 must be 64 hexadecimal digits"),
        (f"a: {{sha256: {SHA}  -}}", "FILE, line 1: a: sha256 must be 64 hexadecimal digits"),
        (f"a: {{sha256: {hashlib.sha256().hexdigest()}}}", "FILE, line 1: a: this is the sha256 of nothing"),
        (f"? {SECRET} x\n: y", "FILE, line 1: a name must be 1 to 64 of A-Z"),
        (f"? [{SECRET}]\n: y", "FILE, line 1: a name must be"),
        (f"'': {SECRET}", "FILE, line 1: a name must be"),
        (f"-a: {SECRET}", "FILE, line 1: a name must be"),
        (f"<<: {{a: {SECRET}}}", "FILE, line 1: a name must be"),
        (f'"a\\nb": {SECRET}', "FILE, line 1: a name must be"),
        (f"a: *{SECRET}", "FILE, line 1: not YAML; a key that begins with one of * & ! % @ ` needs quotes"),
        (f"a: @{SECRET}", "FILE, line 1: not YAML"),
        (f"a: '{SECRET}", "FILE, line 1: not YAML"),
        (f"a: {SECRET}\n---\nb: {SECRET}", "FILE, line 2: not YAML"),
        (f"a: {SECRET}\x00", "FILE: not YAML"),
        (b"a: \xff\xfe", "FILE: not UTF-8"),
        ("[" * 5000, "FILE: nested too deeply"),
        ("#" * (MAX_FILE_BYTES + 1), f"FILE: larger than {MAX_FILE_BYTES} bytes"),
        (MANY, f"API keys: at most {MAX_KEYS}, got {MAX_KEYS + 1}"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_without_a_key(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    message = refusal(tmp_path, text)
    assert message.removeprefix("--api-key-file ").startswith(said), message
    assert SECRET not in message and SHA not in message


@pytest.mark.parametrize(
    "value", ["0", "-1", "1.5", "1e3", "many", "true", "", "[1]", "010", "99999999", "0x10", "1_0"]
)
@pytest.mark.parametrize(("field", "most"), [("requests-per-minute", 1_000_000), ("max-concurrent", 1 << 20)])
def test_a_limit_is_a_whole_number(tmp_path: Path, field: str, most: int, value: str) -> None:
    said = refusal(tmp_path, f"a:\n  key: {SECRET}\n  {field}: {value}")
    assert said == f"--api-key-file FILE, line 3: a: {field} must be a whole number from 1 to {most}"
    assert ring_of(tmp_path, f"a:\n  key: {SECRET}\n  {field}: {most}")
    assert refusal(tmp_path, f"a:\n  key: {SECRET}\n  {field}: {most + 1}") == said


def test_names_and_keys_are_compared_across_sources(tmp_path: Path) -> None:
    assert refusal(tmp_path, f"key-1: {SECRET}", "--api-key", "x") == "API keys: two are named key-1"
    assert refusal(tmp_path, f"a: {SECRET}", "--api-key", SECRET) == "API keys: key-1 and a are the same one"
    assert refusal(tmp_path, f"a: {{sha256: {SHA}}}", "--api-key", "of-batch").endswith("the same one")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(SettingsError) as caught:
            read_key_file(path)
        assert str(caught.value) == f"--api-key-file {path}: {said}"


def test_a_file_that_everyone_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(f"alice: {SECRET}")
    with caplog.at_level(logging.WARNING, "causerie.server"):
        path.chmod(0o640)
        read_key_file(path)
        assert not caplog.messages
        path.chmod(0o644)
        read_key_file(path)
    (message,) = caplog.messages
    assert str(path) in message and "chmod 600" in message and SECRET not in message


def test_nothing_shows_a_key(tmp_path: Path) -> None:
    ring = ring_of(tmp_path, f"alice: {SECRET}", "--api-key", "of-batch")
    shown = f"{ring!r} {ring.keys!r} {vars(ring)} {load_settings(['--api-key', SECRET])!r}"
    assert SECRET not in shown and "of-batch" not in shown and SHA not in shown
    assert repr(digest_of(SECRET.encode())) not in shown


def test_key_of_a_request() -> None:
    key = Key("a", digest_of(b"a"))
    scopes: list[dict[str, Any]] = [{}, {"state": {}}, {"state": {"key": None}}, {"state": {"key": key}}]
    assert [key_of(scope) for scope in scopes] == [None, None, None, key]


class Clock:
    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


def test_a_rate_lets_a_minutes_worth_in_and_then_one_at_a_time() -> None:
    clock = Clock()
    rate = Rate(3, clock)
    assert [rate.take() for _ in range(5)] == [0, 0, 0, 20, 20], "what is refused takes no place"
    clock.now += 19
    assert rate.take() == 1
    clock.now += 1
    assert [rate.take(), rate.take()] == [0, 20]
    clock.now += 3600
    assert [rate.take() for _ in range(4)] == [0, 0, 0, 20], "an idle hour saves up no more than a minute"


@given(st.integers(1, 1_000_000), st.lists(st.floats(0, 90), max_size=40))
def test_who_waits_as_told_is_let_in_and_nobody_exceeds_the_rate(
    per_minute: int, pauses: list[float]
) -> None:
    clock = Clock()
    rate, started, num_let_in = Rate(per_minute, clock), clock.now, 0
    for pause in pauses:
        clock.now += pause
        wait = rate.take()
        assert 0 <= wait <= 60 / per_minute
        if wait:
            clock.now += wait
            assert rate.take() == 0
        num_let_in += 1
        assert num_let_in <= per_minute * (1 + (clock.now - started) / 60) + 1e-3


@given(st.integers(1, 500), st.floats(0, 1e7))
def test_all_of_a_minutes_worth_comes_in_at_any_time(per_minute: int, now: float) -> None:
    clock = Clock()
    clock.now = now
    rate = Rate(per_minute, clock)
    assert [rate.take() for _ in range(per_minute)] == [0] * per_minute
    assert rate.take() > 0
