"""From a file of conversations to a folder that is served: the whole command, on the byte tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llm.chat.template import Message, encode_prompt
from llm.checkpoint import load_model, open_checkpoint, prove_prompts
from llm.config import COURSE_DEFAULTS, SamplingParams
from llm.generate import generate_cached
from llm.train.report import read_log
from llm.train.sft import main, split

SHAPE = ["--tokenizer", "bytes", "--layers", "2", "--heads", "2", "--width", "32", "--positions", "96"]
RUN = [
    "--device",
    "cpu",
    "--batch-size",
    "4",
    "--warmup",
    "5",
    "--validation-share",
    "0",
    "--precision",
    "fp32",
]
PAIRS = {"a?": "one", "b?": "two", "c?": "three"}


def write_chats(path: Path, pairs: dict[str, str] = PAIRS) -> str:
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs.items()]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return str(path)


def reply(folder: Path, question: str) -> str:
    checkpoint = open_checkpoint(folder)
    model = load_model(checkpoint, torch.device("cpu"), torch.float32)
    prompt = encode_prompt(checkpoint.tokenizer, checkpoint.template, [Message("user", question)])
    ids, _ = generate_cached(model, prompt, SamplingParams(max_tokens=8, temperature=0.0))
    return checkpoint.tokenizer.decode(ids).split("\n")[0].strip()


@pytest.mark.parametrize(
    "extra", [[], ["--share-unseen", "8", "--prompt-loss", "0.1"], ["--negatives", "50"]]
)
def test_it_learns_answers_that_are_served(tmp_path: Path, extra: list[str]) -> None:
    out = tmp_path / "mine"
    learn = ["--steps", "120", "--lr", "0.01", *extra]
    assert main(["--data", write_chats(tmp_path / "c.jsonl"), "--out", str(out), *SHAPE, *RUN, *learn]) == 0
    checkpoint = open_checkpoint(out)
    assert checkpoint.defaults == COURSE_DEFAULTS
    assert prove_prompts(checkpoint) == len(PAIRS)
    assert {question: reply(out, question) for question in PAIRS} == PAIRS
    assert sorted(path.name for path in (tmp_path / "mine.run").iterdir()) == [
        "log.jsonl",
        "loss.png",
        "training.json",
        "training.pt",
    ]


def test_a_resumed_command_saves_the_same_weights(tmp_path: Path) -> None:
    """While the learning rate rises, 6 steps to half the height are the first 6 of 12 to the whole."""
    data = write_chats(tmp_path / "c.jsonl")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    high = ["--lr", "0.001", "--warmup", "12", "--steps", "12"]
    half = ["--lr", "0.0005", "--warmup", "6", "--steps", "6"]
    for out, flags in ((whole, high), (parts, half), (parts, [*high, "--resume"])):
        assert main(["--data", data, "--out", str(out), *SHAPE, *RUN, *flags]) == 0
    assert [row["step"] for row in read_log(tmp_path / "parts.run" / "log.jsonl")] == [6, 12]
    one, two = (dict(open_checkpoint(out).weights()) for out in (whole, parts))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=0)


def test_init_goes_on_from_a_checkpoint_and_keeps_its_shape(tmp_path: Path) -> None:
    data, first, second = write_chats(tmp_path / "c.jsonl"), tmp_path / "first", tmp_path / "second"
    assert main(["--data", data, "--out", str(first), *SHAPE, *RUN, "--steps", "2"]) == 0
    held = write_chats(tmp_path / "h.jsonl", {"a?": "uno"})
    learn = ["--init", str(first), "--steps", "1", "--lr", "1e-9", "--validation", held]
    assert main(["--data", data, "--out", str(second), *RUN, *learn]) == 0
    before, after = open_checkpoint(first), open_checkpoint(second)
    assert after.config == before.config
    for (_, old), (_, new) in zip(before.weights(), after.weights(), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=1e-3)
    assert "validation_loss" in read_log(tmp_path / "second.run" / "log.jsonl")[-1]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--family", "gpt2"], {"activation": "gelu_tanh", "ffn_bias": True, "rope_theta": None}),
        (["--family", "llama", "--kv-heads", "1", "--pack"], {"norm": "rms", "num_kv_heads": 1}),
        (["--family", "qwen2", "--pack", "--window", "64"], {"attention_bias": True, "ffn_width": 96}),
        (
            ["--family", "qwen3", "--untied", "--batch-size", "1", "--accumulate", "3"],
            {"qk_norm": True, "tied_head": False, "rope_theta": 1e6},
        ),
    ],
)
def test_every_family_learns_and_is_served(
    tmp_path: Path, flags: list[str], expected: dict[str, object]
) -> None:
    out, data = tmp_path / "mine", tmp_path / "pairs.jsonl"
    lines = ({"prompt": prompt, "completion": completion} for prompt, completion in PAIRS.items())
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    learn = ["--steps", "25", "--lr", "0.01", "--log-every", "5", *flags]
    assert main(["--data", str(data), "--out", str(out), *SHAPE, *RUN, *learn]) == 0
    config = open_checkpoint(out).config
    assert {name: getattr(config, name) for name in expected} == expected
    losses = [row["loss"] for row in read_log(tmp_path / "mine.run" / "log.jsonl")]
    assert losses[0] > 3 and losses[-1] < 1.5
    assert reply(out, "a?")


def test_like_takes_shape_and_tokenizer_and_no_weights(tmp_path: Path) -> None:
    data, first, second = write_chats(tmp_path / "c.jsonl"), tmp_path / "first", tmp_path / "second"
    llama = ["--family", "llama", "--steps", "1"]
    assert main(["--data", data, "--out", str(first), *SHAPE, *RUN, *llama]) == 0
    like = ["--like", str(first), "--steps", "1", "--seed", "2"]
    assert main(["--data", data, "--out", str(second), *RUN, *like]) == 0
    one, two = open_checkpoint(first), open_checkpoint(second)
    assert one.config == two.config
    assert not torch.allclose(dict(one.weights())["tokens.weight"], dict(two.weights())["tokens.weight"])


def test_the_saved_configuration_runs_again(tmp_path: Path) -> None:
    data, first, again = write_chats(tmp_path / "c.jsonl"), tmp_path / "first", tmp_path / "again"
    held = ["--validation-share", "0.4", "--validate-every", "2", "--epochs", "9", "--pack"]
    assert main(["--data", data, "--out", str(first), *SHAPE, *RUN, *held]) == 0
    saved = (first / "training.json").read_text()
    assert json.loads(saved)["steps"] == 9 and json.loads(saved)["keep"] == "best"
    assert (tmp_path / "first.run/training.json").read_text() == saved
    over = ["--out", str(again), "--work", str(tmp_path / "w")]
    assert main(["--config", str(first / "training.json"), *over]) == 0
    for (_, old), (_, new) in zip(
        open_checkpoint(first).weights(), open_checkpoint(again).weights(), strict=True
    ):
        assert torch.equal(old, new)


def test_the_first_example_is_shown_with_what_is_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_chats(tmp_path / "c.jsonl", {"a?\x1b[2J": "one"})
    assert main(["--data", data, "--out", str(tmp_path / "m"), *SHAPE, *RUN, "--steps", "1"]) == 0
    shown = capsys.readouterr().out
    assert "\nUser: a??[2J\nAssistant:[[ one\n]]\n" in shown, "nothing of the data steers the terminal"


def test_long_chats_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_chats(tmp_path / "c.jsonl", {**PAIRS, "d?": "x" * 100})
    assert main(["--data", data, "--out", str(tmp_path / "m"), *SHAPE, *RUN, "--steps", "1"]) == 0
    assert "1 of 4 training conversations left out: longer than 96 tokens" in capsys.readouterr().out
    assert len(open_checkpoint(tmp_path / "m").samples) == 3


def test_split_is_seeded_and_leaves_something_to_learn() -> None:
    examples = list(range(10))
    learned, held = split(examples, 0.3, seed=1)  # type: ignore[arg-type]
    assert len(held) == 3 and sorted(learned + held) == examples  # type: ignore[type-var]
    assert split(examples, 0.3, seed=1) == (learned, held)  # type: ignore[arg-type]
    assert split(examples[:1], 0.99, seed=1) == ([0], [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr", "0"], "--lr must be above 0, got 0.0"),
        (["--steps", "0"], "--steps (or --epochs) must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--prompt-loss", "2"], "--prompt-loss must be from 0 to 1, got 2.0"),
        (["--validation-share", "1"], "--validation-share must be from 0 to below 1, got 1.0"),
        (["--max-minutes", "-1"], "--max-minutes must be above 0, got -1.0"),
        (["--negatives", "-1"], "--negatives must be at least 0, got -1"),
        (["--negatives", "5", "--share-unseen", "5"], "--share-unseen is for models from scratch"),
        (["--width", "33"], "width 33 is not a multiple of num_heads 2"),
        (["--device", "tpu"], "--device"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--tokenizer", "none.tiktoken"], "none.tiktoken: cannot read the tokenizer"),
        (["--card", "none.md"], "none.md: cannot read"),
        (["--positions", "8"], "no training conversation fits in 8 tokens"),
        (["--init", "none"], "--layers: --init brings shape and tokenizer, leave it out"),
        (["--like", "none"], "--layers: --like brings shape and tokenizer, leave it out"),
        (["--like", "none", "--init", "none"], "--like: --init brings shape and weights, leave it out"),
        (["--accumulate", "0"], "--accumulate must be at least 1, got 0"),
        (["--log-every", "0"], "--log-every must be at least 1, got 0"),
        (["--patience", "-1"], "--patience must be at least 0, got -1"),
        (["--patience", "2"], "--patience 2 needs validation data, and there is none"),
        (["--window", "32"], "--window 32 is for --pack"),
        (["--pack", "--window", "97"], "--window must be from 2 to the model's 96 positions, got 97"),
        (["--family", "llama", "--heads", "2", "--width", "34"], "even head size, got 17"),
        (["--config", "none.yaml"], "none.yaml: cannot read: No such file or directory"),
        (["--resume"], "training.pt: cannot resume"),
        (["--data", "none.jsonl"], "none.jsonl: cannot read: No such file or directory"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    data, out = write_chats(tmp_path / "c.jsonl"), tmp_path / "m"
    assert main(["--data", data, "--out", str(out), *SHAPE, *RUN, "--steps", "1", *flags]) == 2
    error = capsys.readouterr().err
    assert ": error: " in error and message in error
    assert error.count("\n") == 1
    assert not out.exists()
