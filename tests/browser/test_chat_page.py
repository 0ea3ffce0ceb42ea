"""The chat page in a real browser, with the real server and the default checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from clients.child import ChildServer
from clients.client import Client
from llm.train.data import read_chats
from tests.browser.chat import LAST, LAST_TEXT, Chat

pytestmark = pytest.mark.slow

QUESTION = "what is a token?"
OTHER = "what is attention?"
SLOW_LINE = 2000
"""Bytes a second: a reply of twenty tokens takes seconds, and can be seen and stopped on its way."""


def test_a_message_is_answered_as_the_api_answers(chat: Chat, causette: ChildServer) -> None:
    reply = chat.ask(QUESTION)
    with Client(causette.url) as client:
        answer = client.chat([{"role": "user", "content": QUESTION}], temperature=0)
    assert reply == answer["choices"][0]["message"]["content"].strip()
    assert [chat.tab.attribute(f"message[{i}]", "data-role") for i in range(2)] == ["user", "assistant"]
    assert chat.tab.text("composer") == "" and chat.tab.text("message[0] message-text").strip() == QUESTION
    assert re.search(r"\d", chat.tab.text(f"{LAST} speed")), "tokens per second"
    chat.tab.wait(r"() => /\d\D+512/.test(said(find('count')[0]))")  # tokens, of as many as there may be
    chat.tab.read("status", "running")


def test_keys_do_what_the_buttons_do(chat: Chat) -> None:
    chat.tab.fill("composer", "one")
    chat.tab.press("Shift+Enter")
    assert chat.tab.text("composer") == "one\n"
    chat.tab.fill("composer", QUESTION)
    chat.tab.press("Enter")
    first = chat.finish()
    assert first
    reached = set()
    for _ in range(40):
        chat.tab.press("Tab")
        reached.add(chat.tab.evaluate("() => document.activeElement.dataset.test"))
    assert {
        "model",
        "compare",
        "settings",
        "new-chat",
        "composer",
        "import",
        "edit",
        "regenerate",
        "inspect",
    } <= reached


def test_a_reply_streams_and_stops(chat: Chat) -> None:
    chat.tab.throttle(SLOW_LINE)
    chat.send(QUESTION)
    first = chat.tab.wait(f"() => {{ const e = find('{LAST_TEXT}')[0]; return e && said(e).trim(); }}")
    assert chat.tab.attribute(LAST, "data-state") == "streaming"
    chat.tab.wait("(path, first) => said(find(path)[0]).trim().length > first.length", LAST_TEXT, first)
    chat.tab.click("stop")
    kept = chat.finish("stopped")
    assert kept.startswith(first)
    chat.tab.throttle(None)
    assert chat.ask(OTHER), "the next message is answered"
    chat.tab.click("message[1] regenerate")
    whole = chat.finish()
    assert whole.startswith(kept) and len(whole) > len(kept)


def test_an_edited_question_is_a_branch_and_the_old_one_stays(chat: Chat) -> None:
    first = chat.ask(QUESTION)
    chat.tab.click("message[0] edit")
    assert chat.tab.text("edit-box") == QUESTION
    chat.tab.fill("edit-box", OTHER)
    chat.tab.click("edit-save")
    chat.tab.read("message[0] message-text", OTHER)
    other = chat.finish()
    assert other != first and chat.siblings("message[0]") == (2, 2)
    chat.tab.click("message[0] sibling-prev")
    chat.tab.read("message[0] message-text", QUESTION)
    assert chat.finish() == first and chat.siblings("message[0]") == (1, 2)
    chat.tab.click("message[0] sibling-next")
    chat.tab.read("message[0] message-text", OTHER)
    assert chat.finish() == other


def test_a_reply_made_again_keeps_the_first_and_says_what_the_seed_says(chat: Chat) -> None:
    first = chat.ask(QUESTION)
    chat.set(temperature="2", top_p="1", top_k="0", seed="7")
    chat.tab.click(f"{LAST} regenerate")
    chat.tab.wait("() => find('sibling-count').length === 1")
    second = chat.finish()
    assert second != first and chat.siblings(LAST) == (2, 2)
    assert chat.tab.happened.asked("/v1/chat/completions")[-1].json["seed"] == 7
    chat.tab.click(f"{LAST} regenerate")
    chat.tab.read(f"{LAST} sibling-count", "3/3")
    assert chat.finish() == second, "the same seed"
    chat.tab.click(f"{LAST} sibling-prev")
    chat.tab.click(f"{LAST} sibling-prev")
    chat.tab.read(f"{LAST} sibling-count", "1/3")
    assert chat.finish() == first
    assert chat.tab.count("message") == 2


def test_what_was_said_is_there_after_a_reload(chat: Chat) -> None:
    first = chat.ask(QUESTION)
    chat.tab.click("new-chat")
    chat.tab.miss("message")
    second = chat.ask(OTHER)
    chat.tab.reload()
    chat.ready()
    chat.tab.wait("() => find('conversation').length === 2")
    shown = {}
    for i in range(2):
        chat.tab.click(f"conversation[{i}]")
        chat.tab.see(LAST)
        shown[chat.tab.text("message[0] message-text").strip()] = chat.finish()
    assert shown == {QUESTION: first, OTHER: second}
    assert chat.ask("what is a loss?"), "and it goes on"
    sent = chat.tab.happened.asked("/v1/chat/completions")[-1].json["messages"]
    assert [turn["role"] for turn in sent] == ["user", "assistant", "user"]


def test_conversations_go_out_and_come_back(chat: Chat, tmp_path: Path) -> None:
    first = chat.ask(QUESTION)
    chat.tab.click("message[0] edit")
    chat.tab.fill("edit-box", OTHER)
    chat.tab.click("edit-save")
    chat.tab.read("message[0] message-text", OTHER)
    other = chat.finish()
    whole = chat.tab.download("export-json", tmp_path)
    lines = chat.tab.download("export-jsonl", tmp_path)
    (trained,) = read_chats(lines)
    assert [(turn.role, turn.content) for turn in trained.messages] == [("user", OTHER), ("assistant", other)]
    assert QUESTION in whole.read_text() and json.loads(whole.read_text())
    for file, num_known in ((whole, 2), (lines, 3)):
        chat.tab.choose("import", file)
        chat.tab.wait("(count) => find('conversation').length === count", num_known)
        chat.tab.click("conversation[0]")
        chat.tab.read("message[0] message-text", OTHER)
        assert chat.finish() == other
        if file is whole:
            chat.tab.click("message[0] sibling-prev")
            chat.tab.read("message[0] message-text", QUESTION)
            assert chat.finish() == first, "alternatives come along"


def test_a_file_that_is_none_is_refused_in_words(chat: Chat, tmp_path: Path) -> None:
    chat.ask(QUESTION)
    refused = {
        "\0\1": "neither JSON nor JSONL",
        '{"a": 1}': "expected a list",
        '{"messages": [{"role": "robot", "content": "x"}]}\n': "must be user or assistant",
    }
    for number, (text, reason) in enumerate(refused.items()):
        file = tmp_path / f"{number}.json"
        file.write_text(text)
        chat.tab.choose("import", file)
        chat.tab.read("note", file.name)
        chat.tab.read("note", reason)
        assert chat.tab.count("conversation") == 1


def test_the_system_prompt_and_the_models_are_sent(chat: Chat, causette: ChildServer) -> None:
    chat.set(system="You answer in French.", max_tokens="5", top_p="0.9", top_k="40")
    chat.ask(QUESTION)
    sent = chat.tab.happened.asked("/v1/chat/completions")[-1].json
    assert sent["messages"][0] == {"role": "system", "content": "You answer in French."}
    assert (sent["max_tokens"], sent["top_p"], sent["top_k"], sent["temperature"]) == (5, 0.9, 40, 0)
    with Client(causette.url) as client:
        names = [model["id"] for model in client.models()]
    assert chat.tab.evaluate("() => [...find('model')[0].options].map((o) => o.value)") == names


def test_a_conversation_is_renamed_and_deleted_for_good(chat: Chat) -> None:
    chat.ask(QUESTION)
    chat.tab.click("conversation[0] rename")
    chat.tab.fill("rename-box", "My own title")
    chat.tab.press("Enter")
    chat.tab.read("conversation[0]", "My own title")
    chat.tab.reload()
    chat.ready()
    chat.tab.read("conversation[0]", "My own title")
    chat.tab.click("conversation[0] delete")
    assert chat.tab.count("conversation") == 1, "the first press only asks"
    chat.tab.click("conversation[0] delete")
    chat.tab.miss("conversation")
    chat.tab.miss("message")
    chat.tab.reload()
    chat.ready()
    assert chat.tab.count("conversation") == 0


def test_the_appearance_is_the_systems_or_the_chosen_one(chat: Chat) -> None:
    paper = "() => getComputedStyle(document.body).backgroundColor"
    seen = {}
    for system in ("light", "dark"):
        chat.tab.prefer(prefers_color_scheme=system)
        seen[system] = chat.tab.evaluate(paper)
    assert seen["light"] != seen["dark"]
    chat.set(theme="light")
    chat.tab.reload()
    chat.ready()
    assert chat.tab.evaluate(paper) == seen["light"], "though the system is dark"
