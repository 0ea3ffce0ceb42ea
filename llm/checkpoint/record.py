"""What opening a checkpoint yields, whatever its format: config, tokenizer, policy, and weights on call.

Refuses to know formats: each hands over a function that reads its tensors. Whatever that function yields is
checked here, tensor by tensor, so no format can forget to.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from llm.adapt.quant import QuantTensor
from llm.chat.template import ChatTemplate, Message
from llm.config import GenerationDefaults, ModelConfig
from llm.errors import CheckpointError
from llm.model import Decoder
from llm.tokenizer import Tokenizer

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types a weight may have on disk."""

WHOLE_DIGEST_BYTES = 1 << 30
DIGEST_SAMPLES, DIGEST_SAMPLE_BYTES = 1024, 64 << 10

Weight = Tensor | QuantTensor
"""A parameter: plain numbers, or groups of them as a quantised file stores them."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation exactly as it was trained on: the evidence of the prompt proof.

    Attributes:
        messages: the turns, the assistant's included.
        ids: token ids of the whole rendered conversation.
        trained: for each id, whether the loss covered it; same length as ids.
    """

    messages: list[Message]
    ids: list[int]
    trained: list[bool]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was opened and found consistent; its weights are still on disk.

    Attributes:
        path: file or folder.
        name: the file's stem or the folder's name: the model's id unless the operator gives another.
        kind: the format, for people: "folder", "state dict", "nanoGPT checkpoint", "litgpt checkpoint",
            "Hugging Face folder" or "GGUF file".
        architecture: the network's family, for people: "GPT", "llama", "qwen2", ...
        config: what the network is.
        template: how conversations are written.
        tokenizer: knows at most config.vocab_size ids.
        defaults: what a request gets for the fields it does not send.
        samples: training conversations, for the prompt proof; may be empty.
        notes: what was inferred and from what, chosen or ignored, one line each.
        warnings: what a person should know before trusting the answers, one line each.
        stored: how many weights the file holds in each type, by torch's name or the quantisation's.
        digest: 16 hex digits that change with the weights; see file_digest.
        read: yields (our parameter name, weight); use `weights`, which checks them.
    """

    path: Path
    name: str
    kind: str
    architecture: str
    config: ModelConfig
    template: ChatTemplate
    tokenizer: Tokenizer
    defaults: GenerationDefaults
    samples: list[Sample]
    notes: list[str]
    digest: str
    stored: Mapping[str, int]
    read: Callable[[], Iterator[tuple[str, Weight]]] = field(repr=False, compare=False)
    warnings: list[str] = field(default_factory=list)

    def weights(self) -> Iterator[tuple[str, Weight]]:
        """Every parameter of `Decoder(config)` once, on the CPU, perhaps memory-mapped: copy before keeping.

        Raises:
            CheckpointError: a missing or unknown tensor, a wrong shape or type, or a NaN or infinite weight.
        """
        shapes = expected_shapes(self.config)
        for name, weight in self.read():
            shape = shapes.pop(name, None)
            typed = isinstance(weight, QuantTensor) or weight.dtype in FLOATS
            if shape is None or tuple(weight.shape) != shape or not typed:
                raise CheckpointError(f"{self.path}: {name} changed since the checkpoint was opened")
            if not is_finite(weight):
                raise CheckpointError(f"{self.path}: {name} holds NaN or infinite weights")
            yield name, weight
        if shapes:
            raise CheckpointError(f"{self.path}: {some(shapes)} changed since the checkpoint was opened")


def is_finite(weight: Weight) -> bool:
    """Whether every number is one. NaN and infinity always reach the extremes, and those need no copy of the
    weight: 1.5 ms for ten million bfloat16, where `isfinite` takes 60 ms and 2.5 times their memory.
    """
    if isinstance(weight, QuantTensor) or weight.device.type == "mps":
        return bool(weight.isfinite().all())
    return all(bool(extreme.isfinite()) for extreme in torch.aminmax(weight))


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of `Decoder(config)` by our name; allocates nothing."""
    with torch.device("meta"):
        model = Decoder(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def count_types(weights: Iterable[tuple[str, int]]) -> dict[str, int]:
    """(type name, number of weights) of each tensor → the number of weights in each type, most first."""
    counts: Counter[str] = Counter()
    for name, number in weights:
        counts[name] += number
    return dict(counts.most_common())


def count_dtypes(tensors: Iterable[Tensor]) -> dict[str, int]:
    """The number of weights in each of torch's types, most first."""
    return count_types((str(tensor.dtype).removeprefix("torch."), tensor.numel()) for tensor in tensors)


def architecture_of(config: ModelConfig) -> str:
    """What people call a network with these switches, when its file does not say."""
    return "GPT" if config.rope_theta is None else "Llama-like"


def vocabulary_notes(tokenizer: Tokenizer, config: ModelConfig) -> list[str]:
    """A line when the embedding has padding rows; they are never drawn."""
    padding = config.vocab_size - tokenizer.vocab_size
    known = f"vocabulary: {config.vocab_size} rows, {tokenizer.vocab_size} known to the tokenizer"
    return [f"{known}, the other {padding} are never drawn"] if padding else []


def split_warnings(lines: Iterable[str]) -> tuple[list[str], list[str]]:
    """Notes, and those that begin with "warning: " as warnings."""
    found = list(lines)
    warnings = [line.removeprefix("warning: ") for line in found if line.startswith("warning: ")]
    return [line for line in found if not line.startswith("warning: ")], warnings


def files_digest(paths: Sequence[Path]) -> str:
    """One file's digest, or that of all files' digests."""
    digests = [file_digest(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """First 16 hex digits of the sha256 of a file's bytes; of a large one, of its size and of samples.

    A gigabyte takes about two seconds to hash, so beyond that 1,024 stretches of 64 KiB stand for the whole.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_DIGEST_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        digest = hashlib.sha256(size.to_bytes(8, "little"))
        for i in range(DIGEST_SAMPLES):
            file.seek((size - DIGEST_SAMPLE_BYTES) * i // (DIGEST_SAMPLES - 1))
            digest.update(file.read(DIGEST_SAMPLE_BYTES))
        return digest.hexdigest()[:16]


def some(names: Iterable[object], limit: int = 4) -> str:
    """The first few names and how many more there are: "a, b, c, d and 7 more"."""
    listed = [text[:100] if (text := str(name)).isprintable() else repr(text)[:100] for name in names]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def one_line(error: BaseException) -> str:
    """The first line of an error of somebody else's, for the end of one of ours."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return line if line.isprintable() else repr(line)
