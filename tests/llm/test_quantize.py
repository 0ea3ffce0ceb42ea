"""`causerie quantize`: a folder in groups, served as stored, what the native runner would have made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.adapt.quant import QuantTensor, quantize
from llm.adapt.quantize import main
from llm.chat.template import Message, PlainTemplate
from llm.checkpoint import Checkpoint, Sample, load_model, open_checkpoint, prove_prompts, save_folder
from llm.checkpoint.inspect import inspect
from llm.config import COURSE_DEFAULTS, GenerationDefaults, ModelConfig
from llm.errors import CheckpointError
from llm.kv.concat import NoCache
from llm.model import Decoder
from llm.quality import main as quality
from llm.runner.native.weights import ModelWeights
from llm.tokenizer import ByteTokenizer
from llm.train.data import encode_chat
from tests.checkpoint_writers import LLAMA, random_weights, write_gguf
from tests.fakes import tiny_model

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
LLAMA_UNTIED = replace(LLAMA, tied_head=False)


def save(folder: Path, config: ModelConfig, dtype: torch.dtype = torch.float32) -> Path:
    model = Decoder(config)
    model.load_state_dict(random_weights(config))
    save_folder(folder, model, ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "#", dtype=dtype)
    return folder


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return save(tmp_path / "original", LLAMA_UNTIED)


def made(original: Path, *flags: str) -> Checkpoint:
    out = original.with_name("small")
    assert main([str(original), "--out", str(out), *flags]) == 0
    return open_checkpoint(out)


def formats(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        name: weight.format if isinstance(weight, QuantTensor) else str(weight.dtype).removeprefix("torch.")
        for name, weight in checkpoint.weights()
    }


def floats(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return dict(load_model(checkpoint, CPU, torch.float32).named_parameters())


@pytest.mark.parametrize(("format", "blocks"), [("int8", "q8_0"), ("int4", "q4_1")])
def test_it_is_served_as_the_original_is_in_that_format(original: Path, format: Any, blocks: str) -> None:
    """To the bit: the arrays that the native kernel reads, packed from either."""
    before, small = open_checkpoint(original), made(original, "--format", format)
    assert (small.config, small.defaults) == (before.config, before.defaults)
    found = formats(small)
    assert {found.pop("tokens.weight"), found.pop("head.weight")} == {"q8_0"}
    assert {f for name, f in found.items() if "norm" in name} == {"float32"}
    assert {f for name, f in found.items() if "norm" not in name} == {blocks}
    served, expected = (
        ModelWeights(c.config, c.weights(), q) for c, q in ((small, "auto"), (before, format))
    )
    assert served.formats == expected.formats
    for name, packed in expected._packed.items():
        assert (served._packed[name].panels == packed.panels).all(), name
    for name, array in expected._floats.items():
        assert (served._floats[name] == array).all(), name


def test_the_eager_runner_reads_the_same_weights(original: Path) -> None:
    small = made(original, "--format", "int4", "--rounding", "nearest")
    expected = floats(open_checkpoint(original))
    model = load_model(small, CPU, torch.float32)
    for name, parameter in model.named_parameters():
        weight = expected[name]
        if weight.ndim == 2:
            table = name in ("tokens.weight", "head.weight")
            weight = quantize(weight, "q8_0" if table else "q4_1", "nearest").dequantize()
        assert torch.equal(parameter, weight), name


def test_nearest_takes_the_ends_and_fitted_the_least_error(original: Path) -> None:
    name, before = "blocks.0.ffn.up.weight", floats(open_checkpoint(original))
    nearest, fitted = (
        floats(made(original, "--format", "int4", "--rounding", rounding))[name]
        for rounding in ("nearest", "fitted")
    )
    groups, kept = before[name].view(-1, 32), nearest.view(-1, 32)
    torch.testing.assert_close(kept.amin(1), groups.amin(1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(kept.amax(1), groups.amax(1), rtol=1e-3, atol=1e-3)
    error = [float((weight - before[name]).square().sum()) for weight in (nearest, fitted)]
    assert error[1] < 0.95 * error[0]


def test_it_is_half_and_says_so(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = save(original.with_name("half"), LLAMA_UNTIED, torch.float16)
    small = made(half, "--format", "int8")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (half, small.path)]
    assert sizes[1] < 0.6 * sizes[0]
    out = capsys.readouterr().out
    assert "from        half (folder" in out and "how         int8, rounded to nearest" in out
    assert f"{(half / 'model.safetensors').stat().st_size / 1e6:.1f} MB" in out
    card = (small.path / "README.md").read_text()
    assert card.startswith("# small\n\nhalf with smaller weights") and "--against-checkpoint half" in card
    assert "stored      q8_0 99.7%, float16 0.3%" in inspect(small)


def test_groups_of_a_gguf_stay_as_they_are(tmp_path: Path) -> None:
    """4-bit ones in int4, whatever the rounding; in int8 they become 8."""
    path = tmp_path / "their.gguf"
    write_gguf(path, LLAMA, random_weights(LLAMA), kind=lambda name: "Q8_0" if "token" in name else "Q4_0")
    before = dict(open_checkpoint(path).weights())
    for flags in ([], ["--rounding", "gptq", "--data", str(ROOT / "LICENSE")]):
        small = made(path, "--format", "int4", *flags)
        for name, weight in small.weights():
            if isinstance(weight, QuantTensor):
                assert weight.format == before[name].format
                assert torch.equal(weight.data, before[name].data)
    assert set(formats(made(path, "--format", "int8")).values()) == {"q8_0", "float32"}


def test_rows_that_are_no_groups_stay_in_16_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path / "original", replace(LLAMA_UNTIED, ffn_width=100))
    small = made(folder, "--format", "int4")
    assert formats(small)["blocks.1.ffn.down.weight"] == "float16"
    assert formats(small)["blocks.1.ffn.up.weight"] == "q4_1"
    said = "no multiple of 32 inputs, so 16 bits a weight: blocks.0.ffn.down.weight, blocks.1.ffn.down.weight"
    assert said in capsys.readouterr().out
    load_model(small, CPU, torch.float32)
    ModelWeights(small.config, small.weights(), "auto")


def test_gptq_learns_from_text(original: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("one two three. " * 40)
    flags = ["--format", "int4", "--rounding"]
    fitted = floats(made(original, *flags, "fitted"))
    small = made(original, *flags, "gptq", "--data", str(tmp_path / "words.txt"), "--tokens", "300")
    assert "gptq on 300 tokens of words.txt" in (small.path / "README.md").read_text()
    ids = torch.tensor([list(b"two three. one")])
    found = []
    for weights in (floats(open_checkpoint(original)), fitted, floats(small)):
        model = Decoder(small.config)
        model.load_state_dict(weights)
        with torch.inference_mode():
            found.append(model.logits(model(ids, torch.arange(ids.shape[1]), NoCache())))
    errors = [float((logits - found[0]).square().sum()) for logits in found[1:]]
    assert errors[1] < errors[0]


def test_the_samples_teach_and_still_prove(tmp_path: Path) -> None:
    chat, tokenizer = [Message("user", "ab?"), Message("assistant", "cd")], ByteTokenizer()
    example = encode_chat(tokenizer, PlainTemplate("Be brief."), chat)
    sample = Sample(chat, example.ids.tolist(), example.trained.tolist())
    policy = GenerationDefaults(default_system="Be brief.")
    save_folder(tmp_path / "original", tiny_model(), tokenizer, "plain", policy, [sample] * 3, "")
    small = made(tmp_path / "original", "--format", "int4", "--rounding", "gptq", "--tokens", "50")
    assert prove_prompts(small) == 3
    assert "gptq on 50 tokens of the checkpoint's samples" in (small.path / "README.md").read_text()


def test_quality_compares_it_with_its_original(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(original, "--format", "int8")
    flags = ["--positions", "60", "--threads", "1", "--quantization", "none"]
    folders = ["--checkpoint", str(original.with_name("small")), "--against-checkpoint", str(original)]
    assert quality([*folders, *flags]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["checkpoint"], found["against"]) == ("small", "original")
    assert 1e-7 < found["formats"]["none"]["mean_kl"] < 0.01, "the rounding of the weights alone"
    other = original.with_name("other")
    save_folder(other, tiny_model(), ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "#")
    assert quality(["--checkpoint", str(original), "--against-checkpoint", str(other), *flags]) == 0
    short = original.with_name("short")
    save_folder(short, tiny_model(num_positions=8), ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "#")
    assert quality(["--checkpoint", str(original), "--against-checkpoint", str(short), *flags]) == 2
    assert "8 positions, the text has" in capsys.readouterr().err
    causette = str(ROOT / "checkpoints" / "causette")
    assert quality(["--checkpoint", str(original), "--against-checkpoint", causette, *flags]) == 2
    assert "50257 ids, not the 257 of original" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--format", "int8", "--rounding", "gptq"], "--rounding gptq is for --format int4"),
        (["--format", "int4", "--data", "x.txt"], "--data is for --rounding gptq"),
        (["--format", "int4", "--tokens", "0"], "--tokens must be at least 1, got 0"),
        (["--format", "int4", "--rounding", "gptq"], "--rounding gptq needs --data"),
        (["--format", "int4", "--rounding", "gptq", "--data", "none.txt"], "none.txt: cannot read"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    original: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(original), "--out", str(original.with_name("x")), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not original.with_name("x").exists()


def test_the_original_is_not_written_over(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in (original, original.parent):
        assert main([str(original), "--out", str(out), "--format", "int8"]) == 2
        assert "is where the original is" in capsys.readouterr().err
    assert main([str(original) + "x", "--out", "y", "--format", "int8"]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def lying(folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """Change config.json; how the folder is refused."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return refusal(folder)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(open_checkpoint(folder), CPU, torch.float32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"head.weight": "q5_0"}, "head.weight must be q8_0 or q4_0 or q4_1, got 'q5_0'"),
        ({"head.weight": 8}, "head.weight must be a string, got 8"),
        ({"head.weight": "q4_1"}, "head.weight has shape [258, 68], config.json says [258, 40]"),
        ({"head.weight": None}, "head.weight must be a string, got None"),
        ({"norm.weight": "q8_0"}, "norm.weight of shape [64] has no rows of groups of 32"),
        ({"nothing.weight": "q8_0"}, "names nothing.weight, which the network has not"),
    ],
)
def test_formats_that_lie_are_refused(original: Path, entry: dict[str, object], said: str) -> None:
    folder = made(original, "--format", "int8").path
    assert said in lying(folder, lambda config: config["quantization"].update(entry))


def test_groups_that_lie_are_refused(original: Path) -> None:
    folder = made(original, "--format", "int8").path
    tensors = load_file(folder / "model.safetensors")
    damaged = tensors | {"head.weight": tensors["head.weight"].view(torch.int8)}
    save_file(damaged, folder / "model.safetensors")
    assert "head.weight has type I8, groups are stored as U8" in refusal(folder)
    damaged["head.weight"] = tensors["head.weight"].clone()
    damaged["head.weight"][7, :2] = torch.tensor([float("inf")], dtype=torch.float16).view(torch.uint8)
    save_file(damaged, folder / "model.safetensors")
    assert "head.weight holds NaN or infinite" in refusal(folder)
    assert "head.weight has shape [258, 68]" in lying(
        folder, lambda config: config["quantization"].pop("head.weight")
    )
