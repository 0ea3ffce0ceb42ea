"""Runs the built image behind a closed door and writes down what happens: start, requests, proofs, stop.

Two runs, each with no network, a read-only root, no root user, no capability: the image as it is; and a
checkpoint from outside, mounted read-only, behind a key. Each is told to stop while a reply is being
streamed. Every line of the transcript carries the seconds since the container's start; one that should not be
begins with NO. The last line is JSON. Exit status 0 when all held, 1 when something did not, 3 when this
machine cannot try.

    # python3 -m deploy.docker.build_without_daemon --install-tools && python3 -m deploy.docker.try_image
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.docker.build_without_daemon import CACHE, IMAGE, ROOT
from deploy.docker.buildah import NOT_HERE, NotHere, Store, need
from deploy.docker.container import Container

TOOLS = ("buildah", "runc", "nsenter")
FLAGS = "--network none --read-only --cap-drop ALL --security-opt no-new-privileges"
START_SECONDS = 180.0
DRAIN_SECONDS = 25.0
"""The server's own limit for open replies after SIGTERM, and Docker's stop must wait at least as long."""
LOCKED = ("/", "/app", "/app/checkpoints", "/venv", "/pyc", "/tmp", "/var/tmp", "/etc")
KEY = "not-a-secret"
HERE = Path(__file__).parent


class Transcript:
    """What happened, printed as it happens and judged as it is printed."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.held = True

    def say(self, line: str) -> float:
        """A line with the seconds so far, which are returned."""
        seconds = time.monotonic() - self.begun
        print(f"{seconds:7.2f} s  {line}", flush=True)
        return round(seconds, 3)

    def check(self, holds: bool, line: str) -> float:
        """A line that must be true."""
        self.held &= holds
        return self.say(line if holds else f"NO: {line}")


def main(argv: list[str] | None = None) -> int:
    """Try the image twice."""
    args = _parser().parse_args(argv)
    try:
        need(TOOLS, install=args.install_tools)
        store = Store(args.cache)
        if not store.has(IMAGE):
            raise NotHere(f"no image in {args.cache}: deploy.docker.build_without_daemon makes one")
    except NotHere as reason:
        print(reason)
        return NOT_HERE
    runtime = subprocess.run(["runc", "--version"], check=True, capture_output=True, encoding="utf-8").stdout
    config = store.inspect(IMAGE)["Docker"]["config"]
    with store.mounted(IMAGE) as root:
        runs = {
            "baked": try_once(root, config, (), {}, {}),
            "mounted": try_once(
                root, config, ("--checkpoint", "/model"), {"CAUSERIE_API_KEY": KEY}, {"/model": args.model}
            ),
        }
    held = all(run["held"] for run in runs.values())
    print(json.dumps({"runtime": runtime.splitlines()[0], "held": held, "bytes": store.size(IMAGE)} | runs))
    return 0 if held else 1


def try_once(
    root: Path,
    config: Mapping[str, Any],
    arguments: Sequence[str],
    environment: Mapping[str, str],
    mounts: Mapping[str, Path],
) -> dict[str, Any]:
    """One container from start to stop, and its figures."""
    shown = [*(f"-e {name}" for name in environment), *(f"-v {path}:{at}:ro" for at, path in mounts.items())]
    print(f"\ndocker run {' '.join([FLAGS, *shown, 'causerie', *arguments])}   (by runc)")
    script = Transcript()
    with Container(root, config, arguments, environment=environment, mounts=mounts) as box:
        try:
            told = _run(box, script, environment, sorted(mounts))
        except (OSError, subprocess.SubprocessError, ValueError, LookupError) as error:
            script.check(False, f"{type(error).__name__}: {error}")
            told = {}
        if not script.held:
            print(box.log()[-4000:])
    return told | {"held": script.held}


def _run(
    box: Container, script: Transcript, environment: Mapping[str, str], mounted: Sequence[str]
) -> dict[str, Any]:
    told: dict[str, Any] = {"start_seconds": _start(box, script)}
    whole, streamed = (_ask(box, environment, stream=stream)[-1] for stream in (False, True))
    script.check(whole["status"] == 200, f"whole: {whole['text']!r} in {whole['seconds']} s")
    chosen = _ask(box, environment, structured_outputs={"choice": ["aye", "nay"]})[-1]
    script.check(chosen["text"] in ("aye", "nay"), f"under a grammar: {chosen['text']!r}")
    same = streamed["text"] == whole["text"] and streamed["done"]
    script.check(same, f"streamed: the same text in {streamed['chunks']} chunks, {streamed['seconds']} s")
    if environment:
        closed = _ask(box, {}, stream=False)[-1]
        script.check(closed["status"] == 401, f"without the key: {closed['status']}")
        told["without_key"] = closed["status"]
    told |= {"model": whole["model"], "text": whole["text"], "chunks": streamed["chunks"]}
    told["proof"] = _look(box, script, mounted)
    return told | _stop(box, script, environment)


def _start(box: Container, script: Transcript) -> float:
    """Wait for the health check as Docker does, only more often."""
    script.say("started")
    while not box.healthy():
        if (status := box.ended()) is not None or time.monotonic() - script.begun > START_SECONDS:
            raise ValueError(f"not healthy (exit status {status})")
        time.sleep(0.2)
    return script.say("the image's health check is green")


def _ask(box: Container, environment: Mapping[str, str], **fields: Any) -> list[dict[str, Any]]:
    """A question asked within the container's network, and the lines told about its answer."""
    asking = _asking(box, environment, **fields)
    out, _ = asking.communicate(timeout=START_SECONDS)
    return [json.loads(line) for line in out.splitlines()]


def _asking(box: Container, environment: Mapping[str, str], **fields: Any) -> subprocess.Popen[str]:
    given = [f"{name}={value}" for name, value in environment.items()]
    body = json.dumps({"temperature": 0, **fields})
    return box.inside(["env", *given, sys.executable, str(HERE / "ask.py"), "http://127.0.0.1:8000", body])


def _look(box: Container, script: Transcript, mounted: Sequence[str]) -> dict[str, Any]:
    """Proofs, from inside."""
    folders = [*LOCKED, *mounted]
    answer = box.execute(["python3", "-", *folders], (HERE / "look_around.py").read_text(encoding="utf-8"))
    seen: dict[str, Any] = json.loads(answer.stdout)
    server = seen["server"]
    script.say(f"process 1 is {' '.join(seen['command'])}: {server['Threads']} threads, {server['VmRSS']}")
    script.say(f"it computes with {seen['kernel'] or 'torch, no kernel'}")
    script.check(
        "0" not in server["Uid"].split(), f"its user ids: {server['Uid']}, group ids: {server['Gid']}"
    )
    powers = {name: value for name, value in server.items() if name.startswith("Cap")}
    script.check(not any(int(value, 16) for value in powers.values()), f"its capabilities: {powers}")
    script.check(server["NoNewPrivs"] == "1", f"it can gain none: NoNewPrivs {server['NoNewPrivs']}")
    closed = all(end == "EROFS" for end in seen["writes"].values())
    script.check(closed, f"writing ends in {seen['writes']}")
    script.check(seen["interfaces"] == ["lo"], f"network interfaces: {seen['interfaces']}")
    script.check(seen["outside"] == "ENETUNREACH", f"a connection outside ends in {seen['outside']}")
    return seen


def _stop(box: Container, script: Transcript, environment: Mapping[str, str]) -> dict[str, Any]:
    """The stop signal while a reply is on its way: it comes to its end, then the server leaves with 0."""
    asking = _asking(box, environment, stream=True, ignore_eos=True, max_tokens=80)
    assert asking.stdout is not None
    asking.stdout.readline()
    asked = script.say("a long reply has begun; now the image's stop signal")
    status = box.stop(DRAIN_SECONDS + 10)
    took = round(script.check(status == 0, f"exit status {status}") - asked, 3)
    script.check(took <= DRAIN_SECONDS, f"stopped in {took} s, of {DRAIN_SECONDS:g} allowed")
    last = json.loads(asking.communicate(timeout=10)[0].splitlines()[-1])
    whole = last["done"] and last["finish"] == "length"
    script.check(whole, f"the reply was whole: {last['chunks']} chunks, finish_reason {last['finish']}")
    return {"exit_status": status, "stop_seconds": took, "reply_whole": whole}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="try_image", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the image was built (%(default)s)")
    parser.add_argument("--install-tools", action="store_true", help=f"apt-get {', '.join(TOOLS)} if missing")
    model = ROOT / "checkpoints" / "causette"
    parser.add_argument("--model", type=Path, default=model, help="checkpoint to mount (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
