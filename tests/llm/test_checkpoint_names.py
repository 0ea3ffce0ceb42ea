"""Every way of naming the same weights gives the same logits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llm.checkpoint import load_model, open_checkpoint
from llm.checkpoint.pt.names import Target, course_name, is_buffer, recognise
from llm.checkpoint.record import expected_shapes
from llm.errors import CheckpointError
from llm.kv.concat import NoCache
from llm.model import Decoder
from tests.fakes import tiny_model
from tests.torch_writers import byte_vocabulary

State = dict[str, Tensor]
FULL = {
    "tied_head": False,
    "attention_bias": True,
    "attention_out_bias": True,
    "ffn_bias": True,
}


def logits(model: Decoder) -> Tensor:
    return model.logits(model(torch.tensor([[1, 2, 3, 250, 0]]), torch.arange(5), NoCache()))


def rename(state: State, *rules: tuple[str, str]) -> State:
    """Apply regex rules to every name, each of which must change something."""
    for pattern, new in rules:
        assert any(re.search(pattern, name) for name in state), pattern
        state = {re.sub(pattern, new, name): tensor for name, tensor in state.items()}
    return state


def split_qkv(state: State, q: str, k: str, v: str) -> State:
    """Fused qkv → three tensors."""
    result: State = {}
    for name, tensor in state.items():
        if ".qkv." in name:
            for word, part in zip((q, k, v), tensor.chunk(3), strict=True):
                result[name.replace(".qkv.", f".{word}.")] = part.clone()
        else:
            result[name] = tensor
    return result


def variants(state: State) -> dict[str, State]:
    """The course's state dict under other people's names."""
    gpt2 = (
        ("tok_emb", "wte"),
        ("pos_emb", "wpe"),
        ("blocks", "h"),
        (r"\.ln(\d)", r".ln_\1"),
        ("head", "lm_head"),
    )
    nanogpt = (
        *gpt2,
        (r"\.qkv", ".c_attn"),
        (r"\.proj", ".c_proj"),
        ("ffn.net.0", "mlp.c_fc"),
        ("ffn.net.2", "mlp.c_proj"),
    )
    llama = (
        ("tok_emb", "model.embed_tokens"),
        ("pos_emb", "model.position_embeddings"),
        ("blocks", "model.layers"),
        ("attn.proj", "self_attn.o_proj"),
        (r"attn\.([qkv]_)", r"self_attn.\1"),
        ("ln1", "input_layernorm"),
        ("ln2", "post_attention_layernorm"),
        ("ffn.net.0", "mlp.fc1"),
        ("ffn.net.2", "mlp.fc2"),
        ("ln_f", "model.norm"),
        ("head", "lm_head"),
    )
    lecture = (
        ("tok_emb", "token_embedding_table"),
        ("pos_emb", "position_embedding_table"),
        (r"attn\.", "sa."),
        (r"ffn\.", "ffwd."),
        ("head", "lm_head"),
    )
    torch_mha = (
        (r"attn\.qkv\.(\w+)", r"attn.in_proj_\1"),
        (r"attn\.proj", "attn.out_proj"),
        (r"ffn\.net", "ff"),
        ("head", "output"),
        ("tok_emb", "tok_embeddings"),
        ("blocks", "layers"),
        ("ln1", "attention_norm"),
        ("ln2", "ffn_norm"),
        ("ln_f", "norm"),
    )
    wide = (("attn", "attention"), (r"ffn\.net\.0", "feed_forward.up"), (r"ffn\.net\.2", "feed_forward.down"))
    positions = state["pos_emb.weight"]
    return {
        "course": state,
        "compiled": rename(state, ("^", "_orig_mod.")),
        "compiled blocks": rename(state, (r"^(blocks\.\d+)\.", r"\1._orig_mod.")),
        "data parallel": rename(state, ("^", "module._orig_mod.")),
        "nanoGPT": rename(state, *nanogpt),
        "nanoGPT in transformer.": rename(state, *nanogpt, ("^", "model.transformer.")),
        "Lightning": rename(state, ("^", "net.")),
        "llama's words": rename(split_qkv(state, "q_proj", "k_proj", "v_proj"), *llama),
        "lecture": rename(split_qkv(state, "query", "key", "value"), *lecture),
        "wq wk wv": rename(split_qkv(state, "wq", "wk", "wv"), ("attn.proj", "attn.wo"), *wide),
        "torch's attention": rename(state, *torch_mha),
        "dropout inside": rename(state, (r"ffn\.net\.2", "ffn.net.3")),
        "bare positions": {k: t for k, t in state.items() if k != "pos_emb.weight"}
        | {"pos_emb": positions[None]},
        "with buffers": state
        | {
            "blocks.0.attn.mask": torch.ones(64, 64).tril(),
            "blocks.1.attn.tril": torch.ones(64, 64).tril(),
            "blocks.1.attn.bias": torch.ones(64, 64).tril(),
            "position_ids": torch.arange(64),
        },
    }


def course_state() -> State:
    return {course_name(name): p.detach().clone() for name, p in tiny_model(**FULL).named_parameters()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    return byte_vocabulary(folder)


@pytest.mark.parametrize("variant", variants(course_state()))
def test_every_variant_gives_the_same_logits(home: Path, variant: str) -> None:
    torch.save(variants(course_state())[variant], home / "model.pt")
    checkpoint = open_checkpoint(home / "model.pt", num_heads=2)
    loaded = load_model(checkpoint, torch.device("cpu"), torch.float32)
    assert torch.equal(logits(loaded), logits(tiny_model(**FULL)))
    assert checkpoint.config == tiny_model(**FULL).config
    assert any(note.startswith("buffers: ignored") for note in checkpoint.notes) == (
        variant == "with buffers"
    )


def test_raschkas_names_train_with_tanh_gelu(home: Path) -> None:
    state = rename(
        split_qkv(course_state(), "W_query", "W_key", "W_value"),
        ("blocks", "trf_blocks"),
        (r"attn\.proj", "att.out_proj"),
        (r"attn\.", "att."),
        (r"ffn\.net", "ff.layers"),
        (r"ln(\d)\.weight", r"norm\1.scale"),
        (r"ln(\d)\.bias", r"norm\1.shift"),
        (r"ln_f\.weight", "final_norm.scale"),
        (r"ln_f\.bias", "final_norm.shift"),
        ("head", "out_head"),
    )
    torch.save(state, home / "model.pt")
    loaded = load_model(open_checkpoint(home / "model.pt", num_heads=2), torch.device("cpu"), torch.float32)
    assert torch.equal(logits(loaded), logits(tiny_model(**FULL, activation="gelu_tanh")))


def test_our_own_names_and_the_courses_lead_back_to_ours() -> None:
    for ours in expected_shapes(tiny_model(**FULL).config):
        assert recognise(ours) == recognise(course_name(ours)) == Target(ours)


STRANGERS = """weight blocks.0 blocks.x.ln1.weight blocks.00.ln1.weight blocks.999999.ln1.weight
    lm_head.bias tok_emb.bias blocks.0.mlp.gate_proj.weight blocks.0.mlp.w3.weight
    blocks.0.sa.heads.0.key.weight""".split()


@pytest.mark.parametrize("name", ["", "blocks.0.ln1.weight\n", *STRANGERS])
def test_what_is_in_no_table_is_not_recognised(name: str) -> None:
    assert recognise(name) is None


def test_only_a_causal_mask_called_bias_is_a_buffer() -> None:
    mask = torch.ones(8, 8).tril()
    assert is_buffer("h.0.attn.bias", mask) and is_buffer("h.0.attn.bias", mask.view(1, 1, 8, 8))
    assert not is_buffer("h.0.attn.bias", torch.ones(8, 8))
    assert not is_buffer("h.0.attn.bias", torch.ones(8))
    assert not is_buffer("h.0.attn.c_attn.bias", mask)


def test_split_qkv_with_a_part_missing_is_refused(home: Path) -> None:
    state = split_qkv(course_state(), "wq", "wk", "wv")
    del state["blocks.1.attn.wk.bias"]
    torch.save(state, home / "model.pt")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.qkv\.bias is missing its k"):
        open_checkpoint(home / "model.pt", num_heads=2)
