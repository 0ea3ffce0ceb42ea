"""The score counts what it says it counts, the baseline is a fair one, and the command says both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm.chat.template import Message
from llm.checkpoint import save_folder
from llm.config import COURSE_DEFAULTS
from llm.errors import DataError
from llm.eval.__main__ import main
from llm.eval.cases import Case, grade, names_facts, read_cases
from llm.eval.retrieval import Retrieval, words
from llm.tokenizer import ByteTokenizer
from llm.train.facts import UNKNOWN, UNKNOWN_ANSWER, UNKNOWN_KEYS, Fact
from tests.fakes import tiny_model

TOKEN = Fact(
    "token", "A token is a piece of text.", (("piece of text",),), ("what is a token?", "define token")
)
PORT = Fact("port", "The port is 8000.", (("port",), ("8000", "eight")), ("which port is it?", "what port"))
OUTSIDE = Fact(UNKNOWN, UNKNOWN_ANSWER, UNKNOWN_KEYS, ("who won the match?", "what is a volcano?"))
FACTS = {fact.id: fact for fact in (TOKEN, PORT, OUTSIDE)}


def ask(question: str) -> list[Message]:
    return [Message("user", question)]


def case(question: str, fact: str) -> Case:
    return Case(tuple(ask(question)), FACTS[fact].keys, FACTS[fact].answer, fact)


def test_score_counts_the_parts_and_keeps_the_misses() -> None:
    said = {
        "a": "A PIECE OF TEXT, yes",
        "b": "some text",
        "c": "port eight thousand",
        "d": "I don't know.",
        "e": "42",
    }
    cases = [
        case("a", "token"),
        case("b", "token"),
        case("c", "port"),
        case("d", UNKNOWN),
        case("e", UNKNOWN),
    ]
    result = grade(cases, list(said.values()))
    assert result.right == (True, False, True, True, False)
    assert (result.in_domain, result.unknown, result.all) == ((2, 3), (1, 2), (3, 5))
    assert result.shares() == {"all": 0.6, "in_domain": 0.6667, "unknown": 0.5}
    assert [(miss.case.question, miss.answer) for miss in result.misses] == [("b", "some text"), ("e", "42")]
    assert grade(cases[:1], ["no"]).shares() == {"all": 0.0, "in_domain": 0.0, "unknown": None}


def test_the_baseline_finds_the_nearest_question() -> None:
    retrieve = Retrieval([TOKEN, PORT, OUTSIDE], UNKNOWN_ANSWER)
    assert retrieve(ask("TOKEN: please define!")) == TOKEN.answer
    assert retrieve(ask("the port, which one")) == PORT.answer
    assert retrieve(ask("a volcano")) == UNKNOWN_ANSWER
    assert retrieve(ask("zzz")) == UNKNOWN_ANSWER, "no known word"
    for fact in FACTS.values():
        assert all(retrieve(ask(question)) == fact.answer for question in fact.questions)


def test_the_baseline_weighs_rare_words_more() -> None:
    common = Fact("common", "common", (("c",),), ("how do I do this thing now", "how do I do that"))
    rare = Fact("rare", "rare", (("r",),), ("stream",))
    others = [Fact(str(n), "other", (("o",),), (f"how do I do x{n}",)) for n in range(10)]
    retrieve = Retrieval([common, rare, *others], "none")
    assert retrieve(ask("how do I stream")) == "rare"


def test_the_baseline_looks_at_the_last_message_only() -> None:
    retrieve = Retrieval([TOKEN, PORT], UNKNOWN_ANSWER)
    messages = [Message("user", "define token"), Message("assistant", "…"), Message("user", "which port?")]
    assert retrieve(messages) == PORT.answer


def test_words_are_lower_case_runs_of_letters_and_digits() -> None:
    assert words("What's top_k=50, é?") == ["what", "s", "top_k", "50", "é"]


def write_data(folder: Path) -> list[str]:
    """Facts, refusals and a test set; the flags that name them."""
    (folder / "facts").mkdir()
    lines = [
        {"id": f.id, "answer": f.answer, "keys": [list(g) for g in f.keys], "questions": list(f.questions)}
        for f in (TOKEN, PORT)
    ]
    (folder / "facts" / "f.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "unknown.jsonl").write_text(
        "".join(json.dumps({"question": q}) + "\n" for q in OUTSIDE.questions)
    )
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    tests = [
        {"question": "define a token", "fact": "token"},
        {"messages": [*history, {"role": "user", "content": "which port"}], "fact": "port"},
        {"question": "who won", "fact": UNKNOWN},
        {"question": "volcano port", "fact": UNKNOWN},
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in tests))
    names = {"data": "test.jsonl", "facts": "facts", "unknown": "unknown.jsonl", "phrasings": "none"}
    return [text for flag, name in names.items() for text in (f"--{flag}", str(folder / name))]


@pytest.mark.parametrize("extra", [[], ["--sampled"]])
def test_the_command_ends_with_a_line_of_json(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], extra: list[str]
) -> None:
    assert main(["--checkpoint", str(tiny_folder), *write_data(tmp_path), "--verbose", *extra]) == 0
    lines = capsys.readouterr().out.splitlines()
    summary = json.loads(lines[-1])
    assert summary["questions"] == 4 and summary["sampled"] is bool(extra)
    assert summary["model"] == {"all": 0.0, "in_domain": 0.0, "unknown": 0.0}
    assert summary["baseline"]["in_domain"] == 1.0
    assert sum(line.startswith("[") for line in lines) == 4 * (3 if extra else 1), (
        "an untrained model misses all"
    )
    assert lines[-2].startswith("retrieval baseline")


def test_a_trained_answer_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder whose model always says one thing scores where that thing is right."""
    import torch

    model = tiny_model(num_positions=256)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.norm.bias.fill_(1.0)
        model.tokens.weight[ord("8")] = 1.0
    save_folder(tmp_path / "eights", model, ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "#")
    flags = write_data(tmp_path)
    (tmp_path / "facts" / "g.jsonl").write_text(
        '{"id": "8", "answer": "8", "keys": [["888"]], "questions": ["q"]}\n'
    )
    (tmp_path / "test.jsonl").write_text(
        '{"question": "q", "fact": "8"}\n{"question": "r", "fact": "token"}\n'
    )
    flags[1] = str(tmp_path / "test.jsonl")
    keyless = json.loads((tmp_path / "facts" / "g.jsonl").read_text()) | {"answer": "888"}
    (tmp_path / "facts" / "g.jsonl").write_text(json.dumps(keyless) + "\n")
    assert main(["--checkpoint", str(tmp_path / "eights"), *flags]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["model"]["in_domain"] == 0.5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "q", "fact": "none"}', "fact is 'none', which no file of facts has"),
        ('{"question": "q"}', "fact is None"),
        ('{"fact": "token"}', "messages must be a non-empty list"),
        ('{"question": " ", "fact": "token"}', r"content must be non-empty text"),
        (
            '{"messages": [{"role": "assistant", "content": "a"}], "fact": "token"}',
            "last message must be the user's",
        ),
        ("", "no test questions"),
        ('{"question": "q", "expect": []}', "expect must be a list of lists of text"),
        ('{"question": "q", "expect": ["a"]}', "expect must be"),
        ('{"question": "q", "expect": [[]]}', "expect must be"),
        ('{"question": "q", "expect": [["a"], [1]]}', "expect must be"),
        ('{"question": "q", "expect": [[" "]]}', "expect must be"),
    ],
)
def test_a_bad_test_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        read_cases(path, FACTS)


def test_a_question_may_bring_what_it_expects(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    turns = [{"role": "user", "content": "And Italy's?"}]
    lines = [
        {"question": "Capital of France?", "expect": [["Paris"], ["Seine", "river"]]},
        {"messages": turns, "expect": [["Rome", "Roma"]]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert not names_facts(path)
    cases = read_cases(path, {})
    assert cases[0].keys == (("paris",), ("seine", "river")) and cases[0].expected == "Paris; Seine or river"
    assert grade(cases, ["PARIS, on the Seine", "Roma"]).right == (True, True)
    assert grade(cases, ["Paris", "Milan"]).in_domain == (0, 2)


def test_questions_of_ones_own_need_no_facts(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"question": "q", "expect": [["never said"]]}\n')
    flags = ["--checkpoint", str(tiny_folder), "--data", str(path), "--facts", str(tmp_path / "none")]
    assert main([*flags, "--max-tokens", "4"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["model"]["in_domain"] == 0.0 and summary["baseline"] is None


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--max-tokens", "0"], "--max-tokens"),
        (["--threads", "0"], "--threads"),
        (["--report", "r.md"], "--against"),
        (["--against", "x", "--report", "r.txt"], ".md or .html"),
        (["--score", "none.jsonl"], "none.jsonl"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_what_cannot_be_is_one_line(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], named: str
) -> None:
    assert main(["--checkpoint", str(tiny_folder), *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error


def test_a_missing_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(tmp_path / "none"), *write_data(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
