"""Builds the image with buildah, where there is no Docker daemon, and says how big it is and what is in it.

Same Dockerfile, another base: a Debian of debootstrap's with its Python, made once and kept in the cache. The
build's pip obeys the configuration of this machine's pip (mirrors, certificates, folders of wheels), which is
mounted for the build and stays out of the image. Refuses to know what the Dockerfile does.

    # python3 -m deploy.docker.build_without_daemon --install-tools --cache runs/image
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from deploy.docker.buildah import NOT_HERE, NotHere, Store, need

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/causerie"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "causerie" / "image"
TOOLS = ("buildah", "debootstrap")
PACKAGES = "python3,python3-venv,ca-certificates"
KERNELS = "app/llm/runner/native/built"
DOCUMENTS = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache",
    "var/lib/apt/lists",
)
SOURCES = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "cert",
    "proxy",
    "timeout",
)


def main(argv: list[str] | None = None) -> int:
    """Build; exit status 0, 1 when the build fails, 3 when this machine cannot try. The last line is JSON."""
    args = _parser().parse_args(argv)
    try:
        need(TOOLS, install=args.install_tools)
        store = Store(args.cache)
        begun = time.monotonic()
        base = base_image(store, args.suite, args.mirror)
        build(store, base, args.torch_index, keep_layers=args.keep_layers)
    except NotHere as reason:
        print(reason)
        return NOT_HERE
    except subprocess.CalledProcessError as error:
        print(f"exit status {error.returncode}: {' '.join(error.cmd[:8])} …", file=sys.stderr)
        return 1
    figures = {"image": IMAGE, "driver": store.driver, "seconds": round(time.monotonic() - begun)}
    with store.mounted(IMAGE) as root:
        parts = biggest(root)
        kernels = sorted(path.name.split("-")[0] for path in (root / KERNELS).glob("*.so"))
    for name, size in parts.items():
        print(f"{size / 1e6:7.1f} MB  {name}")
    figures |= {"kernels": kernels}
    figures |= {"bytes": store.size(IMAGE), "base_bytes": store.size(base_name(args.suite)), "parts": parts}
    if args.compressed:
        figures["compressed_bytes"] = compressed(store)
    print(json.dumps(figures))
    return 0


def base_name(suite: str) -> str:
    """The name of the base made from that Debian."""
    return f"localhost/debian-python:{suite}"


def base_image(store: Store, suite: str, mirror: str) -> str:
    """A small Debian with Python, made at the first call."""
    name = base_name(suite)
    if store.has(name):
        return name
    print(f"making {name} from {mirror}", flush=True)
    with tempfile.TemporaryDirectory(dir=store.folder) as folder:
        root = Path(folder) / "root"
        options = ["--variant=minbase", f"--include={PACKAGES}"]
        subprocess.run(["debootstrap", *options, suite, root, mirror], check=True, stdout=subprocess.DEVNULL)
        for path in DOCUMENTS:
            shutil.rmtree(root / path)
            (root / path).mkdir()
        container = store.ask("from", "scratch")
        store.run("add", "--quiet", container, root, "/")
        store.run("commit", "--quiet", "--rm", container, name)
    return name


def build(store: Store, base: str, torch_index: str | None, *, keep_layers: bool = False) -> None:
    """`docker build -t causerie .` by other means."""
    options = ["--build-arg", f"BASE={base}", "--isolation", "chroot", "--format", "docker", "--force-rm"]
    options.append(f"--layers={json.dumps(keep_layers)}")
    config = pip_config()
    if torch_index is None and {"index-url", "extra-index-url", "find-links"} & set(config):
        torch_index = ""  # this machine's pip has places of its own: torch is looked for there
    if torch_index is not None:
        options += ["--build-arg", f"TORCH_INDEX={torch_index}"]
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "pip.conf"
        written.write_text("".join(["[global]\n", *(f"{key} = {value}\n" for key, value in config.items())]))
        for source, target in [(written, "/etc/pip.conf"), *((path, path) for path in local_paths(config))]:
            options += ["--volume", f"{source}:{target}:ro"]
        store.run("build", *options, "--tag", IMAGE, "--file", ROOT / "Dockerfile", ROOT)
    if not keep_layers:
        store.ask("rmi", "--prune", "--force")  # those of the image this one replaces


def pip_config() -> dict[str, str]:
    """Where this machine's pip gets packages from: files first, environment over them, as pip does."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, encoding="utf-8", check=False).stdout
    pairs = [line.split("=", 1) for line in listed.splitlines() if "=" in line]
    pairs.sort(key=lambda pair: pair[0].startswith(":env:"))
    named = {key.rpartition(".")[2].replace("default-timeout", "timeout"): value for key, value in pairs}
    return {key: " ".join(_unquote(named[key]).split()) for key in SOURCES if key in named}


def _unquote(text: str) -> str:
    """pip prints values as Python strings: 'a\\nb'."""
    return text[1:-1].encode().decode("unicode_escape") if text[:1] in "'\"" else text


def local_paths(config: Mapping[str, str]) -> list[Path]:
    """Files and folders here that the configuration names, a `…/simple` with what lies beside it."""
    words = " ".join(config.values()).split()
    named = [Path(urlsplit(word).path) for word in words if word.startswith(("/", "file:"))]
    folders = {path.parent if path.name == "simple" else path for path in named if path.exists()}
    return sorted(folders)


def biggest(root: Path, least: int = 10_000_000) -> dict[str, int]:
    """Bytes of top folders and packages, the largest first, down to `least`."""
    site = sorted(root.glob("venv/lib/python3*/site-packages"))
    folders = [*root.iterdir(), *(path for one in site for path in one.iterdir())]
    named = sorted((path for path in folders if path.is_dir() and not path.is_symlink()), key=str)
    command = ["du", "--bytes", "--count-links", "--summarize", *map(str, named)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout.splitlines()
    sizes = {
        f"/{Path(path).relative_to(root)}": int(size) for size, path in (line.split("\t") for line in lines)
    }
    return dict(sorted(((k, v) for k, v in sizes.items() if v >= least), key=lambda pair: -pair[1]))


def compressed(store: Store) -> int:
    """Bytes that a registry would hold: the layers in gzip."""
    with tempfile.TemporaryDirectory(dir=store.folder) as folder:
        store.run("push", "--quiet", "--disable-compression=false", IMAGE, f"oci:{folder}/image")
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="build_without_daemon", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="folder for the base and the layers (%(default)s)"
    )
    parser.add_argument("--install-tools", action="store_true", help=f"apt-get {', '.join(TOOLS)} if missing")
    parser.add_argument("--suite", default="bookworm", help="Debian to start from (%(default)s)")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="its mirror (%(default)s)")
    parser.add_argument(
        "--torch-index", help="index of torch's wheels; empty: pip's own (default: as configured)"
    )
    parser.add_argument("--keep-layers", action="store_true", help="for a faster next build: some GB")
    parser.add_argument("--compressed", action="store_true", help="measure the layers in gzip, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
