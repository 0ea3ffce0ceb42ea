"""Bare state dicts: the course's file gives the course's logits, and a hostile file runs no code."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.checkpoint import load_model, open_checkpoint, save_state_dict, torch_file
from llm.checkpoint.pt.names import course_name
from llm.checkpoint.torch_file import check_state, read_in_turn
from llm.config import COURSE_DEFAULTS
from llm.errors import CheckpointError, ContextLengthExceeded
from llm.kv.concat import NoCache
from llm.load import load_text_model
from llm.model import Decoder
from tests.fakes import tiny_model
from tests.torch_writers import byte_vocabulary, retag

CPU = torch.device("cpu")
IDS = torch.tensor([[1, 2, 3, 250, 0]])


class CourseAttention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.register_buffer("mask", torch.ones(64, 64).tril())

    def forward(self, x: Tensor) -> Tensor:
        rows, count, width = x.shape
        q, k, v = (
            t.view(rows, count, self.num_heads, -1).transpose(1, 2) for t in self.qkv(x).split(width, dim=-1)
        )
        scores = q @ k.transpose(-2, -1) / (width // self.num_heads) ** 0.5
        scores = scores.masked_fill(self.mask[:count, :count] == 0, -torch.inf)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, count, width))


class CourseFeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class CourseBlock(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.ffn = CourseAttention(width, num_heads), CourseFeedForward(width)


class CourseGPT(nn.Module):
    """The course's network written down a second time, independent of ours."""

    def __init__(self, vocab_size: int, width: int = 128, num_layers: int = 4, num_heads: int = 4) -> None:
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(vocab_size, width), nn.Embedding(64, width)
        self.blocks = nn.ModuleList(CourseBlock(width, num_heads) for _ in range(num_layers))
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_emb(ids) + self.pos_emb.weight[: ids.shape[1]]
        for block in self.blocks:
            x = x + block.attn(block.ln1(x))
            x = x + block.ffn.net(block.ln2(x))
        return self.head(self.ln_f(x))


def logits(model: Decoder, ids: Tensor = IDS) -> Tensor:
    return model.logits(model(ids, torch.arange(ids.shape[1]), NoCache()))


def load(path: Path, num_heads: int | None = 2) -> Decoder:
    return load_model(open_checkpoint(path, num_heads=num_heads), CPU, torch.float32)


def refusal(path: Path, num_heads: int | None = 2) -> str:
    """The one line with which a file is refused, at the latest when its weights are read."""
    with pytest.raises(CheckpointError) as caught:
        load(path, num_heads)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a file goes: a vocabulary of 256 bytes lies beside it."""
    return byte_vocabulary(tmp_path) / "model_sft.pt"


def course_state(**overrides: Any) -> dict[str, Tensor]:
    """A tiny model under the course's names."""
    model = tiny_model(**{"tied_head": False} | overrides)
    return {course_name(name): p.detach().clone() for name, p in model.named_parameters()}


def test_the_course_file_exactly(tmp_path: Path) -> None:
    """Vocabulary 50257, 64 positions, 4 layers, 4 heads, width 128, with the shipped tokenizer."""
    torch.manual_seed(0)
    model = CourseGPT(50257).eval()
    torch.save(model.state_dict(), tmp_path / "model_sft.pt")
    checkpoint = open_checkpoint(tmp_path / "model_sft.pt")
    config = checkpoint.config
    assert (config.vocab_size, config.num_positions, config.num_layers) == (50257, 64, 4)
    assert (config.num_heads, config.width, config.ffn_width, config.activation) == (4, 128, 512, "gelu")
    assert not config.attention_bias and not config.tied_head
    assert (checkpoint.name, checkpoint.kind, checkpoint.defaults) == (
        "model_sft",
        "state dict",
        COURSE_DEFAULTS,
    )
    assert checkpoint.template.default_system == COURSE_DEFAULTS.default_system
    assert any(note.startswith("heads: 4 of 32, chosen from width 128: neither") for note in checkpoint.notes)
    ids = torch.tensor([[50256, 11, 220, 257, 11241]])
    ours = logits(load_model(checkpoint, CPU, torch.float32), ids)
    torch.testing.assert_close(ours, model(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_gives_identical_logits(path: Path, tied: bool) -> None:
    model = tiny_model(tied_head=tied, num_kv_heads=1, ffn_bias=True)
    save_state_dict(path, model)
    loaded = load(path)
    assert loaded.config == model.config
    assert torch.equal(logits(loaded), logits(model))
    assert sorted(p.name for p in path.parent.iterdir()) == ["model_sft.pt", "tokenizer.tiktoken"]


def test_our_file_loads_into_the_course(path: Path) -> None:
    model = tiny_model(width=32, ffn_width=128, tied_head=True, ffn_bias=True)
    save_state_dict(path, model)
    course = CourseGPT(257, 32, 2, 2)
    missing, extra = course.load_state_dict(torch.load(path, weights_only=True), strict=False)
    assert all(name.endswith("mask") for name in missing) and not extra
    torch.testing.assert_close(course(IDS), logits(model), rtol=1e-4, atol=1e-4)


def test_what_a_state_dict_cannot_say_is_not_saved(path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot say activation gelu_tanh"):
        save_state_dict(path, tiny_model(activation="gelu_tanh"))
    assert not path.exists()


def test_the_format_before_torch_1_6_loads(path: Path) -> None:
    torch.save(course_state(), path, _use_new_zipfile_serialization=False)
    assert torch.equal(logits(load(path)), logits(tiny_model(tied_head=False)))


@pytest.mark.parametrize(
    ("width", "asked", "heads"), [(128, None, 4), (192, None, 3), (96, None, 3), (128, 8, 8), (48, 3, 3)]
)
def test_heads_are_chosen_or_given(path: Path, width: int, asked: int | None, heads: int) -> None:
    torch.save(course_state(width=width, num_heads=1, num_kv_heads=1), path)
    checkpoint = open_checkpoint(path, num_heads=asked)
    assert checkpoint.config.num_heads == heads
    assert any(note.startswith("heads:") for note in checkpoint.notes) == (asked is None)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:7", "mps"])
def test_a_course_file_from_another_device_serves_its_64_positions(tmp_path: Path, device: str) -> None:
    """Bare, nothing beside it, one flag: it loads here, and what does not fit its context is refused."""
    torch.manual_seed(0)
    model = CourseGPT(50257).eval()
    path = tmp_path / "model_sft.pt"
    torch.save(model.state_dict(), path)
    retag(path, device)
    checkpoint = open_checkpoint(path)
    ids = torch.tensor([[50256, 11, 220]])
    ours = logits(load_model(checkpoint, CPU, torch.float32), ids)
    torch.testing.assert_close(ours, model(ids), rtol=1e-5, atol=1e-5)
    served = load_text_model(checkpoint, devices="cpu")
    assert served.max_model_len == 64 and served.check_room(60, 160) == 4
    with pytest.raises(ContextLengthExceeded, match="maximum context length is 64 tokens") as caught:
        served.check_room(64, None)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("modern", [True, False])
def test_a_mapping_is_let_go_after_a_stretch(
    path: Path, modern: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the pages read do not pile up in memory beside the copies; an old file is read once."""
    monkeypatch.setattr(torch_file, "RENEW_BYTES", 5000)
    state = {str(i): torch.full((1000,), float(i)) for i in range(10)}
    torch.save(state, path, _use_new_zipfile_serialization=modern)
    mapped: list[object] = []

    def arrange(loaded: object) -> Callable[[str], Tensor]:
        mapped.append(loaded)
        return check_state(path, loaded).__getitem__

    found = [(name, tensor.clone()) for name, tensor in read_in_turn(path, state, arrange)]
    assert [name for name, _ in found] == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in found)
    assert len(mapped) == (5 if modern else 1)


def test_a_file_that_changed_since_it_was_opened_is_refused(path: Path) -> None:
    torch.save(course_state(), path)
    checkpoint = open_checkpoint(path, num_heads=2)
    torch.save(course_state(num_layers=1), path)
    with pytest.raises(CheckpointError, match="changed since the checkpoint was opened"):
        load_model(checkpoint, CPU, torch.float32)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read by torch.load"):
        load_model(checkpoint, CPU, torch.float32)


def test_heads_that_do_not_divide_are_refused(path: Path) -> None:
    torch.save(course_state(), path)
    assert refusal(path, 3) == "width 32 is not a multiple of 3 heads"
    torch.save(course_state(width=40), path)
    assert "give the number of heads" in refusal(path, None)


def test_padding_rows_are_noted_and_missing_rows_refused(path: Path) -> None:
    torch.save(course_state(vocab_size=320), path)
    assert (
        "vocabulary: 320 rows, 257 known to the tokenizer, the other 63 are never drawn"
        in open_checkpoint(path, num_heads=2).notes
    )
    torch.save(course_state(vocab_size=256), path)
    assert "has 257 ids, the embedding only 256 rows" in refusal(path)


class Runs:
    """Unpickling this makes a file: the classic."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("modern", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_not_run(path: Path, modern: bool) -> None:
    target = path.parent / "pwned"
    torch.save(course_state() | {"x": Runs(target)}, path, _use_new_zipfile_serialization=modern)
    assert "its pickle asks for posix.mkdir" in refusal(path)
    path.write_bytes(pickle.dumps(Runs(target)))
    assert "its pickle holds something other than tensors" in refusal(path)
    assert not target.exists()


def save(value: object) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path)


def write(data: bytes) -> Callable[[Path], None]:
    def to(path: Path) -> None:
        path.write_bytes(data)

    return to


def rewrite(change: Callable[[bytes], bytes], modern: bool = True) -> Callable[[Path], None]:
    def to(path: Path) -> None:
        torch.save(course_state(), path, _use_new_zipfile_serialization=modern)
        path.write_bytes(change(path.read_bytes()))

    return to


def rezip(path: Path, change: Callable[[bytes], bytes], method: int = zipfile.ZIP_STORED) -> None:
    """A torch file of 300 zeros whose records were changed and packed again."""
    torch.save({"x": torch.zeros(300)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(name, change(data))


THREE_HUNDRED = b"M\x2c\x01"  # as the pickle spells it
LIES = {"60,000": b"M\x60\xea", "268 million": b"J\x00\x00\x00\x10", "-1": b"J\xff\xff\xff\xff"}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("modern", [True, False])
def test_a_storage_that_claims_another_size_is_refused(path: Path, lie: str, modern: bool) -> None:
    if modern:
        rezip(path, lambda data: data.replace(THREE_HUNDRED, LIES[lie]))
    else:
        torch.save({"x": torch.zeros(300)}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes().replace(THREE_HUNDRED, LIES[lie]))
    assert "cannot be read by torch.load" in refusal(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (write(b""), "the file is empty"),
        (write(b"hello"), "not a format we read"),
        (write(b"GGUF\x03\x00\x00\x00"), "too few for a GGUF file"),
        (write(b"\x02\x00\x00\x00\x00\x00\x00\x00{}"), "a safetensors file"),
        (write(b"\x80\x02."), "cannot be read by torch.load"),
        (write(b"PK\x03\x04" + b"\x00" * 64), "truncated or damaged"),
        (rewrite(lambda data: data[: len(data) // 2]), "truncated or damaged"),
        (rewrite(lambda data: data[: len(data) // 2], modern=False), "cannot be read by torch.load"),
        (lambda path: rezip(path, bytes, zipfile.ZIP_DEFLATED), "compressed records"),
        (save([torch.zeros(1)]), "holds a list, not a state dict"),
        (save({}), "missing tok_emb.weight"),
        (save({1: torch.zeros(1)}), "a key that is no name: 1"),
        (save({"epoch": 5}), "epoch is a int, not a tensor"),
        (save({"x": torch.eye(2).to_sparse()}), "x is not a dense tensor"),
        (save({"x": torch.zeros(2, device="meta")}), "x is not a dense tensor"),
        (save(nn.Linear(2, 2)), "its pickle asks for torch.nn.modules.linear.Linear"),
        (save({"tok_emb.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}), "its tensors claim"),
    ],
)
def test_a_file_that_is_no_state_dict_is_refused(path: Path, make: Callable[[Path], None], said: str) -> None:
    make(path)
    assert said in refusal(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("ln_f.weight"), "missing, 1 in all: ln_f.weight"),
        (lambda s: s.pop("tok_emb.weight"), "missing tok_emb.weight"),
        (lambda s: s.pop("pos_emb.weight"), "only learned positions are supported"),
        (lambda s: s.pop("blocks.0.attn.qkv.weight"), "missing blocks.0.attn.qkv.weight"),
        (lambda s: [s.pop(k) for k in list(s) if "blocks.0." in k], "missing blocks.0.attn.qkv.weight"),
        (
            lambda s: s.update({"blocks.9.ln1.weight": torch.zeros(32)}),
            "the last block is 9, but only 3 are there",
        ),
        (lambda s: s.update({"head.bias": torch.zeros(257)}), "names not recognised, 1 in all: head.bias"),
        (lambda s: s.update({"x\ny": torch.zeros(1)}), r"'x\ny'"),
        (lambda s: s.update({"blocks.0.mlp.gate.weight": torch.zeros(1)}), "blocks.0.mlp.gate.weight"),
        (lambda s: s.update({"wte.weight": torch.zeros(257, 32)}), "tok_emb.weight and wte.weight are both"),
        (
            lambda s: s.update({"blocks.1.attn.wk.weight": torch.zeros(32, 32)}),
            "are both blocks.1.attention.qkv",
        ),
        (lambda s: s.update({"ln_f.weight": torch.zeros(31)}), "ln_f.weight has shape [31], expected [32]"),
        (lambda s: s.update({"ln_f.weight": torch.zeros(32, dtype=torch.int8)}), "has type torch.int8"),
        (
            lambda s: s.update({"ln_f.weight": torch.zeros(32, dtype=torch.complex64)}),
            "has type torch.complex64",
        ),
        (lambda s: s.update({"ln_f.weight": torch.full((32,), torch.nan)}), "norm.weight holds NaN"),
        (lambda s: s.update({"tok_emb.weight": torch.zeros(257)}), "expected two dimensions"),
        (lambda s: s.update({"tok_emb.weight": torch.zeros(257, 0)}), "expected two dimensions"),
        (lambda s: s.update({"blocks.0.attn.qkv.weight": torch.zeros(80, 32)}), "qkv has 80 rows"),
        (lambda s: s.update({"head.weight": torch.zeros(256, 32)}), "head.weight has shape [256, 32]"),
    ],
)
def test_tensors_that_make_no_gpt_are_refused(
    path: Path, change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    state = course_state()
    change(state)
    torch.save(state, path)
    assert said in refusal(path)


def test_a_weight_too_large_for_the_type_is_refused(path: Path) -> None:
    state = course_state()
    state["ln_f.weight"] = torch.full((32,), 1e6)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="norm.weight holds weights too large for torch.float16"):
        load_model(open_checkpoint(path, num_heads=2), CPU, torch.float16)


def conv1d_logits(state: dict[str, Tensor], num_heads: int) -> Tensor:
    """GPT-2 as Hugging Face computes it: Conv1D is x @ weight + bias, GELU by tanh, head tied."""
    x = state["wte.weight"][IDS] + state["wpe.weight"][: IDS.shape[1]]
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])  # noqa: E731
    conv = lambda x, name: x @ state[f"{name}.weight"] + state[f"{name}.bias"]  # noqa: E731
    for layer in range(2):
        block = f"h.{layer}"
        q, k, v = (
            t.unflatten(-1, (num_heads, -1)).transpose(1, 2)
            for t in conv(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        x = x + conv(attended, f"{block}.attn.c_proj")
        hidden = F.gelu(conv(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"), approximate="tanh")
        x = x + conv(hidden, f"{block}.mlp.c_proj")
    return norm(x, "ln_f") @ state["wte.weight"].T


def test_hugging_faces_gpt2_names_and_layout(path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"wte.weight": (257, 32), "wpe.weight": (64, 32), "ln_f.weight": (32,), "ln_f.bias": (32,)}
    for layer in range(2):
        for name, width_in, width_out in [
            ("attn.c_attn", 32, 96),
            ("attn.c_proj", 32, 32),
            ("mlp.c_fc", 32, 128),
            ("mlp.c_proj", 128, 32),
        ]:
            shapes |= {
                f"h.{layer}.{name}.weight": (width_in, width_out),
                f"h.{layer}.{name}.bias": (width_out,),
            }
        shapes |= {
            f"h.{layer}.{norm}.{kind}": (32,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")
        }
    state = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    mask = torch.ones(64, 64, dtype=torch.bool).tril().view(1, 1, 64, 64)
    buffers = {"h.0.attn.bias": mask, "h.1.attn.masked_bias": torch.tensor(-1e4)}
    torch.save({f"transformer.{name}": tensor for name, tensor in (state | buffers).items()}, path)
    loaded = load(path)
    assert loaded.config.activation == "gelu_tanh" and loaded.config.tied_head
    torch.testing.assert_close(logits(loaded), conv1d_logits(state, 2), rtol=1e-4, atol=1e-4)
