"""The committed checkpoint is what its card says: it loads, proves its prompts and knows its subject."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llm.chat.template import Message
from llm.checkpoint import Checkpoint, open_checkpoint, prove_prompts
from llm.eval.answers import answer_all, running
from llm.load import load_text_model
from llm.train.facts import UNKNOWN_ANSWER, carries, read_facts

ROOT = Path(__file__).parent.parent
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
