"""Adapters on disk, in PEFT's layout: a folder that PEFT's `from_pretrained` reads, and that it wrote.

    adapter_config.json         r, lora_alpha, rank_pattern, alpha_pattern, use_rslora, target_modules, …
    adapter_model.safetensors   base_model.model.<module>.lora_A.weight (r, in), …lora_B.weight (out, r);
                                ours names its base and the base's digest in the metadata, which PEFT skips

Never a pickle: adapter_model.bin is not read. Names, shapes and types are compared by headers before a number
is read; a field that would change what is computed, and is not built, is refused by name and value. Refuses
to know what is done with an adapter.

    >>> adapter = open_adapter(Path("adapters/pirate"), checkpoint.config)
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from llm.adapt.adapter import Adapter, LowRank, Target
from llm.adapt.targets import find_targets, is_gpt2
from llm.checkpoint.record import file_digest, is_finite, some
from llm.checkpoint.safetensors import (
    READABLE,
    TensorHeader,
    read_header,
    read_metadata,
    read_tensors,
    refuse_type,
)
from llm.config import ModelConfig
from llm.errors import CheckpointError
from llm.fields import MAX_JSON_BYTES, Fields, parse_object, read_bytes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK, MAX_ALPHA = 4096, 1e6
MAX_HEADER_BYTES = 1 << 20
BASE, BASE_DIGEST = "causerie_base", "causerie_base_digest"

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")
_WRAPPERS = re.compile(r"(?:model\.|transformer\.)?")
_PATTERN = re.compile(r"\^?[\w.]+")
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "bias": ("none",),
    "use_dora": (False,),
    "use_qalora": (False,),
    "lora_bias": (False,),
    "ensure_weight_tying": (False,),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "modules_to_save": ([],),
    "layer_replication": ([],),
    "target_parameters": ([],),
    "trainable_token_indices": ([], {}),
    "alora_invocation_tokens": ([],),
    "arrow_config": ({},),
    "megatron_config": ({},),
}
"""Fields that change what is computed, and the values with which they do not; null never does. The other ways
of init_lora_weights change the base as well."""
_TELLS_NOTHING = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
)
"""What the tensors themselves say, or what matters in training alone."""


@dataclass(frozen=True, slots=True)
class _Scales:
    """How rank and α follow from a module's name."""

    rank: int
    alpha: float
    ranks: dict[str, float]
    alphas: dict[str, float]
    rslora: bool

    def of(self, name: str) -> tuple[int, float]:
        """Rank and scale of a module, by PEFT's name for it."""
        rank = int(_lookup(self.ranks, name, self.rank))
        alpha = _lookup(self.alphas, name, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rslora else rank)


def open_adapter(path: Path, config: ModelConfig, max_rank: int = MAX_RANK) -> Adapter:
    """Read an adapter of at most this rank, for a base of this shape: float32 on the CPU, in its own memory.

    Raises:
        CheckpointError: anything that keeps it from being applied, in one line.
    """
    scales, base = _read_config(path, max_rank)
    weights = path / WEIGHTS
    if not weights.is_file() and (path / "adapter_model.bin").is_file():
        raise CheckpointError(f"{path}: adapter_model.bin is a pickle and is not read, save it as {WEIGHTS}")
    targets = find_targets(config)
    _check_size(weights, targets, max_rank)
    headers = read_header(weights)
    pairs = _pair(weights, headers, targets)
    for target, pair in pairs.items():
        _check(weights, headers, target, pair, scales)
    values: dict[str, torch.Tensor] = {}
    for name, tensor in read_tensors(weights, headers):
        if tuple(tensor.shape) != headers[name].shape or not is_finite(tensor):
            raise CheckpointError(f"{weights}: {name} holds NaN or infinite weights")
        values[name] = tensor.to(torch.float32, copy=True)
        if not is_finite(values[name]):
            raise CheckpointError(f"{weights}: {name} holds weights too large for float32")
    parts = tuple(
        LowRank(target, values[pair["A"]], values[pair["B"]], scales.of(target.name)[1])
        for target, pair in pairs.items()
    )
    about = read_metadata(weights)
    name = about.get(BASE, base)
    return Adapter(parts, name[:200], about.get(BASE_DIGEST, "")[:16], file_digest(weights))


def _check_size(path: Path, targets: Iterable[Target], max_rank: int) -> None:
    """Before its header is read: no file of this base's is larger."""
    most = MAX_HEADER_BYTES + 8 * max_rank * sum(target.width + target.num_rows for target in targets)
    if path.is_file() and (size := path.stat().st_size) > most:
        raise CheckpointError(f"{path}: has {size} bytes, an adapter of rank {max_rank} at most {most}")


def _read_config(path: Path, max_rank: int) -> tuple[_Scales, str]:
    """What adapter_config.json says of the scale, and the base it names."""
    where = path / CONFIG
    if not where.is_file():
        raise CheckpointError(f"{path}: no adapter: a folder with {CONFIG} and {WEIGHTS} is one")
    fields = Fields(parse_object(read_bytes(where, MAX_JSON_BYTES), str(where)), str(where))
    if (kind := fields.text("peft_type")) != "LORA":
        fields.refuse(f"peft_type {kind[:64]!r} is not supported, only 'LORA' is")
    for name, neutral in _NEUTRAL.items():
        _refuse_unless(fields, name, neutral)
    rank = fields.whole("r", 1, max_rank)
    alpha = fields.number("lora_alpha", 0, MAX_ALPHA)
    rslora = "use_rslora" in fields and fields.boolean("use_rslora")
    scales = _Scales(
        rank,
        alpha,
        _read_pattern(fields, "rank_pattern", 1, max_rank),
        _read_pattern(fields, "alpha_pattern", 0, MAX_ALPHA),
        rslora,
    )
    base = fields.text("base_model_name_or_path") if "base_model_name_or_path" in fields else ""
    for name in (*_TELLS_NOTHING, "use_rslora", "rank_pattern", "alpha_pattern", *_NEUTRAL):
        fields.skip(name)
    for name in fields.left():
        _refuse_unless(fields, name, (False, [], {}))
    return scales, base


def _refuse_unless(fields: Fields, name: str, neutral: tuple[object, ...]) -> None:
    """Take a field that must not say anything, if it is there."""
    if name not in fields:
        return
    value = fields.take(name)
    if not any(value == n and type(value) is type(n) for n in neutral):
        fields.refuse(f"{name[:64]} {json.dumps(value)[:64]} is not supported")


def _read_pattern(fields: Fields, name: str, low: float, high: float) -> dict[str, float]:
    """A number for the modules whose names end so. PEFT's keys are regular expressions; plain names are all
    that is read, since an expression of somebody else's may take for ever.
    """
    if name not in fields:
        return {}
    inner = fields.inner(name)
    for key in inner.left():
        if not _PATTERN.fullmatch(key):
            inner.refuse(f"{key[:64]!r} is not supported, only names of modules are")
    return {key: inner.number(key, low, high) for key in inner.left()}


def _lookup(pattern: dict[str, float], name: str, default: float) -> float:
    """The first key that the module's name ends with, at a dot; after ^ it is the whole name."""
    for key, value in pattern.items():
        whole = key.removeprefix("^")
        if name == whole or (whole == key and name.endswith(f".{key}")):
            return value
    return default


def _pair(
    path: Path, headers: dict[str, TensorHeader], targets: Iterable[Target]
) -> dict[Target, dict[str, str]]:
    """The names of A and B of each target that has them, in the network's order."""
    known = {_bare(target.name): target for target in targets}
    pairs: dict[Target, dict[str, str]] = {}
    unknown = []
    for name in headers:
        key = _KEY.fullmatch(name)
        target = known.get(_bare(key["module"])) if key else None
        if key is None or target is None:
            unknown.append(name)
        elif pairs.setdefault(target, {}).setdefault(key["matrix"], name) != name:
            raise CheckpointError(f"{path}: {some([name])} is there twice, under two names")
    if unknown:
        raise CheckpointError(f"{path}: the base has no place for {len(unknown)} tensors: {some(unknown)}")
    if lonely := [name for pair in pairs.values() if len(pair) < 2 for name in pair.values()]:
        raise CheckpointError(f"{path}: A without B, or B without A: {some(lonely)}")
    if not pairs:
        raise CheckpointError(f"{path}: holds no tensors")
    return {target: pairs[target] for target in known.values() if target in pairs}


def _bare(module: str) -> str:
    """A module's name without what a model with a head puts before it."""
    return _WRAPPERS.sub("", module, count=1)


def _check(
    path: Path, headers: dict[str, TensorHeader], target: Target, pair: dict[str, str], scales: _Scales
) -> None:
    """Shapes and types of one pair, against the base and the configuration."""
    rank, _ = scales.of(target.name)
    for matrix, shape in (("A", (rank, target.width)), ("B", (target.num_rows, rank))):
        header = headers[pair[matrix]]
        if header.shape != shape:
            raise CheckpointError(
                f"{path}: {pair[matrix]} has shape {list(header.shape)}, rank {rank} on this base takes "
                f"{list(shape)}"
            )
        if header.dtype not in READABLE:
            raise refuse_type(path, pair[matrix], header.dtype)


def save_adapter(
    path: Path, adapter: Adapter, config: ModelConfig, beside: Mapping[str, str] | None = None
) -> None:
    """Write an adapter's folder, replacing one that is there; every file is whole at any time.

    Args:
        config: of the base.
        beside: other files' names and texts, such as README.md's.

    Raises:
        CheckpointError: a number that is not finite.
    """
    tensors = {}
    for part in adapter.parts:
        for matrix, tensor in (("A", part.a), ("B", part.b)):
            name = f"base_model.model.{part.target.name}.lora_{matrix}.weight"
            tensors[name] = tensor.detach().to("cpu", torch.float32).contiguous()
            if not is_finite(tensors[name]):
                raise CheckpointError(f"{path}: not saved: {name} holds weights that are not finite")
    path.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=path))
    try:
        texts = {CONFIG: json.dumps(_config_of(adapter, config), indent=2) + "\n", **(beside or {})}
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8", newline="\n")
        about = {"format": "pt", BASE: adapter.base, BASE_DIGEST: adapter.base_digest}
        save_file(tensors, temporary / WEIGHTS, metadata=about)
        shutil.copymode(temporary / CONFIG, temporary / WEIGHTS)  # it writes mode 0600
        for name in (*(beside or {}), WEIGHTS, CONFIG):
            os.replace(temporary / name, path / name)
    finally:
        shutil.rmtree(temporary)


def _config_of(adapter: Adapter, config: ModelConfig) -> dict[str, object]:
    """adapter_config.json; what is not the rule for every matrix is in the patterns."""
    ranks = {part.target.name: part.rank for part in adapter.parts}
    alphas = {part.target.name: part.scale * part.rank for part in adapter.parts}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "rank_pattern": {f"^{name}": r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{name}": _plain(a) for name, a in alphas.items() if a != alpha},
        "target_modules": _target_modules(adapter, config),
        "fan_in_fan_out": is_gpt2(config),
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }


def _plain(value: float) -> int | float:
    """16, not 16.0: PEFT's field is a whole number."""
    return int(value) if value == int(value) else value


def _target_modules(adapter: Adapter, config: ModelConfig) -> list[str]:
    """The ends of names that mean these matrices and no other; else their whole names."""
    chosen = {part.target.name for part in adapter.parts}
    ends = sorted({name.rpartition(".")[2] for name in chosen})
    named = {t.name for t in find_targets(config) if t.name.rpartition(".")[2] in ends}
    return ends if named == chosen else sorted(chosen)
