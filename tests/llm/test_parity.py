"""Law 5: on the same weights our logits are transformers' and greedy replies are the same tokens.

Tiny random networks of every family, with every switch that changes what they compute, built and saved by
transformers and opened as the folders they are.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.checkpoint import load_model
from llm.checkpoint.hf.open import open_hf_folder
from llm.config import EngineConfig, SamplingParams
from llm.engine import Engine
from llm.generate import generate_cached, generate_naive
from llm.kv.concat import NoCache
from llm.model import Decoder
from llm.runner.eager import EagerRunner
from llm.sequence import Sequence, TokenEvent

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
POSITIONS, PROMPT, NEW = 128, 40, 32
GREEDY = SamplingParams(max_tokens=NEW, temperature=0.0)
ENDLESS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
GPT2: dict[str, Any] = {
    "vocab_size": 257,
    "n_positions": POSITIONS,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
}


def rope(kind: str, **fields: object) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1000.0} | fields}


YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2 untied, exact": ("GPT2", GPT2 | {"tie_word_embeddings": False, "activation_function": "gelu"}),
    "gpt2 wide": ("GPT2", GPT2 | {"n_inner": 100, "layer_norm_epsilon": 1e-3}),
    "llama": ("Llama", LLAMA),
    "smollm2": (
        "Llama",
        LLAMA | {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1},
    ),
    "llama head_dim": ("Llama", LLAMA | {"head_dim": 24, "rms_norm_eps": 1e-3, "num_key_value_heads": None}),
    "llama biases": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "llama linear": ("Llama", LLAMA | rope("linear", factor=2.0)),
    "llama llama3": (
        "Llama",
        LLAMA
        | rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama yarn": ("Llama", LLAMA | rope("yarn", **YARN)),
    "llama yarn weighted": (
        "Llama",
        LLAMA
        | rope("yarn", mscale=0.7, mscale_all_dim=0.4, beta_fast=8, beta_slow=2, truncate=False, **YARN),
    ),
    "llama yarn scaled": ("Llama", LLAMA | rope("yarn", attention_factor=1.3, **YARN)),
    "mistral": ("Mistral", LLAMA | {"sliding_window": 16}),
    "mistral without a window": ("Mistral", LLAMA | {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", LLAMA),
    "qwen2 windows": (
        "Qwen2",
        LLAMA
        | {
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 20}),
    "qwen3 windows": (
        "Qwen3",
        LLAMA
        | {"head_dim": 16, "use_sliding_window": True, "sliding_window": 21, "attention_bias": True}
        | {"layer_types": ["full_attention", "sliding_attention"]},
    ),
}


REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2", {}),
    "SmolLM2-135M": (
        "Llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        }
        | rope("default", rope_theta=100_000.0),
    ),
}


def reference(family: str, fields: dict[str, Any], scale: float = 0.15) -> Any:
    """A random network of transformers', biases and norms too, awake enough for prompts to differ."""
    config = getattr(transformers, f"{family}Config")(**ENDLESS, **fields, attn_implementation="eager")
    head = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    model = getattr(transformers, head)(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name or "ln_" in name
            parameter.normal_(0.0, scale, generator=generator)
            parameter.add_(float(norm and name.endswith("weight")))
    return model


def add_byte_vocabulary(folder: Path) -> None:
    """The 256 bytes and an end of text: 257 ids."""
    lines = (b"%s %d\n" % (base64.b64encode(bytes([value])), value) for value in range(256))
    (folder / "tokenizer.tiktoken").write_bytes(b"".join(lines))


class Pair:
    """The same weights twice: in transformers and, through a folder, here."""

    def __init__(self, theirs: Any, folder: Path, **saving: object) -> None:
        self.theirs = theirs
        theirs.save_pretrained(folder, **saving)
        add_byte_vocabulary(folder)
        self.checkpoint = open_hf_folder(folder)
        self.ours = load_model(self.checkpoint, CPU, torch.float32)

    @torch.inference_mode()
    def worst(self, ids: Tensor) -> float:
        """The largest difference between the two logits of ids (B, T), as a part of the logits' range."""
        expected = self.theirs(ids, use_cache=False).logits
        got = self.ours.logits(self.ours(ids, torch.arange(ids.shape[1]), NoCache()))
        assert expected.std() > 0.1, "logits that all look alike would prove nothing"
        return float((got - expected).abs().max() / (expected.max() - expected.min()))

    def continuations(self, ids: Tensor, new: int = NEW) -> list[list[int]]:
        """Their greedy continuations of every row of ids (B, T)."""
        with torch.inference_mode():
            out = self.theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=new,
                pad_token_id=0,
            )
        return [row.tolist() for row in out[:, ids.shape[1] :]]


def engine_replies(model: Decoder, prompts: list[list[int]], new: int = NEW) -> list[list[int]]:
    """Greedy replies of all prompts at once, prefilled in chunks that no prompt fits into."""
    events: dict[int, list[TokenEvent]] = {}
    bounds = EngineConfig(
        max_model_len=len(prompts[0]) + new + 1, max_num_seqs=4, block_size=4, max_num_batched_tokens=13
    )
    engine = Engine(
        EagerRunner(model, bounds),
        bounds,
        model.config.vocab_size,
        lambda some: [events.setdefault(event.sequence_id, []).append(event) for event in some],
    )
    params = SamplingParams(max_tokens=new, temperature=0.0)
    sequences = [Sequence(prompt, params) for prompt in prompts]
    for sequence in sequences:
        engine.scheduler.add(sequence)
    while engine.step():
        pass
    return [[e.token_id for e in events[s.id] if e.token_id is not None] for s in sequences]


def random_ids(rows: int, length: int, vocab_size: int = 257) -> Tensor:
    return torch.randint(0, vocab_size, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    family, fields = CASES[request.param]
    yield Pair(reference(family, fields), tmp_path_factory.mktemp("folder"))


def test_logits_are_equal_at_every_position(pair: Pair) -> None:
    assert pair.worst(random_ids(2, POSITIONS)) <= 1e-4
    assert pair.worst(random_ids(1, 1)) <= 1e-4


def test_greedy_replies_are_the_same_tokens(pair: Pair) -> None:
    ids = random_ids(3, PROMPT)
    expected = pair.continuations(ids)
    prompts = ids.tolist()
    assert len({tuple(reply) for reply in expected}) == 3 and len(expected[0]) == NEW
    assert generate_naive(pair.ours, prompts[0], GREEDY)[0] == expected[0]
    assert [generate_cached(pair.ours, prompt, GREEDY)[0] for prompt in prompts] == expected
    assert engine_replies(pair.ours, prompts) == expected


@pytest.mark.parametrize("kind", ["sharded", "bin", "sharded bin"])
def test_other_files_give_the_same_logits_bit_for_bit(tmp_path: Path, kind: str) -> None:
    theirs = reference(*CASES["qwen3 windows"])
    whole = Pair(theirs, tmp_path / "whole")
    folder = tmp_path / "other"
    other = Pair(theirs, folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    if "bin" in kind:
        write_bins(folder, theirs.state_dict(), 3 if kind == "sharded bin" else 1)
        other.ours = load_model(open_hf_folder(folder), CPU, torch.float32)
    ids = random_ids(2, POSITIONS)
    got, expected = (
        pair.ours.logits(pair.ours(ids, torch.arange(POSITIONS), NoCache())) for pair in (other, whole)
    )
    assert torch.equal(got, expected)


def write_bins(folder: Path, state: dict[str, Tensor], num_shards: int) -> None:
    """Replace a folder's safetensors by what transformers wrote before them."""
    for file in folder.glob("model*"):
        file.unlink()
    if num_shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    placed = {name: f"pytorch_model-{i % num_shards}.bin" for i, name in enumerate(state)}
    for shard in set(placed.values()):
        torch.save({name: state[name] for name in state if placed[name] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_networks_of_real_size(tmp_path: Path, name: str) -> None:
    """The shapes people hold, with random weights: 124M and 135M parameters."""
    family, fields = REAL[name]
    theirs = reference(family, fields, scale=0.05)
    pair = Pair(theirs, tmp_path)
    ids = random_ids(2, 200, theirs.config.vocab_size)
    assert pair.worst(ids) <= 1e-4
    expected = pair.continuations(ids)
    assert [generate_cached(pair.ours, prompt, GREEDY)[0] for prompt in ids.tolist()] == expected
    assert engine_replies(pair.ours, ids.tolist()) == expected
