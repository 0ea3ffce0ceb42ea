"""GGUF files opened and loaded: the logits are transformers', the memory is bounded, damage is one line."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm.checkpoint import load_model
from llm.checkpoint.gguf.open import open_gguf
from llm.checkpoint.record import file_digest
from llm.config import ModelConfig
from llm.errors import CheckpointError
from llm.kv.concat import NoCache
from llm.model import Decoder
from llm.rope import llama3_factors
from tests.checkpoint_writers import LLAMA, random_weights, tiny_gguf_vocabulary, write_gguf

CPU = torch.device("cpu")
IDS = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(3))
END = 257
QWEN2 = replace(LLAMA, attention_bias=True, tied_head=False)
QWEN3 = replace(LLAMA, qk_norm=True, head_size=8, rope_theta=1e6, norm_eps=1e-6)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


def logits(model: Decoder, ids: Tensor = IDS) -> Tensor:
    return model.logits(model(ids, torch.arange(ids.shape[1]), NoCache()))


def load(path: Path) -> Decoder:
    return load_model(open_gguf(path), CPU, torch.float32)


def reference(model: str, config: ModelConfig, weights: dict[str, Tensor], **options: Any) -> Any:
    """transformers' model of that name with our weights, put there by its own names."""
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "default", "rope_theta": config.rope_theta} | options.pop("rope", {})
    theirs = getattr(transformers, f"{model}ForCausalLM")(
        getattr(transformers, f"{model}Config")(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.ffn_width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.num_positions,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tied_head,
            rope_parameters=rope,
            attn_implementation="eager",
            **options,
        )
    ).eval()
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    state: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        for ours, others in THEIR_NAMES:
            name = re.sub(ours, others, name)
        parts = dict(zip("qkv", tensor.split([q, kv, kv]), strict=True)) if "qkv" in name else {"": tensor}
        state |= {name.replace("qkv", f"{part}_proj"): rows for part, rows in parts.items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return theirs


THEIR_NAMES = [
    (r"^head\.", "lm_head."),
    (r"^tokens\.", "model.embed_tokens."),
    (r"^norm\.", "model.norm."),
    (r"^blocks\.", "model.layers."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.attention\.out\.", ".self_attn.o_proj."),
    (r"\.attention\.", ".self_attn."),
    (r"\.ffn\.(gate|up|down)\.", r".mlp.\1_proj."),
]
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
YARN_FIELDS = {"type": "yarn", "factor": 4.0, "original_context_length": 16}
FAMILIES: dict[str, tuple[str, str, ModelConfig, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", "llama", LLAMA, {}, {}),
    "llama, untied": ("Llama", "llama", replace(LLAMA, tied_head=False), {}, {}),
    "llama, biases": (
        "Llama",
        "llama",
        replace(LLAMA, attention_bias=True, attention_out_bias=True, ffn_bias=True),
        {},
        {"attention_bias": True, "mlp_bias": True},
    ),
    "llama, heads of 32": ("Llama", "llama", replace(LLAMA, head_size=32), {}, {}),
    "llama, linear": (
        "Llama",
        "llama",
        LLAMA,
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"rope": {"rope_type": "linear", "factor": 4.0}},
    ),
    "llama 3": (
        "Llama",
        "llama",
        LLAMA,
        {"rope_freqs": llama3_factors(16, 10000.0, **LLAMA3, original_positions=32)},
        {"rope": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 32}},
    ),
    "mistral": (
        "Mistral",
        "llama",
        LLAMA,
        {"llama.attention.sliding_window": 16},
        {"sliding_window": 16},
    ),
    "qwen2": ("Qwen2", "qwen2", QWEN2, {}, {}),
    "qwen2, yarn": (
        "Qwen2",
        "qwen2",
        QWEN2,
        {f"qwen2.rope.scaling.{name}": value for name, value in YARN_FIELDS.items()},
        {"rope": YARN},
    ),
    "qwen3": ("Qwen3", "qwen3", QWEN3, {}, {}),
}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_are_those_of_transformers(path: Path, family: str) -> None:
    """Law 5: 40 tokens at once, then 24 chosen one by one."""
    model, architecture, config, fields, options = FAMILIES[family]
    fields, weights = dict(fields), random_weights(config, seed=7)
    factors = fields.pop("rope_freqs", None)
    extra = {} if factors is None else {"rope_freqs.weight": np.array(factors, np.float32)}
    write_gguf(path, config, weights, architecture=architecture, fields=fields, extra=extra)
    ours, theirs = load(path), reference(model, config, weights, **dict(options))
    expected = theirs(IDS).logits
    assert (logits(ours) - expected).abs().max() <= 1e-4 * (expected.max() - expected.min())
    mine, other = IDS, IDS
    for _ in range(24):
        mine = torch.cat([mine, logits(ours, mine)[:, -1:].argmax(-1)], dim=1)
        other = torch.cat([other, theirs(other).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(mine, other) and len(set(mine[0, 40:].tolist())) > 3


def test_what_the_checkpoint_says(path: Path) -> None:
    write_gguf(path, LLAMA, random_weights(LLAMA), kind=lambda name: "Q8_0")
    checkpoint = open_gguf(path)
    assert (checkpoint.name, checkpoint.kind, checkpoint.architecture) == ("tiny", "GGUF file", "llama")
    assert checkpoint.config == LLAMA and checkpoint.digest == file_digest(path)
    assert checkpoint.stored == {"q8_0": 258 * 64 + 2 * (128 + 64 + 3 * 96) * 64, "float32": 5 * 64}
    assert checkpoint.defaults.stop_token_ids == {END}
    assert any(note.startswith("head: no output.weight") for note in checkpoint.notes)
    assert any(warning.startswith("no chat template") for warning in checkpoint.warnings)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_groups_load_as_the_floats_they_stand_for(path: Path, kind: str) -> None:
    weights = random_weights(LLAMA)
    write_gguf(path, LLAMA, weights, kind=lambda name: kind)
    grouped = logits(load(path))
    known = dict(open_gguf(path).weights())
    floats = {n: w if isinstance(w, Tensor) else w.dequantize() for n, w in known.items()}
    plain = path.with_name("plain.gguf")  # another file: `floats` may be mapped from the first
    write_gguf(plain, LLAMA, floats)
    assert torch.equal(grouped, logits(load(plain)))


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_weights_that_are_no_numbers(path: Path) -> None:
    weights = random_weights(LLAMA)
    weights["blocks.1.ffn.up.weight"][3, 5] = torch.nan
    write_gguf(path, LLAMA, weights)
    assert refusal(path) == "blocks.1.ffn.up.weight holds NaN or infinite weights"
    block = np.frombuffer(np.array([np.inf], "<f2").tobytes() + bytes(32), np.uint8)
    packed = {"blk.0.attn_k.weight": ("Q8_0", np.tile(block, (32, 2)))}
    write_gguf(path, LLAMA, random_weights(LLAMA), kind=lambda name: "Q8_0", packed=packed)
    assert refusal(path) == "blocks.0.attention.qkv.weight holds NaN or infinite weights"


def test_a_vocabulary_that_does_not_fit_the_embedding(path: Path) -> None:
    wider = replace(LLAMA, vocab_size=320)
    write_gguf(path, wider, random_weights(wider))
    assert any("320 rows, 258 known" in note for note in open_gguf(path).notes)
    narrow = replace(LLAMA, vocab_size=257)
    write_gguf(path, narrow, random_weights(narrow))
    assert refusal(path) == "the tokenizer has 258 ids, token_embd.weight only 257 rows"


def test_other_architectures_are_refused_by_name(path: Path) -> None:
    write_gguf(path, LLAMA, random_weights(LLAMA), architecture="gemma3")
    assert refusal(path) == "general.architecture is 'gemma3', supported are llama, qwen2, qwen3"


def test_a_file_without_an_embedding_or_without_tensors(path: Path) -> None:
    write_gguf(path, LLAMA, random_weights(LLAMA))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"token_embd.weight", b"rope_freqs.weight"))
    assert "rope_freqs.weight has type F32 and shape [258, 64]" in refusal(path)
    write_gguf(path, LLAMA, {})
    assert refusal(path) == "block_count is 2, the file has 0 tensors in 0 blocks"


TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m.content }}<|endoftext|>{% endfor %}"


def test_the_template_and_the_ends(path: Path) -> None:
    tokens = tiny_gguf_vocabulary()["tokenizer.ggml.tokens"]
    tokens[0:3] = ["<|im_start|>", "<|im_end|>", "</s>"]
    fields = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 1] + [1] * 254 + [3],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eot_token_id": 40,
        "tokenizer.ggml.eom_token_id": 99999,
        "tokenizer.chat_template": TEMPLATE,
        "tokenizer.chat_template.tool_use": "{{ tools }}",
    }
    write_gguf(path, LLAMA, random_weights(LLAMA), fields=fields)
    checkpoint = open_gguf(path)
    assert checkpoint.template.name != "plain"
    assert checkpoint.defaults.stop_token_ids == {1, 40, END}  # </s> is ordinary text here
    assert any("not tokenizer.chat_template.tool_use" in note for note in checkpoint.notes)
    write_gguf(path, LLAMA, random_weights(LLAMA), fields=fields | {"tokenizer.chat_template": 5})
    assert refusal(path) == "tokenizer.chat_template must be a string, got 5"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "good.gguf"
    write_gguf(path, LLAMA, random_weights(LLAMA), kind=lambda name: "Q8_0")
    return path.read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_byte_may_be_wrong(path: Path, good: bytes, flips: list[tuple[int, int]]) -> None:
    """The header is about 7,000 bytes; a file whose damage cannot be seen still loads."""
    damaged = bytearray(good)
    for at, value in flips:
        damaged[at] = value
    path.write_bytes(damaged)
    try:
        load(path)
    except CheckpointError as error:
        assert "\n" not in str(error)


LOAD = """
import sys
from pathlib import Path
import torch
from llm.checkpoint import load_model
from llm.checkpoint.gguf.open import open_gguf

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10

def load(path):
    return load_model(open_gguf(Path(path)), torch.device("cpu"), torch.float32)

load(sys.argv[1])
before = peak()
model = load(sys.argv[2])
print((peak() - before) / (4 * model.num_parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    "kind", ["Q5_0", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("F32", "F16", "Q8_0", "Q4_1"))]
)
def test_memory_while_loading_stays_near_that_of_the_weights(path: Path, kind: str) -> None:
    """150 MB as float32. A tiny model is loaded before, which brings in what torch takes for itself."""
    config = replace(LLAMA, width=512, ffn_width=2048, num_layers=9, num_heads=8, num_kv_heads=8)
    write_gguf(path, LLAMA, random_weights(LLAMA))
    large = path.with_name("large.gguf")
    write_gguf(large, config, random_weights(config), kind=lambda name: kind)
    output = subprocess.check_output([sys.executable, "-c", LOAD, str(path), str(large)], text=True)
    assert 1.0 <= float(output) <= 1.3, output


def test_a_policy_beside_the_file_is_its_policy(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, LLAMA, random_weights(LLAMA))
    without = open_gguf(path)
    assert without.defaults.temperature == 1.0
    assert "sampling: no generation_config.json, so temperature 1, top_p 1" in without.notes
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.2, "top_p": 0.9}')
    found = open_gguf(path)
    assert (found.defaults.temperature, found.defaults.top_p) == (0.2, 0.9)
    assert found.defaults.stop_token_ids == without.defaults.stop_token_ids != frozenset()
    (tmp_path / "generation_config.json").write_text('{"temperature": -1}')
    with pytest.raises(CheckpointError, match="temperature must be a number from 0 to 2"):
        open_gguf(path)
