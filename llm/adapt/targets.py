"""Which matrices an adapter may adapt, and what PEFT calls them.

A network of ours is named as Hugging Face names its family: with learned positions and no gate as GPT-2,
else as Llama. Where ours is one matrix and theirs are three (q, k, v), each of theirs is a block of rows of
ours, in every format: a GGUF's rows were put back into Hugging Face's order when it was read. Embedding and
head are not adapted. Refuses to know tensors and files.

    >>> choose(find_targets(config), "q_proj,v_proj")
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from llm.adapt.adapter import Target
from llm.checkpoint.hf.weights import GPT2, LLAMA
from llm.checkpoint.record import expected_shapes, some
from llm.config import ModelConfig
from llm.errors import OptionError

ALL = "all-linear"
_MATRIX = re.compile(r"(blocks\.(\d+)\.((?:attention|ffn)\.\w+))\.weight")


def is_gpt2(config: ModelConfig) -> bool:
    """Whether the network's matrices go by GPT-2's names, which are Conv1D's there: fan-in first."""
    return config.rope_theta is None and config.activation != "swiglu"


def find_targets(config: ModelConfig) -> list[Target]:
    """Every matrix of the blocks, in the network's order."""
    stems, prefix = (GPT2, "transformer.h") if is_gpt2(config) else (LLAMA, "model.layers")
    kv = config.num_kv_heads * config.head_dim
    targets = []
    for parameter, shape in expected_shapes(config).items():
        matrix = _MATRIX.fullmatch(parameter)
        if matrix is None or len(shape) != 2:
            continue
        linear, layer, stem = matrix.groups()
        names, start = stems[stem], 0
        for name, count in zip(
            names, [shape[0]] if len(names) == 1 else [shape[0] - 2 * kv, kv, kv], strict=True
        ):
            targets.append(Target(f"{prefix}.{layer}.{name}", linear, start, start + count, shape[1]))
            start += count
    return targets


def choose(targets: Sequence[Target], patterns: str) -> list[Target]:
    """Those whose name, PEFT's or ours, ends with one of the patterns.

    Args:
        patterns: separated by commas, with * and ? as in a shell; "all-linear" is all of them.

    Raises:
        OptionError: a pattern that names none.
    """
    if patterns == ALL:
        return list(targets)
    chosen: set[Target] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matching = [t for t in targets if _ends_with(t.name, pattern) or _ends_with(t.linear, pattern)]
        if not matching:
            raise OptionError(
                f"--lora-targets: {pattern[:100]!r} names no matrix of this model, there are: {ALL}, "
                f"{some(dict.fromkeys(t.name.split('.', 3)[-1] for t in targets), limit=8)}"
            )
        chosen.update(matching)
    if not chosen:
        raise OptionError("--lora-targets names no matrix")
    return [target for target in targets if target in chosen]


def _ends_with(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")
