"""Files to batches: conversations with a loss mask, or text cut into windows.

A conversation is rendered by the template that serves it, so training and serving share every token id. Which
batch belongs to which step is a pure function of (seed, step): a resumed run sees the same data without a
saved position. Refuses to know models, devices and optimisers.

    >>> examples = [encode_chat(tokenizer, template, chat) for chat in read_chats("chat.jsonl")]
    >>> batches = ChatBatches(examples, batch_size=64, seed=1); batches[0].ids.shape
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm.chat.template import ChatTemplate, Message, Role, encode_segments
from llm.errors import DataError
from llm.tokenizer import Tokenizer

IGNORE = -100
"""Target of a position that has none: padding, or a token the model is not taught to write."""

ROLES: tuple[Role, ...] = ("system", "user", "assistant")
"""Whose turns are trained on; tools are not among them yet."""

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation: ids (n,) and, for each, whether the model is taught to write it (n,)."""

    ids: Ids
    trained: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step learns from.

    Attributes:
        ids: (B, T) input ids, int64; padding is id 0 after the last token, which no earlier token sees.
        targets: (B, T) the id that follows each, or IGNORE.
        weights: (B, T) float32 share of each target in the loss; 0 where the target is IGNORE.
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor


class Batches(Protocol):
    """Batches by step number, without end: step n is the same batch every time it is asked for."""

    def __getitem__(self, step: int) -> Batch: ...

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every example is seen once."""


def read_jsonl(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each non-empty line's place ("file:3") and object.

    Raises:
        DataError: no such file, not UTF-8, or a line that is no JSON object.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(value, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, got {type(value).__name__}")
        yield f"{path}:{number}", value


def read_messages(where: str, value: object) -> list[Message]:
    """The messages of one conversation, checked.

    Args:
        where: "file:line", for the error.
        value: what stands under "messages".

    Raises:
        DataError: not a non-empty list of {"role", "content"}, or an unknown role.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: messages must be a non-empty list")
    messages = []
    for index, item in enumerate(value):
        role: Any = item.get("role") if isinstance(item, dict) else None
        content = item.get("content") if isinstance(item, dict) else None
        if role not in ROLES:
            raise DataError(f"{where}: messages[{index}].role is {role!r}, expected {', '.join(ROLES)}")
        if not isinstance(content, str) or not content.strip():
            raise DataError(f"{where}: messages[{index}].content must be non-empty text")
        messages.append(Message(role, content))
    return messages


def read_chats(path: str | Path) -> list[list[Message]]:
    """Conversations of a chat JSONL file, one {"messages": [{"role", "content"}, …]} per line.

    Raises:
        DataError: as read_jsonl and read_messages, a conversation without a reply, or no conversation at all.
    """
    chats = []
    for where, value in read_jsonl(path):
        messages = read_messages(where, value.get("messages"))
        if not any(message.role == "assistant" for message in messages):
            raise DataError(f"{where}: no assistant message, so there is nothing to learn")
        chats.append(messages)
    if not chats:
        raise DataError(f"{path}: no conversations")
    return chats


def read_documents(path: str | Path) -> list[str]:
    """Documents of a text file (one, the whole file) or of a .jsonl file (one {"text": …} per line).

    Raises:
        DataError: unreadable, no "text", or nothing but white space.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        documents = []
        for where, value in read_jsonl(path):
            if not isinstance(value.get("text"), str):
                raise DataError(f'{where}: expected {{"text": "…"}}')
            documents.append(value["text"])
    else:
        try:
            documents = [path.read_text(encoding="utf-8")]
        except OSError as error:
            raise DataError(f"{path}: cannot read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text at byte {error.start}") from None
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise DataError(f"{path}: no text")
    return documents


def encode_chat(tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]) -> Example:
    """One conversation as the server would render it, all replies included and marked as trained."""
    ids, trained = encode_segments(tokenizer, template.render(messages, generate=False))
    return Example(np.array(ids, dtype=np.int32), np.array(trained, dtype=np.bool_))


def collate(examples: Sequence[Example], prompt_weight: float = 0.0) -> Batch:
    """Pad conversations to the longest of them.

    Args:
        examples: at least one, each of at least two ids.
        prompt_weight: weight of the targets the model is not taught to write; 0 leaves them out.
    """
    length = max(len(example.ids) for example in examples) - 1
    ids = np.zeros((len(examples), length), dtype=np.int64)  # (B, T)
    targets = np.full((len(examples), length), IGNORE, dtype=np.int64)  # (B, T)
    weights = np.zeros((len(examples), length), dtype=np.float32)  # (B, T)
    for row, example in enumerate(examples):
        count = len(example.ids) - 1
        weight = np.where(example.trained[1:], 1.0, prompt_weight)  # (count,)
        ids[row, :count] = example.ids[:-1]
        targets[row, :count] = np.where(weight > 0, example.ids[1:], IGNORE)
        weights[row, :count] = weight
    return Batch(torch.from_numpy(ids), torch.from_numpy(targets), torch.from_numpy(weights))


class ChatBatches:
    """Conversations in batches of like length.

    Each epoch shuffles the examples, sorts runs of 32 batches by length, so that little is padding, and
    shuffles the batches again.

    Args:
        examples: at least one.
        batch_size: conversations per batch; the last batch of an epoch may have fewer.
        seed: of the shuffles.
        prompt_weight: as in `collate`.
    """

    RUN = 32

    def __init__(
        self, examples: Sequence[Example], batch_size: int, seed: int, prompt_weight: float = 0.0
    ) -> None:
        assert examples and batch_size > 0
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.prompt_weight = prompt_weight
        self._lengths = np.array([len(example.ids) for example in examples])
        self._epoch = -1
        self._order: list[npt.NDArray[np.intp]] = []

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        return collate([self.examples[i] for i in self._order[index]], self.prompt_weight)

    def _shuffle(self, epoch: int) -> list[npt.NDArray[np.intp]]:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.examples))
        run = self.RUN * self.batch_size
        batches = []
        for start in range(0, len(order), run):
            part = order[start : start + run]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        return [batches[i] for i in random.permutation(len(batches))]


class TextBatches:
    """Windows of one long stream of ids, every target trained.

    Args:
        ids: all documents, one after another.
        window: T, inputs per row; the stream needs window + 1 ids.
        batch_size: rows per batch.
        seed: of the shuffles; each epoch also cuts at another offset, leaving out less than a window.
    """

    def __init__(self, ids: Ids, window: int, batch_size: int, seed: int) -> None:
        assert len(ids) > window > 0 and batch_size > 0
        self.ids = ids
        self.window = window
        self.batch_size = batch_size
        self.seed = seed

    @property
    def steps_per_epoch(self) -> int:
        return -(-self._num_windows // self.batch_size)

    @property
    def _num_windows(self) -> int:
        return (len(self.ids) - 1) // self.window

    def __getitem__(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        random = np.random.default_rng([self.seed, epoch])
        slack = len(self.ids) - 1 - self._num_windows * self.window
        offset = int(random.integers(slack + 1))
        chosen = random.permutation(self._num_windows)[
            index * self.batch_size : (index + 1) * self.batch_size
        ]
        starts = offset + chosen * self.window  # (B,)
        rows = self.ids[starts[:, None] + np.arange(self.window + 1)].astype(np.int64)  # (B, T+1)
        ids, targets = torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())
        return Batch(ids, targets, torch.ones(ids.shape))


def join_documents(tokenizer: Tokenizer, documents: Sequence[str]) -> Ids:
    """Ids of all documents, an end-of-text after each where the vocabulary has one."""
    ids: list[int] = []
    for document in documents:
        ids += tokenizer.encode(document)
        if tokenizer.end_of_text is not None:
            ids.append(tokenizer.end_of_text)
    return np.array(ids, dtype=np.int32)
