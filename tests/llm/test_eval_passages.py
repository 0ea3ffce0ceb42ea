"""Texts of a file: what counts, windows of what is too long, and a number that one forward pass gives."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch

from llm.errors import DataError
from llm.eval.answers import running
from llm.eval.passages import Passage, encode, measure_all, read_passages
from llm.kv.concat import NoCache
from llm.likelihood import Likelihood
from llm.model import Decoder
from tests.fakes import tiny_model, tiny_text_model

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


def write(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@torch.inference_mode()
def nll(model: Decoder, ids: list[int], counts: list[bool]) -> float:
    """The slow twin."""
    logits = model.logits(model(torch.tensor([ids]), torch.arange(len(ids)), NoCache()))[0]  # (T, V)
    values = torch.log_softmax(logits.double(), dim=1)
    return -sum(float(values[i - 1, ids[i]]) for i in range(1, len(ids)) if counts[i])


def measured(passages: list[Passage], decoder: Decoder) -> list[Likelihood]:
    async def work() -> list[Likelihood]:
        model = tiny_text_model(decoder)
        async with running(model):
            return await measure_all(model, passages)

    return asyncio.run(work())


def test_it_is_what_forward_passes_say(tmp_path: Path) -> None:
    decoder, long = tiny_model(), "many words " * 15
    path = write(tmp_path, {"messages": CHAT}, {"text": "what is a token?"}, {"text": long})
    chat, text, windows = measured(read_passages(path), decoder)
    ids = list(b"User: hi\nAssistant: yes\n")
    assert chat.num_tokens == len(b" yes\n")
    spoken = [i >= len(ids) - chat.num_tokens for i in range(len(ids))]
    assert chat.nll == pytest.approx(nll(decoder, ids, spoken), abs=1e-4)
    ids = list(b"what is a token?")
    assert text.nll == pytest.approx(nll(decoder, ids, [True] * len(ids)), abs=1e-4)
    ids = list(long.encode())
    parts = [ids[start : start + 63] for start in range(0, len(ids) - 1, 62)]  # the context is 64
    expected = sum(nll(decoder, part, [True] * len(part)) for part in parts)
    assert windows.nll == pytest.approx(expected, abs=1e-3)
    assert windows.num_tokens == len(ids) - 1, "each counts once"


def test_functions_of_a_line_stand_in_its_prompt(tmp_path: Path) -> None:
    model = tiny_text_model()
    tool = {"type": "function", "function": {"name": "clock"}}
    plain, told = (
        encode(read_passages(write(tmp_path, line))[0], model)[0]
        for line in ({"messages": CHAT}, {"messages": CHAT, "tools": [tool]})
    )
    assert len(told.ids) > len(plain.ids) and b"clock" in bytes(told.ids)
    assert told.num_scored == plain.num_scored


def test_a_text_of_one_token_has_nothing_to_count() -> None:
    model = tiny_text_model()
    with pytest.raises(DataError, match="f:1: 1 tokens"):
        encode(Passage("f:1", (), "a"), model)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"messages": CHAT[:1]}, "no assistant message"),
        ({"messages": []}, "non-empty list"),
        ({"text": " "}, "expected"),
        ({"text": 1}, "expected"),
        ({"prompt": "a"}, "expected"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(DataError, match=f":1: .*{message}"):
        read_passages(write(tmp_path, line))
    with pytest.raises(DataError, match="nothing to score"):
        read_passages(write(tmp_path))
