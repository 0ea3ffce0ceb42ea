"""The committed checkpoint is what its card says: it loads, proves its prompts and knows its subject."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from llm.chat.template import Message
from llm.checkpoint import Checkpoint, open_checkpoint, prove_prompts
from llm.eval.answers import answer_all, running
from llm.load import load_text_model
from llm.train.data import read_jsonl
from llm.train.facts import UNKNOWN_ANSWER, carries, read_facts

ROOT = Path(__file__).parent.parent
DATA = ROOT / "checkpoints/data"
HELD_OUT = ("test.jsonl", "foreign.jsonl", "followups.jsonl")
FOLDER = ROOT / "checkpoints/causette"


@pytest.fixture(scope="module")
def causette() -> Checkpoint:
    return open_checkpoint(FOLDER)


def test_it_is_small_and_proves_its_prompts(causette: Checkpoint) -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 32 << 20
    assert prove_prompts(causette) > 0
    assert causette.config.num_positions >= 512


def test_it_answers_from_its_subject_and_admits_the_rest(causette: Checkpoint) -> None:
    questions = ["what is a token?", "how do I stream?", "who won the world cup?"]

    async def ask() -> list[str]:
        model = load_text_model(causette, devices="cpu", quantization="none", max_num_seqs=4)
        async with running(model):
            (answers,) = await answer_all(model, [[Message("user", q)] for q in questions], [None], 60)
        return answers

    token, stream, outside = asyncio.run(ask())
    facts = {fact.id: fact for fact in read_facts(ROOT / "checkpoints/data/facts")}
    assert carries(token, facts["token-definition"].keys)
    assert carries(stream, facts["stream-how"].keys)
    assert outside == UNKNOWN_ANSWER


Asked = tuple[str, str]
"""What was said before a question, and the question's words."""


def _asked(path: Path) -> list[list[Asked]]:
    """The user's turns of every line, each with the reply before it: "and its default?" may follow two."""
    lines: list[list[Asked]] = []
    for _, line in read_jsonl(path):
        alone = line.get("questions", [line["question"]] if "question" in line else [])
        lines += [[("", _words(question))] for question in alone]
        turns = [turn for turn in line.get("messages", []) if turn["role"] != "system"]
        before = ["", *(turn["content"] for turn in turns)]
        lines.append(
            [
                (said, _words(turn["content"]))
                for said, turn in zip(before[:-1], turns, strict=True)
                if turn["role"] == "user"
            ]
        )
    return [line for line in lines if line]


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


@pytest.mark.parametrize("name", HELD_OUT)
def test_no_question_of_a_test_is_in_the_training_data(name: str) -> None:
    trained = [path for path in DATA.rglob("*.jsonl") if path.name not in HELD_OUT]
    taught = {asked for path in trained for line in _asked(path) for asked in line}
    tested = {line[-1] for line in _asked(DATA / name)}  # turns before the last lead up to the question
    assert len(taught) > 10_000 and len(tested) > 70
    assert not tested & taught
