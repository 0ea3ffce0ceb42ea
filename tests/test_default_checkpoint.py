"""The committed checkpoint is what its card says: it loads, proves its prompts and knows its subject."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llm.chat.template import Message
from llm.checkpoint import Checkpoint, load_model, open_checkpoint, prove_prompts
from llm.eval import model_answers
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
    model = load_model(causette, torch.device("cpu"), torch.float32)
    answer = model_answers(model, causette.tokenizer, causette.template, causette.defaults, None)
    facts = {fact.id: fact for fact in read_facts(ROOT / "checkpoints/data/facts")}
    assert carries(answer([Message("user", "what is a token?")]), facts["token-definition"].keys)
    assert carries(answer([Message("user", "how do I stream?")]), facts["stream-how"].keys)
    assert answer([Message("user", "who won the world cup?")]) == UNKNOWN_ANSWER
