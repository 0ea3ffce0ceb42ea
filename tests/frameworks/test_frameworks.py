"""The frameworks people build on, each in an environment of its own, against a real server.

Every public function of a framework's conversation file is one step, run in a process of its own: it talks to
the server as the framework's documentation says, and asserts. The model knows little, so steps judge the
protocol: a call with valid arguments, a parsed object, streamed text equal to whole text, usage, the class of
an error.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.frameworks.environments import node_environment, python_environment, run_step

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Framework:
    """A folder beside this file: what to install, and the steps."""

    name: str

    @property
    def script(self) -> Path:
        """Its steps."""
        (script,) = (HERE / self.name).glob("conversation.*")
        return script

    @property
    def is_node(self) -> bool:
        return self.script.suffix == ".mjs"

    def steps(self) -> list[str]:
        """Names of the steps, in the file's order."""
        text = self.script.read_text()
        if self.is_node:
            return re.findall(r"^export async function (\w+)\(\)", text, re.MULTILINE)
        functions = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
        return [node.name for node in functions if not node.name.startswith("_") and not node.decorator_list]


FRAMEWORKS = [Framework(name) for name in ("langchain", "instructor", "pydantic_ai", "litellm", "ai_sdk")]
STEPS = [pytest.param(f, step, id=f"{f.name}-{step}") for f in FRAMEWORKS for step in f.steps()]

Start = Callable[[Framework], list[str]]


@pytest.fixture(scope="session")
def start(environments: Path) -> Start:
    """The command that runs a framework's steps, once its environment is there."""
    commands: dict[str, list[str]] = {}

    def command(framework: Framework) -> list[str]:
        if framework.name not in commands:
            commands[framework.name] = _command(framework, environments)
        return commands[framework.name]

    return command


def _command(framework: Framework, environments: Path) -> list[str]:
    folder = framework.script.parent
    if not framework.is_node:
        python = python_environment(environments, folder / "requirements.txt")
        return [str(python), "-I", str(framework.script)]
    # modules are looked up beside the program, so it goes where they are
    modules = node_environment(environments, folder / "package.json")
    return ["node", str(shutil.copy(framework.script, modules))]


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda f: f.name)
def test_every_framework_has_its_steps_and_pinned_requirements(framework: Framework) -> None:
    assert len(framework.steps()) >= 4
    assert len(set(framework.steps())) == len(framework.steps())
    if not framework.is_node:
        lines = (HERE / framework.name / "requirements.txt").read_text().splitlines()
        assert lines and all(re.fullmatch(r"[\w.\[\]-]+>=[\d.]+,<[\d.]+", line) for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "step"), STEPS)
def test_step(framework: Framework, step: str, causette: str, start: Start, tmp_path: Path) -> None:
    run_step([*start(framework), step], url=causette, home=tmp_path)
