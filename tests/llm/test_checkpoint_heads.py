"""The number of heads: told by the loss, else by the weights' sizes, else a guess that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llm.checkpoint import load_model, open_checkpoint, save_state_dict
from llm.checkpoint.pt import heads
from llm.checkpoint.pt.heads import PARAGRAPH, settle_heads, size_evidence
from llm.checkpoint.pt.names import course_name
from llm.checkpoint.pt.shapes import Network, head_counts, read_network
from llm.kv.concat import NoCache
from llm.model import Decoder
from llm.tokenizer import ByteTokenizer
from tests.fakes import tiny_model
from tests.torch_writers import byte_vocabulary

CAUSETTE = Path(__file__).parents[2] / "checkpoints" / "causette"


def state_of(model: Decoder) -> dict[str, Tensor]:
    return {course_name(name): p.detach().clone() for name, p in model.named_parameters()}


def network_of(state: dict[str, Tensor]) -> Network:
    return read_network(Path("model.pt"), state)


def settled(state: dict[str, Tensor]) -> tuple[tuple[int, int], str, list[str]]:
    """(heads, key/value heads), the note about them, and warnings."""
    network, warnings = settle_heads(network_of(state), ByteTokenizer())
    (note,) = (note for note in network.notes if note.startswith("heads:"))
    return (network.config.num_heads, network.config.num_kv_heads), note, warnings


def scaled(model: Decoder, seed: int = 0) -> Decoder:
    """The model with values of another size in each head."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    kv_scales = torch.rand(config.num_kv_heads, generator=generator) + 0.5
    scales = torch.rand(config.num_heads, generator=generator) + 0.5
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight[-config.num_kv_heads * config.head_dim :].mul_(
                kv_scales.repeat_interleave(config.head_dim)[:, None]
            )
            block.attention.out.weight.mul_(scales.repeat_interleave(config.head_dim))
    return model


@pytest.fixture(scope="module")
def reader() -> Decoder:
    """Four heads of 16, taught the paragraph in a few seconds; the usual choice for its width is one head."""
    torch.manual_seed(0)
    model = tiny_model(width=64, ffn_width=128, num_heads=4, num_kv_heads=4, scale=1.0)
    text = torch.tensor(ByteTokenizer().encode(PARAGRAPH))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(120):
        starts = torch.randint(len(text) - 48, (8,))
        batch = torch.stack([text[start : start + 49] for start in starts])
        logits = model.logits(model(batch[:, :-1], torch.arange(48), NoCache()))
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
    return model.requires_grad_(False)


def test_the_lowest_loss_wins_and_the_note_shows_all(reader: Decoder) -> None:
    counts, note, warnings = settled(state_of(reader))
    assert counts == (4, 4) and not warnings
    assert note.startswith("heads: 4 of 16, lowest loss on a paragraph (") and "1 head: " in note
    assert "2 heads: " in note


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_tell_the_same(reader: Decoder, dtype: torch.dtype) -> None:
    assert settled({name: t.to(dtype) for name, t in state_of(reader).items()})[0] == (4, 4)


def test_a_file_is_opened_with_what_was_found_unless_the_operator_says(
    reader: Decoder, tmp_path: Path
) -> None:
    path = byte_vocabulary(tmp_path) / "model.pt"
    save_state_dict(path, reader)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.num_heads == 4 and not checkpoint.warnings
    model = load_model(checkpoint, torch.device("cpu"), torch.float32)
    ids = torch.arange(9)[None]
    expected = reader.logits(reader(ids, torch.arange(9), NoCache()))
    assert torch.equal(model.logits(model(ids, torch.arange(9), NoCache())), expected)
    assert open_checkpoint(path, num_heads=2).config.num_heads == 2


def test_the_default_checkpoint_without_its_configuration(tmp_path: Path) -> None:
    """6 heads of 32, where the usual choice for the width is 3, and too little English for a loss."""
    original = open_checkpoint(CAUSETTE)
    torch.save({course_name(n): t for n, t in original.weights()}, tmp_path / "model_sft.pt")
    checkpoint = open_checkpoint(tmp_path / "model_sft.pt")
    assert checkpoint.config == original.config and not checkpoint.warnings
    (note,) = (note for note in checkpoint.notes if note.startswith("heads:"))
    assert note.startswith("heads: 6 of 32, from the sizes of the values' weights")


@pytest.mark.parametrize(
    ("switches", "counts"),
    [
        ({"width": 128, "num_heads": 8, "num_kv_heads": 8}, (8, 8)),
        ({"width": 128, "num_heads": 2, "num_kv_heads": 2, "num_layers": 4}, (2, 2)),
        ({"width": 192, "num_heads": 12, "num_kv_heads": 12}, (12, 12)),
        ({"width": 512, "num_heads": 16, "num_kv_heads": 8}, (16, 8)),
        ({"width": 512, "num_heads": 8, "num_kv_heads": 4}, (8, 4)),
    ],
)
def test_sizes_that_differ_from_head_to_head_tell(switches: dict[str, Any], counts: tuple[int, int]) -> None:
    found, note, warnings = settled(state_of(scaled(tiny_model(**switches))))
    assert found == counts and not warnings
    assert "sizes of the values' weights" in note


def test_sizes_tell_when_q_k_and_v_are_apart() -> None:
    state = state_of(scaled(tiny_model(width=128, num_heads=8, num_kv_heads=8)))
    for name in [name for name in state if ".qkv." in name]:
        for part, rows in zip("qkv", state.pop(name).split(128), strict=True):
            state[name.replace(".qkv.", f".w{part}.")] = rows
    assert settled(state)[0] == (8, 8)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", [64, 128, 192, 256])
def test_random_weights_tell_nothing(width: int, seed: int) -> None:
    model = tiny_model(seed, width=width, num_heads=1, num_kv_heads=1)
    usual = head_counts(width, 3 * width)[0]
    counts, note, (warning,) = settled(state_of(model))
    assert counts == usual and "neither shapes nor weights tell, nor the losses on a paragraph (" in note
    assert f"the number of heads, {usual[0]}, is a guess" in warning and "--n-head" in warning


def test_weights_without_an_answer_give_the_usual_number() -> None:
    """Not finite, all zero, or of a model whose context is too short for a loss."""
    for value in (torch.nan, torch.inf, 0.0):
        state = {name: torch.full_like(t, value) for name, t in state_of(tiny_model(width=128)).items()}
        assert settled(state)[0] == (4, 4)
    counts, note, warnings = settled(state_of(tiny_model(width=128, num_positions=8)))
    assert counts == (4, 4) and note.endswith("tell, nor a loss") and warnings


def test_a_large_model_is_not_run(reader: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "MAX_WEIGHTS", 1000)
    assert settled(state_of(reader))[1].endswith("nor a loss")


def test_one_candidate_needs_no_evidence() -> None:
    network = network_of(state_of(tiny_model(width=16, num_heads=1, num_kv_heads=1)))
    silent: Any = None  # a tokenizer that is not asked
    assert settle_heads(network, silent) == (network, [])


def test_no_evidence_in_sizes_that_are_alike() -> None:
    network = network_of(state_of(tiny_model(width=128)))
    assert max(size_evidence(network, head_counts(128, 384)).values()) <= 0.0


@pytest.mark.parametrize(
    ("width", "rows", "counts"),
    [
        (128, 384, [(4, 4), (2, 2), (1, 1), (8, 8)]),
        (768, 2304, [(12, 12), (24, 24), (6, 6), (8, 8), (16, 16), (3, 3), (48, 48)]),
        (576, 960, [(9, 3), (18, 6), (6, 2), (12, 4), (36, 12)]),
        (40, 120, []),
        (128, 100, []),
    ],
)
def test_numbers_of_heads_that_fit(width: int, rows: int, counts: list[tuple[int, int]]) -> None:
    assert head_counts(width, rows) == counts


def test_a_half_precision_head_is_never_a_float32_matrix_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the largest matrix by far: a copy of it would be half of what is held while opening."""
    state = {name: tensor.half() for name, tensor in state_of(tiny_model(width=64, num_heads=2)).items()}
    network = network_of(state)
    whole = heads.paragraph_losses(network, ByteTokenizer(), [(1, 1), (2, 2)])
    copied: list[int] = []
    linear = F.linear

    def watched(x: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        copied.append(len(weight))
        return linear(x, weight, *rest)

    monkeypatch.setattr(heads.F, "linear", watched)
    monkeypatch.setattr(heads, "HEAD_ROWS", 50)
    parts = heads.paragraph_losses(network, ByteTokenizer(), [(1, 1), (2, 2)])
    assert parts == pytest.approx(whole)
    assert copied.count(50) >= 2 * (network.config.vocab_size // 50)
    assert network.config.vocab_size not in copied
