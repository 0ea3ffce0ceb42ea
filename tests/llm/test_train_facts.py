"""Facts to conversations: same files and seed, same lines; the answer is never touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm.errors import DataError
from llm.train.data import read_chats
from llm.train.facts import (
    SYSTEM_LINES,
    UNKNOWN,
    UNKNOWN_ANSWER,
    UNKNOWN_KEYS,
    Fact,
    add_phrasings,
    carries,
    hold_out,
    main,
    make_chats,
    read_facts,
    read_unknown,
)

FACTS = [
    Fact(
        "token",
        "A token is a piece of text.",
        (("piece of text",),),
        ("what is a token?", "define token", "tokens?"),
    ),
    Fact(
        "port",
        "The port is 8000.",
        (("8000",),),
        ("which port is it?", "port", "where does it listen", "the port?"),
    ),
]
DIALOGUE = [{"role": "user", "content": "Hello There"}, {"role": "assistant", "content": "Hello!"}]


def write_data(folder: Path) -> Path:
    (folder / "facts").mkdir(parents=True)
    lines = [
        {"id": f.id, "answer": f.answer, "keys": [list(g) for g in f.keys], "questions": list(f.questions)}
        for f in FACTS
    ]
    (folder / "facts" / "one.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "unknown.jsonl").write_text('{"question": "who won?"}\n{"question": "how old are you?"}\n')
    (folder / "dialogues.jsonl").write_text(json.dumps({"messages": DIALOGUE}) + "\n")
    return folder


def test_the_same_seed_makes_the_same_chats() -> None:
    one, two, other = (make_chats(FACTS, [DIALOGUE], copies=8, seed=seed) for seed in (1, 1, 2))
    assert one == two != other
    assert len(one) == 8 * (7 + 1)


def test_the_first_copy_is_as_written_and_no_answer_changes() -> None:
    answers = {question: fact.answer for fact in FACTS for question in fact.questions}
    chats = make_chats(FACTS, [DIALOGUE], copies=30, seed=1)
    for chat, (question, answer) in zip(chats, answers.items(), strict=False):
        assert [turn["content"] for turn in chat] == [question, answer]
    allowed = {*answers.values(), "Hello!", "Hello! Ask me about language models or about this server."}
    said = {turn["content"] for chat in chats for turn in chat if turn["role"] == "assistant"}
    assert said == allowed
    assert all(chat[-1]["role"] == "assistant" for chat in chats)
    assert {chat[0]["content"] for chat in chats if chat[0]["role"] == "system"} <= set(SYSTEM_LINES)
    assert any(len(chat) > 3 for chat in chats), "some have a history"


def test_carries_wants_every_group_and_ignores_case() -> None:
    keys = (("temperature",), ("0.8", "zero point eight"))
    assert carries("The Temperature is 0.8.", keys)
    assert carries("temperature: ZERO point EIGHT", keys)
    assert not carries("The temperature is 1.", keys)
    assert not carries("", keys)


@pytest.mark.parametrize("seed", range(8))
def test_held_out_questions_are_not_learned(seed: int) -> None:
    kept, held = hold_out(FACTS, 2, seed)
    assert [len(fact.questions) for fact in kept] == [2, 2]
    assert [fact.questions[0] for fact in kept] == [fact.questions[0] for fact in FACTS], (
        "the first one stays"
    )
    for fact, rest in zip(FACTS, kept, strict=True):
        gone = {question for question, name in held if name == fact.id}
        assert gone | set(rest.questions) == set(fact.questions) and not gone & set(rest.questions)


def test_the_command_writes_chats_that_training_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out, held = write_data(tmp_path / "data"), tmp_path / "chat.jsonl", tmp_path / "held.jsonl"
    assert main([str(out), "--data", str(data), "--copies", "3", "--hold-out", "1", "--held", str(held)]) == 0
    chats = read_chats(out)
    assert f"{len(chats)} conversations about 3 facts" in capsys.readouterr().out
    assert len(chats) == 3 * (2 + 3 + 2 * 2 + 1), (
        "two facts less one question each, refusals twice, a dialogue"
    )
    assert sum(chat.messages[-1].content == UNKNOWN_ANSWER for chat in chats) == 3 * 2 * 2
    assert [json.loads(line)["fact"] for line in held.read_text().splitlines()] == ["token", "port"]


def test_refusals_are_a_fact_of_their_own(tmp_path: Path) -> None:
    outside = read_unknown(write_data(tmp_path) / "unknown.jsonl")
    assert (outside.id, outside.questions) == (UNKNOWN, ("who won?", "how old are you?"))
    assert carries(UNKNOWN_ANSWER, UNKNOWN_KEYS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({}, "id must be a non-empty text"),
        ({"id": "x", "answer": 3}, "answer must be a non-empty text"),
        ({"id": "x", "answer": "a", "keys": []}, "keys must be a non-empty list"),
        (
            {"id": "x", "answer": "a", "keys": ["a"], "questions": ["q"]},
            "keys must be a list of lists of text",
        ),
        ({"id": "x", "answer": "a", "keys": [["a"]], "questions": [""]}, "questions must be a list of text"),
        ({"id": "x", "answer": "a", "keys": [["b"]], "questions": ["q"]}, "does not carry its own keys"),
        ({"id": "port", "answer": "a", "keys": [["a"]], "questions": ["q"]}, "id 'port' is used twice"),
    ],
)
def test_a_bad_fact_is_named(tmp_path: Path, line: dict[str, object], message: str) -> None:
    folder = write_data(tmp_path) / "facts"
    (folder / "two.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match=f"two.jsonl:1: .*{message}"):
        read_facts(folder)


def test_further_phrasings_join_their_facts(tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"id": "port", "questions": ["listening where?"]}\n')
    token, port = add_phrasings(FACTS, [tmp_path])
    assert (token, port.questions) == (FACTS[0], (*FACTS[1].questions, "listening where?"))
    assert add_phrasings(FACTS, [tmp_path / "absent"]) == FACTS


def test_the_command_takes_further_phrasings_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "out.jsonl"
    (data / "phrasings").mkdir()
    (data / "phrasings" / "a.jsonl").write_text(
        '{"id": "port", "questions": ["listening where?"]}\n'
        '{"id": "unknown", "questions": ["who sang it?"]}\n'
    )
    follow_up = [{"role": "user", "content": "and the port?"}, {"role": "assistant", "content": "8000"}]
    (data / "phrasings" / "dialogues.jsonl").write_text(json.dumps({"messages": follow_up}) + "\n")
    for flags, count in (([], 0), (["--also", "phrasings"], 1)):
        assert main([str(out), "--data", str(data), "--copies", "1", "--dialogue-copies", "3", *flags]) == 0
        assert out.read_text().count("listening where?") == count
        assert out.read_text().count("who sang it?") == 2 * count, "--unknown-copies"
        assert out.read_text().count("and the port?") == 3 * count
    assert main([str(out), "--data", str(data), "--also", "phrasings", "wordngs"]) == 2
    assert "--also wordngs: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "starboard", "questions": ["x"]}', "no fact has the id 'starboard'"),
        ('{"id": "port", "questions": "x"}', "questions must be a list of text"),
        ('{"id": "port", "questions": [""]}', "questions must be a list of text"),
    ],
)
def test_bad_phrasings_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "more.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=f"more.jsonl:1: {message}"):
        add_phrasings(FACTS, [tmp_path])


def test_an_empty_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "out.jsonl"), "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
