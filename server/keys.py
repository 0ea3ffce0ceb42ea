"""The keys that open this server: their names, their hashes, and how much each may ask for.

A key itself is hashed on the way in and forgotten; nothing here can show one. Refuses to know HTTP, and how
many requests a key has running: `server.auth` asks who someone is, `server.limits` counts.

    >>> Keyring.of(load_settings(["--api-key-file", "keys.yaml"])).find(b"sk-alice").name
    'alice'

The file is YAML, a name and its key on each line, or what else is known of it below the name:

    alice: sk-alice
    batch:
      sha256: 5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8   # printf %s KEY | sha256sum
      requests-per-minute: 60
      max-concurrent: 2
      admin: true
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml  # type: ignore[import-untyped]

from server.settings import Settings, SettingsError

log = logging.getLogger("causerie.server")

MAX_FILE_BYTES = 1 << 20
MAX_KEYS = 1024
"""Every key is compared on every request: half a millisecond with this many."""
MAX_KEY_LENGTH = 512
MAX_REQUESTS_PER_MINUTE = 1_000_000
MAX_CONCURRENT = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_COUNT = re.compile(r"[1-9][0-9]{0,7}")
_FIELDS = ("key", "sha256", "requests-per-minute", "max-concurrent", "admin")


@dataclass(frozen=True, slots=True)
class Key:
    """Who may come in. None means no limit of its own; an admin may change what is served."""

    name: str
    digest: bytes = field(repr=False)
    requests_per_minute: int | None = None
    max_concurrent: int | None = None
    is_admin: bool = False


def digest_of(secret: bytes) -> bytes:
    """SHA-256, all that is kept of a key. Salt and slowness are for short ones; a key is long and random."""
    return hashlib.sha256(secret).digest()


class Keyring:
    """The keys of a server. Without any, it is open to whoever can reach it.

    Raises:
        SettingsError: two keys have one name, or are the same; or there are too many.
    """

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self.keys = tuple(keys)
        if len(self.keys) > MAX_KEYS:
            raise SettingsError(f"API keys: at most {MAX_KEYS}, got {len(self.keys)}")
        names: set[str] = set()
        owners: dict[bytes, str] = {}
        for key in self.keys:
            if key.name in names:
                raise SettingsError(f"API keys: two are named {key.name}")
            if key.digest in owners:
                raise SettingsError(f"API keys: {owners[key.digest]} and {key.name} are the same one")
            names.add(key.name)
            owners[key.digest] = key.name

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The keys of --api-key, named key-1, key-2..., which are admins, then those of --api-key-file.

        Raises:
            SettingsError: what cannot be used, in one line that repeats no key.
        """
        given = [key.get_secret_value().encode() for key in settings.api_key]
        keys = [Key(f"key-{i}", digest_of(secret), is_admin=True) for i, secret in enumerate(given, 1)]
        if settings.api_key_file is not None:
            keys += read_key_file(settings.api_key_file)
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self.keys)

    def find(self, token: bytes) -> Key | None:
        """Whose key this is. Takes as long for a wrong one, whatever it is, as for a right one."""
        digest = digest_of(token)
        found: Key | None = None
        for key in self.keys:  # to the end, found or not
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found


def key_of(scope: Mapping[str, Any]) -> Key | None:
    """The key that a request, or its ASGI scope, came in with; None when none was needed."""
    key = scope.get("state", {}).get("key")
    assert key is None or isinstance(key, Key)
    return key


class Rate:
    """A key's requests per minute: a minute's worth at once, then one whenever a place is free again.

    What is refused takes no place. Not for several threads.
    """

    SPAN = 60.0
    SLACK = 1e-6  # the last of a minute's worth comes in, whatever the last bits of a sum say

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = self.SPAN / per_minute
        self._clock = clock
        self._unused_at = -float("inf")

    def take(self) -> float:
        """0 when the request may go on, else the seconds until one may."""
        now = self._clock()
        taken_until = max(self._unused_at, now) + self._interval
        wait = taken_until - self.SPAN - now
        if wait > self.SLACK:
            return wait
        self._unused_at = taken_until
        return 0.0


def read_key_file(path: Path) -> list[Key]:
    """The keys of a file.

    Raises:
        SettingsError: one line with the file and the line in it; never a key.
    """
    root = _compose(path)
    if root is None or root.value == []:
        raise _refusal(path, None, "there is no key in it")
    if not isinstance(root, yaml.MappingNode):
        raise _refusal(path, root, "expected a name and its key on each line, such as `alice: KEY`")
    return [_read_key(path, name, value) for name, value in _entries(path, root)]


def _compose(path: Path) -> Any:
    """YAML's nodes rather than its values: they know their lines, and that 0123 was written, not 83."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _refusal(path, None, error.strerror or "cannot be read") from None
    if len(content) > MAX_FILE_BYTES:
        raise _refusal(path, None, f"larger than {MAX_FILE_BYTES} bytes")
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        log.warning("--api-key-file %s can be read by every user of this machine: chmod 600 it", path)
    try:
        return yaml.compose(content.decode("utf-8-sig"), yaml.SafeLoader)
    except yaml.YAMLError as error:  # its own words may quote a key
        mark = getattr(error, "problem_mark", None)
        hint = "; a key that begins with one of * & ! % @ ` needs quotes"
        raise _refusal(path, mark, "not YAML" + hint) from None
    except UnicodeDecodeError:
        raise _refusal(path, None, "not UTF-8") from None
    except RecursionError:
        raise _refusal(path, None, "nested too deeply") from None


def _read_key(path: Path, name: str, value: Any) -> Key:
    if isinstance(value, yaml.ScalarNode):
        return Key(name, digest_of(_secret(path, name, value)))
    if not isinstance(value, yaml.MappingNode):
        raise _refusal(path, value, f"{name}: expected a key, or {', '.join(_FIELDS)} below the name")
    told: dict[str, Any] = {}
    for written, node in _entries(path, value, name):
        known = written.replace("_", "-")
        if known not in _FIELDS:
            raise _refusal(path, node, f"{name}: no such field; there are {', '.join(_FIELDS)}")
        if known in told:
            raise _refusal(path, node, f"{name}: a field is given twice")
        told[known] = node
    if ("key" in told) == ("sha256" in told):
        raise _refusal(path, value, f"{name}: give either key or sha256")
    return Key(
        name,
        digest_of(_secret(path, name, told["key"])) if "key" in told else _sha256(path, name, told["sha256"]),
        _count(path, name, told, "requests-per-minute", MAX_REQUESTS_PER_MINUTE),
        _count(path, name, told, "max-concurrent", MAX_CONCURRENT),
        _flag(path, name, told, "admin"),
    )


def _entries(path: Path, mapping: Any, owner: str | None = None) -> Iterator[tuple[str, Any]]:
    """Names with their nodes. What is refused may be a key in the wrong place, and is not repeated."""
    seen: set[str] = set()
    for left, right in mapping.value:
        name = left.value if isinstance(left, yaml.ScalarNode) else ""
        if owner is None and not _NAME.fullmatch(name):
            raise _refusal(path, left, "a name must be 1 to 64 of A-Z a-z 0-9 . _ -, the first no sign")
        if name in seen:
            twice = f"two keys are named {name}" if owner is None else f"{owner}: a field is given twice"
            raise _refusal(path, left, twice)
        seen.add(name)
        yield name, right


def _secret(path: Path, name: str, node: Any) -> bytes:
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    is_null = isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")
    if is_null or not is_usable(text) or len(text) > MAX_KEY_LENGTH:
        raise _refusal(
            path,
            node,
            f"{name}: a key must be 1 to {MAX_KEY_LENGTH} characters of printable ASCII without spaces",
        )
    return text.encode()


def is_usable(secret: str) -> bool:
    """Whether a header can carry this key, and it is one at all."""
    return bool(secret) and secret.isascii() and secret.isprintable() and " " not in secret


def _sha256(path: Path, name: str, node: Any) -> bytes:
    if not isinstance(node, yaml.ScalarNode) or not _SHA256.fullmatch(node.value):
        raise _refusal(path, node, f"{name}: sha256 must be 64 hexadecimal digits")
    digest = bytes.fromhex(node.value)
    if digest == digest_of(b""):
        raise _refusal(path, node, f"{name}: this is the sha256 of nothing")
    return digest


def _count(path: Path, name: str, told: Mapping[str, Any], what: str, most: int) -> int | None:
    node = told.get(what)
    if node is None:
        return None
    if not isinstance(node, yaml.ScalarNode) or not _COUNT.fullmatch(node.value) or int(node.value) > most:
        raise _refusal(path, node, f"{name}: {what} must be a whole number from 1 to {most}")
    return int(node.value)


def _flag(path: Path, name: str, told: Mapping[str, Any], what: str) -> bool:
    node = told.get(what)
    if node is None:
        return False
    if not isinstance(node, yaml.ScalarNode) or node.value not in ("true", "false"):
        raise _refusal(path, node, f"{name}: {what} must be true or false")
    return bool(node.value == "true")


def _refusal(path: Path, place: Any, reason: str) -> SettingsError:
    """`place` is a node, a mark or nothing."""
    mark = getattr(place, "start_mark", place)
    line = getattr(mark, "line", None)
    where = "" if line is None else f", line {line + 1}"
    return SettingsError(f"--api-key-file {path}{where}: {reason}")
