from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.frameworks.environments import (
    InstallFailed,
    install,
    kept,
    node_environment,
    node_version,
    python_environment,
    run_step,
    succeeds,
)

NOBODY = "http://127.0.0.1:9/"
"""No index listens on the discard port."""


class Maker:
    """Makes folders, and remembers how often."""

    def __init__(self) -> None:
        self.num_made = 0
        self.is_well = True

    def make(self, folder: Path) -> None:
        self.num_made += 1
        folder.mkdir()
        (folder / "made").touch()

    def works(self, folder: Path) -> bool:
        return self.is_well and (folder / "made").exists()


def test_an_environment_is_made_once_and_kept(tmp_path: Path) -> None:
    maker = Maker()
    first = kept(tmp_path / "cache", "one", "recipe", maker.make, maker.works)
    assert first == kept(tmp_path / "cache", "one", "recipe", maker.make, maker.works)
    assert (first / "made").exists() and maker.num_made == 1


def test_it_is_made_again_when_it_does_not_work_or_was_left_half_made(tmp_path: Path) -> None:
    maker = Maker()
    folder = kept(tmp_path, "one", "recipe", maker.make, maker.works)
    (folder / "made").unlink()
    kept(tmp_path, "one", "recipe", maker.make, maker.works)
    assert maker.num_made == 2
    (folder / "complete").unlink()
    (folder / "rest of the first try").touch()
    kept(tmp_path, "one", "recipe", maker.make, maker.works)
    assert maker.num_made == 3 and not (folder / "rest of the first try").exists()


def test_another_recipe_replaces_it_and_leaves_the_others(tmp_path: Path) -> None:
    maker = Maker()
    old = kept(tmp_path, "one", "recipe", maker.make, maker.works)
    other = kept(tmp_path, "one-and-more", "recipe", maker.make, maker.works)
    new = kept(tmp_path, "one", "another", maker.make, maker.works)
    assert new != old and not old.exists() and other.exists() and maker.num_made == 3


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    maker = Maker()

    def fails(folder: Path) -> None:
        maker.make(folder)
        raise InstallFailed("no")

    with pytest.raises(InstallFailed):
        kept(tmp_path, "one", "recipe", fails, maker.works)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("wrote", "reason"),
    [
        ("npm error code ECONNREFUSED\nnpm error If you are behind", "npm error code ECONNREFUSED"),
        ("npm error code ENOTFOUND\nnpm error log", "npm error code ENOTFOUND"),
        ("npm error code ETARGET\nnpm error notarget No matching version found for zod@^444", None),
        (
            "ERROR: Could not find a version that satisfies x (from versions: none)\nERROR: no",
            "ERROR: Could not find a version that satisfies x (from versions: none)",
        ),
        ("ERROR: Could not find a version that satisfies x>=9 (from versions: 1.0, 2.0)", None),
        ("", None),
    ],
)
def test_an_index_that_says_no_is_not_an_index_out_of_reach(wrote: str, reason: str | None) -> None:
    assert InstallFailed(wrote).unreachable == reason


def test_an_installer_that_fails_says_what_it_wrote() -> None:
    with pytest.raises(InstallFailed, match=r"(?s)out.*err"):
        code = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)"
        install(sys.executable, "-I", "-c", code)
    assert succeeds(sys.executable, "-I", "-c", "pass")
    assert not succeeds(sys.executable, "-I", "-c", "raise SystemExit(1)")
    assert not succeeds("no-such-program-anywhere")


def test_a_step_sees_an_empty_home_and_none_of_our_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere")
    code = "import os; print(sorted(os.environ), os.environ['HOME'], os.environ['CAUSERIE_URL'])"
    out = run_step([sys.executable, "-I", "-c", code], url="http://here", home=tmp_path)
    assert "OPENAI_BASE_URL" not in out
    assert out.endswith(f"{tmp_path} http://here/v1\n")


def test_a_step_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_step([sys.executable, "-I", "-c", "1 / 0"], url="http://here", home=tmp_path)


@pytest.mark.slow
def test_pip_without_an_index_is_a_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", NOBODY)
    (tmp_path / "requirements.txt").write_text("openai>=2\n")
    with pytest.raises(pytest.skip.Exception, match="cannot be installed: WARNING: Retrying"):
        python_environment(tmp_path / "cache", tmp_path / "requirements.txt")


@pytest.mark.slow
@pytest.mark.skipif((node_version() or 0) < 18 or shutil.which("npm") is None, reason="needs npm, node 18")
def test_npm_without_an_index_is_a_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", NOBODY)
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    (tmp_path / "package.json").write_text('{"private": true, "dependencies": {"zod": "^4.6.7"}}')
    with pytest.raises(pytest.skip.Exception, match="cannot be installed: npm error code ECONNREFUSED"):
        node_environment(tmp_path / "cache", tmp_path / "package.json")
