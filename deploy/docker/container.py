"""An image run by runc, as Docker runs containers, and closed as far as Docker can close one.

What `docker run --network none --read-only --cap-drop ALL --security-opt no-new-privileges -v PATH:/model:ro`
asks for, written as an OCI bundle: namespaces of its own with no interface but lo, a read-only root, no
capability, the image's own user, command, environment and health check. Docker's seccomp profile is left out.
Refuses to know what runs inside.

    >>> with Container(root, image_config, ["--checkpoint", "/model"], mounts={"/model": path}) as box:
    ...     box.healthy(); box.stop()
"""

from __future__ import annotations

import json
import secrets
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

NAMESPACES = ("pid", "network", "ipc", "uts", "mount")
CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
HIDDEN = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"]
FROZEN = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
MOUNTS: tuple[dict[str, Any], ...] = (
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "mode=755", "size=64k"],
    },
    {
        "destination": "/dev/shm",
        "type": "tmpfs",
        "source": "shm",
        "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=64m"],
    },
    {
        "destination": "/sys",
        "type": "sysfs",
        "source": "sysfs",
        "options": ["nosuid", "noexec", "nodev", "ro"],
    },
)


class Container:
    """One run of an image's files, as a context manager; leaving it kills what is left and removes it.

    Args:
        root: the image's files, mounted; never written.
        config: the image's Entrypoint, Env, User, WorkingDir, Healthcheck and StopSignal.
        arguments: after the entrypoint.
        environment: variables over the image's own.
        mounts: path inside → path outside, read-only.
    """

    def __init__(
        self,
        root: Path,
        config: Mapping[str, Any],
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        mounts: Mapping[str, Path] | None = None,
    ) -> None:
        self.name = f"causerie-{secrets.token_hex(4)}"
        self._config = config
        self._folder = tempfile.TemporaryDirectory()
        self._log = (Path(self._folder.name) / "log").open("w+b")
        self._process: subprocess.Popen[bytes] | None = None
        bundle = _bundle(root, config, arguments, environment or {}, mounts or {})
        (Path(self._folder.name) / "config.json").write_text(json.dumps(bundle), encoding="utf-8")

    def __enter__(self) -> Self:
        """Start it."""
        command = ["runc", "run", "--bundle", self._folder.name, self.name]
        say = {"stdin": subprocess.DEVNULL, "stdout": self._log, "stderr": subprocess.STDOUT}
        self._process = subprocess.Popen(command, **say)  # type: ignore[call-overload]
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever happened: nothing runs and nothing is left."""
        subprocess.run(["runc", "delete", "--force", self.name], capture_output=True)
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """Its first process, as this machine counts; only while it runs."""
        state = subprocess.run(["runc", "state", self.name], check=True, capture_output=True).stdout
        return int(json.loads(state)["pid"])

    def ended(self) -> int | None:
        """Its exit status, or None while it runs."""
        assert self._process is not None, "not started"
        return self._process.poll()

    def execute(self, command: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
        """`docker exec`: a command beside the first process, as the same user, with as little allowed."""
        full = ["runc", "exec", self.name, *command]
        return subprocess.run(full, input=stdin, capture_output=True, encoding="utf-8")

    def healthy(self) -> bool:
        """Whether the image's own health check passes now."""
        kind, *command = self._config["Healthcheck"]["Test"]
        assert kind == "CMD", "written for health checks that need no shell"
        return self.execute(command).returncode == 0

    def inside(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """A command of this machine in the container's network, which outlives the container."""
        enter = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *command]
        return subprocess.Popen(enter, stdout=subprocess.PIPE, encoding="utf-8")

    def stop(self, seconds: float) -> int:
        """`docker stop`: the image's stop signal, then its exit status. Raises TimeoutExpired."""
        assert self._process is not None, "not started"
        signal = self._config.get("StopSignal") or "SIGTERM"
        subprocess.run(["runc", "kill", self.name, signal], check=True)
        return self._process.wait(seconds)

    def log(self) -> str:
        """What it wrote so far."""
        self._log.flush()
        return (Path(self._folder.name) / "log").read_text(encoding="utf-8", errors="replace")


def _bundle(
    root: Path,
    config: Mapping[str, Any],
    arguments: Sequence[str],
    environment: Mapping[str, str],
    mounts: Mapping[str, Path],
) -> dict[str, Any]:
    """An OCI runtime configuration."""
    uid, _, gid = str(config["User"]).partition(":")
    given = {**dict(pair.split("=", 1) for pair in config["Env"]), **environment}
    bound = [
        {"destination": at, "type": "bind", "source": str(path.resolve()), "options": ["rbind", "ro"]}
        for at, path in mounts.items()
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": int(uid), "gid": int(gid or uid)},
            "args": [*config["Entrypoint"], *(arguments or config.get("Cmd") or ())],
            "env": [f"{name}={value}" for name, value in given.items()],
            "cwd": config["WorkingDir"] or "/",
            "capabilities": {name: [] for name in CAPABILITY_SETS},
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": "causerie",
        "mounts": [*MOUNTS, *bound],
        "linux": {
            "namespaces": [{"type": kind} for kind in NAMESPACES],
            "maskedPaths": HIDDEN,
            "readonlyPaths": FROZEN,
        },
    }
