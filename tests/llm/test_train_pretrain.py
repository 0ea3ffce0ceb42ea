"""From text to a base model that continues it, and on to fine-tuning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llm.chat.template import Message, encode_prompt
from llm.checkpoint import load_model, open_checkpoint
from llm.config import SamplingParams
from llm.generate import generate_cached
from llm.train.pretrain import cut, main, split
from tests.checkpoint_writers import LLAMA, random_weights, write_gguf

SHAPE = ["--tokenizer", "bytes", "--layers", "2", "--heads", "2", "--width", "32", "--positions", "32"]
RUN = ["--device", "cpu", "--batch-size", "8", "--warmup", "5", "--precision", "fp32"]
TEXT = "one two three. " * 80


def test_it_learns_to_continue_text(tmp_path: Path) -> None:
    data, out = tmp_path / "book.txt", tmp_path / "base"
    data.write_text(TEXT)
    learn = ["--steps", "200", "--lr", "0.02", "--validation-share", "0.1"]
    assert main(["--data", str(data), "--out", str(out), *SHAPE, *RUN, *learn]) == 0
    checkpoint = open_checkpoint(out)
    model = load_model(checkpoint, torch.device("cpu"), torch.float32)
    prompt = checkpoint.tokenizer.encode("three. one ")
    ids, _ = generate_cached(model, prompt, SamplingParams(max_tokens=10, temperature=0.0))
    assert checkpoint.tokenizer.decode(ids) == "two three."
    assert checkpoint.samples == []


def test_it_goes_on_from_whatever_can_be_opened(tmp_path: Path) -> None:
    """A GGUF in 8 bits with a template of its own: groups are unpacked, vocabulary and template stay."""
    data, theirs, out = tmp_path / "book.txt", tmp_path / "theirs.gguf", tmp_path / "mine"
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
    fields = {"tokenizer.chat_template": template}
    write_gguf(theirs, LLAMA, random_weights(LLAMA), fields=fields, kind=lambda name: "Q8_0")
    data.write_text(TEXT)
    learn = ["--steps", "1", "--lr", "1e-9", "--init", str(theirs)]
    assert main(["--data", str(data), "--out", str(out), *RUN, *learn]) == 0
    before, after = open_checkpoint(theirs), open_checkpoint(out)
    assert (after.config, after.defaults) == (before.config, before.defaults)
    prompts = [encode_prompt(c.tokenizer, c.template, [Message("user", "hé")]) for c in (before, after)]
    assert prompts[0] == prompts[1] == list("user: hé".encode()) + [257]
    old, new = (load_model(c, torch.device("cpu"), torch.float32) for c in (before, after))
    for name, weight in old.named_parameters():
        torch.testing.assert_close(new.get_parameter(name), weight, rtol=0, atol=1e-3)


def test_split_keeps_the_end_for_validation() -> None:
    ids = np.arange(100, dtype=np.int32)
    learned, held = split(ids, 0.2, window=10)
    assert learned.tolist() == list(range(80)) and held.tolist() == list(range(80, 100))
    assert len(split(ids, 0.05, window=10)[1]) == 0, "less than a window validates nothing"


def test_cut_makes_consecutive_windows() -> None:
    batches = cut(np.arange(35, dtype=np.int32), window=10, batch_size=2)
    rows = sorted(row for batch in batches for row in batch.ids.tolist())
    assert rows == [list(range(start, start + 10)) for start in (0, 10, 20)]
    assert cut(np.arange(10, dtype=np.int32), window=10, batch_size=2) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--window", "0"], "--window must be from 1 to the model's 32 positions, got 0"),
        (["--window", "33"], "--window must be from 1 to the model's 32 positions, got 33"),
        (["--validation-share", "-1"], "--validation-share must be from 0 to below 1, got -1.0"),
        (["--data", "none.txt"], "none.txt: cannot read"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    data = tmp_path / "book.txt"
    data.write_text(TEXT)
    assert (
        main(["--data", str(data), "--out", str(tmp_path / "m"), *SHAPE, *RUN, "--steps", "1", *flags]) == 2
    )
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_too_little_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "short.txt"
    data.write_text("short")
    assert main(["--data", str(data), "--out", str(tmp_path / "m"), *SHAPE, *RUN]) == 2
    assert "6 tokens to learn, a window of 32 needs more" in capsys.readouterr().err
