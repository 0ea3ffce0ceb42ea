"""The Dockerfile agrees with the project it packs; that it builds is `test_image.py`'s."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

from deploy.docker.build_without_daemon import KERNELS, local_paths
from llm.runner.native.build import BUILT, SOURCES

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def copied() -> set[str]:
    """What the Dockerfile takes from the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
    return {source for line in lines for source in line.split()[:-1]}


def test_what_is_copied_is_there_and_let_through() -> None:
    rules = (ROOT / ".dockerignore").read_text().split()
    assert rules[0] == "*"
    assert copied() == {rule[1:] for rule in rules if rule.startswith("!")}
    assert all((ROOT / source).exists() for source in copied())


def test_every_package_of_the_project_is_copied() -> None:
    packages = {name.split(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= copied()


def test_the_kernel_is_compiled_during_the_build_and_its_compiler_left_there() -> None:
    build, image = re.split(r"^FROM .*\n", DOCKERFILE, flags=re.M)[1:]
    assert "install -y --no-install-recommends gcc libc6-dev" in build
    assert build.index("COPY llm llm") < build.index("causerie build-kernel --isa all")
    assert "RUN" not in image and Path(KERNELS) == "app" / BUILT.relative_to(ROOT)
    ours = str((BUILT / "any.so").relative_to(ROOT))
    assert str(Path(ours).parent) in (ROOT / ".dockerignore").read_text().split(), (
        "made for another C library"
    )
    ignored = subprocess.run(["git", "check-ignore", "--quiet", "--no-index", ours], cwd=ROOT, check=False)
    assert ignored.returncode in (0, 128), "128: no repository here"


def test_the_kernels_sources_are_in_a_wheel() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["llm.runner.native"]
    package = SOURCES.parent
    assert set(SOURCES.iterdir()) == {path for pattern in patterns for path in package.glob(pattern)}


def test_versions_are_the_projects_own() -> None:
    assert re.findall(r"^ARG VERSION=(.+)$", DOCKERFILE, re.M) == [PROJECT["project"]["version"]]
    pins = re.findall(r'"?(torch==[\d.]+)"?', DOCKERFILE + (ROOT / "Makefile").read_text())
    assert len(pins) == 2 and len(set(pins)) == 1


def test_paths_that_pip_reads_are_found(tmp_path: Path) -> None:
    (tmp_path / "index/simple").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    config = {
        "find-links": f"{tmp_path}/wheels https://wheels.example/",
        "extra-index-url": f"file://{tmp_path}/index/simple {tmp_path}/absent",
        "timeout": "180",
    }
    assert local_paths(config) == [tmp_path / "index", tmp_path / "wheels"]
