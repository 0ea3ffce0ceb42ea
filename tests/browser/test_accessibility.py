"""axe finds no serious fault in what a person meets: light, dark and on a phone, with everything opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.child import ChildServer
from tests.browser.chat import Chat
from tests.browser.scenes import LOOKS, SCENES, look
from tests.browser.tab import Tab
from tests.frameworks.environments import node_environment

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
GRAVE = ("serious", "critical")
RUN = """async () => {
  const {violations} = await axe.run(document, {resultTypes: ['violations']});
  return violations.flatMap(({impact, id, nodes}) =>
    nodes.map(({target, failureSummary}) => [impact, id, target.join(' '), failureSummary]));
}"""
"""All that is found: how grave, which rule, where, and why."""


@pytest.fixture(scope="session")
def axe(environments: Path) -> str:
    """The checker's program."""
    modules = node_environment(environments, HERE / "axe" / "package.json")
    return (modules / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.mark.parametrize("name", LOOKS)
def test_axe_finds_nothing_serious(name: str, tab: Tab, causette: ChildServer, axe: str) -> None:
    look(tab, name)
    found = {}
    for scene in SCENES:
        chat = Chat(tab, causette.url)
        chat.start_new()
        chat.set(temperature="0", seed="")
        scene(chat)
        tab.call("Runtime.evaluate", expression=axe)
        faults = tab.evaluate(RUN)
        print(name, scene.__name__, [fault[:3] for fault in faults if fault[0] not in GRAVE])
        found[scene.__name__] = [fault for fault in faults if fault[0] in GRAVE]
        assert tab.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), scene
    assert not any(found.values()), found
