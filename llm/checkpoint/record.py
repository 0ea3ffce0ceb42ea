"""What opening a checkpoint yields, whatever its format: config, tokenizer, policy, and weights on call.

Refuses to know formats: each hands over a function that reads its tensors. Whatever that function yields is
checked here, tensor by tensor, so no format can forget to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from llm.chat.template import Message, PlainTemplate
from llm.config import GenerationDefaults, ModelConfig
from llm.errors import CheckpointError
from llm.model import Decoder
from llm.tokenizer import Tokenizer

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types a weight may have on disk."""


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
        kind: "folder" or "state dict".
        config: what the network is.
        template: how conversations are written.
        tokenizer: knows at most config.vocab_size ids.
        defaults: what a request gets for the fields it does not send.
        samples: training conversations, for the prompt proof; may be empty.
        notes: what was guessed, chosen or ignored, one line each.
        digest: first 16 hex digits of the sha256 of the weights file.
        read: yields (our parameter name, tensor); use `weights`, which checks them.
    """

    path: Path
    name: str
    kind: str
    config: ModelConfig
    template: PlainTemplate
    tokenizer: Tokenizer
    defaults: GenerationDefaults
    samples: list[Sample]
    notes: list[str]
    digest: str
    read: Callable[[], Iterator[tuple[str, Tensor]]] = field(repr=False, compare=False)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter of `Decoder(config)` once, on the CPU, perhaps memory-mapped: copy before keeping.

        Raises:
            CheckpointError: a missing or unknown tensor, a wrong shape or type, or a NaN or infinite weight.
        """
        shapes = expected_shapes(self.config)
        for name, tensor in self.read():
            shape = shapes.pop(name, None)
            if shape is None or tuple(tensor.shape) != shape or tensor.dtype not in FLOATS:
                raise CheckpointError(f"{self.path}: {name} changed since the checkpoint was opened")
            if not bool(tensor.isfinite().all()):
                raise CheckpointError(f"{self.path}: {name} holds NaN or infinite weights")
            yield name, tensor
        if shapes:
            raise CheckpointError(f"{self.path}: {some(shapes)} changed since the checkpoint was opened")


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of `Decoder(config)` by our name; allocates nothing."""
    with torch.device("meta"):
        model = Decoder(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def vocabulary_notes(tokenizer: Tokenizer, config: ModelConfig) -> list[str]:
    """A line when the embedding has padding rows; they are never drawn."""
    padding = config.vocab_size - tokenizer.vocab_size
    known = f"vocabulary: {config.vocab_size} rows, {tokenizer.vocab_size} known to the tokenizer"
    return [f"{known}, the other {padding} are never drawn"] if padding else []


def file_digest(path: Path) -> str:
    """First 16 hex digits of the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def some(names: Iterable[object], limit: int = 4) -> str:
    """The first few names and how many more there are: "a, b, c, d and 7 more"."""
    listed = [text[:100] if (text := str(name)).isprintable() else repr(text)[:100] for name in names]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def one_line(error: BaseException) -> str:
    """The first line of an error of somebody else's, for the end of one of ours."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return line if line.isprintable() else repr(line)
