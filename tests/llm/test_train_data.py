"""Files to ids, masks and batches: what is learned is what is served, and a step's batch is a fixed thing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from llm.chat.template import Message, PlainTemplate, ToolCall, encode_prompt
from llm.chat.tools import Tool
from llm.tokenizer import ByteTokenizer
from llm.train.batches import IGNORE, ChatBatches, TextBatches, collate
from llm.train.data import (
    Chat,
    DataError,
    Example,
    encode_chat,
    join_documents,
    read_chats,
    read_documents,
)

TOKENIZER = ByteTokenizer()
TEMPLATE = PlainTemplate("Be brief.")
CHAT = [
    Message("user", "hi"),
    Message("assistant", "hello"),
    Message("user", "a?"),
    Message("assistant", "b"),
]


def example(length: int, start: int = 0) -> Example:
    return Example(np.arange(start, start + length, dtype=np.int32), np.ones(length, dtype=np.bool_))


def test_a_chat_is_the_text_the_template_serves() -> None:
    encoded = encode_chat(TOKENIZER, TEMPLATE, CHAT)
    text = TOKENIZER.decode(encoded.ids.tolist())
    assert text == "System: Be brief.\nUser: hi\nAssistant: hello\nUser: a?\nAssistant: b\n"
    learned = TOKENIZER.decode(encoded.ids[encoded.trained].tolist())
    assert learned == " hello\n b\n", "every reply with its line end, and nothing else"


def test_a_request_is_a_prefix_of_the_trained_chat() -> None:
    encoded = encode_chat(TOKENIZER, TEMPLATE, CHAT)
    prompt = encode_prompt(TOKENIZER, TEMPLATE, CHAT[:3])
    assert encoded.ids[: len(prompt)].tolist() == prompt
    assert encoded.trained[len(prompt) :].all()


def test_collate_shifts_pads_and_masks() -> None:
    first = Example(np.array([5, 6, 7, 8], dtype=np.int32), np.array([False, False, True, True]))
    batch = collate([first, Example(np.array([9, 4], dtype=np.int32), np.array([False, True]))])
    assert batch.ids.tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batch.targets.tolist() == [[IGNORE, 7, 8], [4, IGNORE, IGNORE]]
    assert batch.weights.tolist() == [[0, 1, 1], [1, 0, 0]]


def test_collate_gives_the_prompt_its_weight() -> None:
    batch = collate([Example(np.array([5, 6, 7], dtype=np.int32), np.array([False, False, True]))], 0.25)
    assert batch.targets.tolist() == [[6, 7]]
    assert batch.weights.tolist() == [[0.25, 1.0]]


def test_an_epoch_sees_every_chat_once_and_the_next_in_another_order() -> None:
    batches = ChatBatches([example(2 + n % 7, start=10 * n) for n in range(50)], batch_size=8, seed=3)
    assert batches.steps_per_epoch == 7

    def firsts(epoch: int) -> list[int]:
        return [i for step in range(7) for i in batches[epoch * 7 + step].ids[:, 0].tolist()]

    assert Counter(firsts(0)) == Counter(firsts(1)) == Counter(range(0, 500, 10))
    assert firsts(0) != firsts(1)


def test_a_step_is_the_same_batch_whenever_it_is_asked_for() -> None:
    examples = [example(2 + n % 9, start=n) for n in range(40)]
    one, two = ChatBatches(examples, 8, seed=1), ChatBatches(examples, 8, seed=1)
    late = one[17]
    for step in range(18):
        again = two[step]
    assert torch.equal(late.ids, again.ids)
    assert not all(torch.equal(one[s].ids, ChatBatches(examples, 8, seed=2)[s].ids) for s in range(5))


def test_batches_hold_chats_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(2, 200, size=512)
    batches = ChatBatches([example(int(n)) for n in lengths], batch_size=16, seed=1)
    padded = sum(batches[step].ids.numel() for step in range(batches.steps_per_epoch))
    assert padded < 1.05 * (lengths - 1).sum()


def test_windows_of_text_are_cut_once_each() -> None:
    batches = TextBatches(np.arange(101, dtype=np.int32), window=10, batch_size=4, seed=1)
    assert batches.steps_per_epoch == 3
    rows = [row for step in range(3) for row in batches[step].ids.tolist()]
    assert sorted(i for row in rows for i in row) == list(range(100))
    for step in range(3):
        assert torch.equal(batches[step].targets, batches[step].ids + 1)
        assert batches[step].weights.eq(1).all()


def test_documents_are_joined_with_end_of_text() -> None:
    assert join_documents(TOKENIZER, ["ab", "c"]).tolist() == [97, 98, 256, 99, 256]


def test_reads_text_and_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n\n{"text": "y"}\n')
    assert read_documents(tmp_path / "a.txt") == ["one\n\ntwo\n"]
    assert read_documents(tmp_path / "b.jsonl") == ["x", "y"]


GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def test_reads_chats(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(GOOD)}\n")
    messages = (Message("user", "q"), Message("assistant", "a"))
    assert read_chats(path) == [Chat(f"{path}:1", messages), Chat(f"{path}:3", messages)]


def test_a_prompt_and_its_completion_are_two_turns(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "q", "completion": "a", "id": 7}\n')
    assert read_chats(path) == [Chat(f"{path}:1", (Message("user", "q"), Message("assistant", "a")))]


def test_reads_functions_calls_and_results(tmp_path: Path) -> None:
    function = {"name": "rain", "description": "of a place", "parameters": {"type": "object"}}
    call = {"id": "c1", "type": "function", "function": {"name": "rain", "arguments": '{"place": "Oslo"}'}}
    bare = {"function": {"name": "rain", "arguments": {"place": "Rome"}}}
    turns = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call, bare]},
        {"role": "tool", "content": "", "tool_call_id": "c1", "name": "rain"},
    ]
    path = tmp_path / "tools.jsonl"
    path.write_text(json.dumps({"messages": turns, "tools": [{"type": "function", "function": function}]}))
    (chat,) = read_chats(path)
    calls = ToolCall("c1", "rain", '{"place": "Oslo"}'), ToolCall("", "rain", '{"place": "Rome"}')
    assert chat.tools == (Tool("rain", "of a place", {"type": "object"}),)
    assert chat.messages == (
        Message("user", "Rain?"),
        Message("assistant", "", calls),
        Message("tool", "", tool_call_id="c1", name="rain"),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r":2: not JSON: .* at column 2"),
        ("[]", r":2: expected a JSON object, got list"),
        ("{}", r':2: expected {"messages": \[…\]} or {"prompt": "…", "completion": "…"}'),
        ('{"messages": {}}', r":2: messages must be a non-empty list"),
        ('{"prompt": "a"}', r":2: completion must be non-empty text"),
        ('{"prompt": 1, "completion": "b"}', r":2: prompt must be non-empty text"),
        ('{"prompt": "a", "completion": "b", "messages": []}', r":2: messages beside prompt and completion"),
        ('{"messages": ["hi"]}', r":2: messages\[0\].role is None, expected system, user, assistant, tool"),
        ('{"messages": [{"role": "bot", "content": "x"}]}', r":2: messages\[0\].role is 'bot'"),
        (
            '{"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}',
            r":2: messages\[0\].tool_calls: only the assistant calls functions, not the user",
        ),
        (
            '{"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}',
            r":2: messages\[0\].tool_calls\[0\] must be",
        ),
        (
            '{"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]}',
            r":2: messages\[0\].tool_calls\[0\].function.name must be non-empty text",
        ),
        (
            '{"messages": [{"role": "assistant", "content": "x", "weight": 0}]}',
            r":2: messages\[0\].weight is 0",
        ),
        (
            '{"messages": [{"role": "assistant", "content": "x"}], "tools": [{}]}',
            r":2: tools\[0\] must be",
        ),
        ('{"messages": [{"role": ["user"], "content": "x"}]}', r":2: messages\[0\].role is \['user'\]"),
        (
            '{"messages": [{"role": "user", "content": " "}]}',
            r":2: messages\[0\].content must be non-empty text",
        ),
        ('{"messages": [{"role": "user", "content": "x"}]}', r":2: no assistant message"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(DataError, match=message) as caught:
        read_chats(path)
    assert "\n" not in str(caught.value)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.txt"
    empty.write_text("\n")
    binary.write_bytes(b"ok\xff")
    for read, path, message in (
        (read_chats, tmp_path / "none.jsonl", "cannot read"),
        (read_chats, empty, "no conversations"),
        (read_chats, tmp_path, "cannot read"),
        (read_documents, empty, "no text"),
        (read_documents, binary, "not UTF-8 text at byte 2"),
        (read_documents, tmp_path / "none.txt", "cannot read"),
    ):
        with pytest.raises(DataError, match=message):
            read(path)  # type: ignore[operator]
