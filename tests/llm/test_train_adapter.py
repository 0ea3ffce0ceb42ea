"""From conversations to an adapter that is served on its base, or merged into it: the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llm.adapt.base import open_for
from llm.adapt.lora import attach
from llm.adapt.merge import main as merge_main
from llm.adapt.peft import CONFIG, WEIGHTS
from llm.chat.template import Message, encode_prompt
from llm.checkpoint import load_model, open_checkpoint, prove_prompts
from llm.config import SamplingParams
from llm.errors import CheckpointError
from llm.generate import generate_cached
from llm.model import Decoder
from llm.train.report import read_log
from llm.train.sft import main
from tests.llm.test_train_sft import PAIRS, RUN, write_chats

CPU = torch.device("cpu")
LEARN = [*RUN, "--lora-rank", "8", "--lora-alpha", "32", "--lr", "0.01"]


def reply(folder: Path, question: str, adapter: Path | None = None) -> str:
    checkpoint = open_checkpoint(folder)
    model = load_model(checkpoint, CPU, torch.float32)
    if adapter is not None:
        attach(model, open_for(checkpoint, adapter)[0])
    return say(model, encode_prompt(checkpoint.tokenizer, checkpoint.template, [Message("user", question)]))


def say(model: Decoder, prompt: list[int]) -> str:
    ids, _ = generate_cached(model, prompt, SamplingParams(max_tokens=8, temperature=0.0))
    return bytes(i for i in ids if i < 256).decode(errors="replace").split("\n")[0].strip()


def test_an_adapter_learns_what_its_base_does_not_know(tmp_path: Path, tiny_folder: Path) -> None:
    before = (tiny_folder / "model.safetensors").read_bytes()
    out, data = tmp_path / "mine", write_chats(tmp_path / "c.jsonl")
    assert (
        main(["--data", data, "--init", str(tiny_folder), "--out", str(out), *LEARN, "--steps", "150"]) == 0
    )
    assert (tiny_folder / "model.safetensors").read_bytes() == before
    assert {"README.md", CONFIG, WEIGHTS, "samples.jsonl"} <= {path.name for path in out.iterdir()}
    config = json.loads((out / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (8, 32, "tiny")
    state = torch.load(tmp_path / "mine.run" / "training.pt", weights_only=True)
    assert all(".a." in name or ".b." in name for name in state["model"]), "the base is not saved again"
    assert {question: reply(tiny_folder, question, out) for question in PAIRS} == PAIRS
    assert {question: reply(tiny_folder, question) for question in PAIRS} != PAIRS

    merged = tmp_path / "merged"
    assert merge_main([str(tiny_folder), str(out), "--out", str(merged), "--dtype", "float32"]) == 0
    assert prove_prompts(open_checkpoint(merged)) == len(PAIRS)
    assert {question: reply(merged, question) for question in PAIRS} == PAIRS


def test_a_resumed_adapter_is_the_same(tmp_path: Path, tiny_folder: Path) -> None:
    """While the learning rate rises, 6 steps to half the height are the first 6 of 12 to the whole."""
    data = write_chats(tmp_path / "c.jsonl")
    begin = ["--data", data, "--init", str(tiny_folder), *RUN, "--lora-rank", "2", "--lora-targets", "c_attn"]
    high = ["--lr", "0.001", "--warmup", "12", "--steps", "12"]
    half = ["--lr", "0.0005", "--warmup", "6", "--steps", "6"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out, flags in ((whole, high), (parts, half), (parts, [*high, "--resume"])):
        assert main([*begin, "--out", str(out), *flags]) == 0
    assert [row["step"] for row in read_log(tmp_path / "parts.run" / "log.jsonl")] == [6, 12]
    one, two = (load_file(out / WEIGHTS) for out in (whole, parts))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_is_not_resumed_with_another_adapter(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = ["--data", write_chats(tmp_path / "c.jsonl"), "--init", str(tiny_folder), *RUN, "--steps", "1"]
    begin += ["--out", str(tmp_path / "x"), "--lora-rank", "2"]
    assert main([*begin, "--lora-alpha", "2"]) == 0
    assert main([*begin, "--lora-alpha", "4", "--resume"]) == 2
    assert "cannot resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lora-rank", "0"], "--lora-rank must be from 1 to 4096, got 0"),
        (["--lora-rank", "4", "--lora-alpha", "0"], "--lora-alpha must be above 0"),
        (["--lora-rank", "4", "--lora-targets", "nothing"], "'nothing' names no matrix"),
        (["--lora-alpha", "4"], "--lora-alpha needs --lora-rank"),
        (["--lora-targets", "qkv"], "--lora-targets needs --lora-rank"),
    ],
)
def test_flags_that_cannot_be_are_refused(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    data = write_chats(tmp_path / "c.jsonl")
    assert main(["--data", data, "--init", str(tiny_folder), "--out", str(tmp_path / "x"), *RUN, *flags]) == 2
    assert words in capsys.readouterr().err


def test_an_adapter_needs_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_chats(tmp_path / "c.jsonl")
    assert main(["--data", data, "--out", str(tmp_path / "x"), *RUN, "--lora-rank", "4"]) == 2
    assert "--init" in capsys.readouterr().err


def test_another_base_is_noticed(tmp_path: Path, tiny_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    begin = ["--data", write_chats(tmp_path / "c.jsonl"), "--init", str(tiny_folder), *RUN, "--steps", "1"]
    assert main([*begin, "--out", str(tmp_path / "x"), "--lora-rank", "2"]) == 0
    open_for(open_checkpoint(tiny_folder), tmp_path / "x")
    assert not caplog.records
    other = tmp_path / "other"
    assert merge_main([str(tiny_folder), str(tmp_path / "x"), "--out", str(other)]) == 0
    open_for(open_checkpoint(other), tmp_path / "x")
    assert "was trained on tiny" in caplog.text


def test_another_template_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    """The conversations it was trained on prove the prompt, as a checkpoint's do."""
    begin = ["--data", write_chats(tmp_path / "c.jsonl"), "--init", str(tiny_folder), *RUN, "--steps", "1"]
    assert main([*begin, "--out", str(tmp_path / "x"), "--lora-rank", "2"]) == 0
    file = tmp_path / "x" / "samples.jsonl"
    file.write_text(file.read_text().replace('"content": "a?"', '"content": "b?"'))
    with pytest.raises(CheckpointError):
        open_for(open_checkpoint(tiny_folder), tmp_path / "x")
