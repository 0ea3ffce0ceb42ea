"""Sample training conversations and the prompt proof: what is served is what was trained.

`samples.jsonl` holds one conversation per line: {"messages": [...], "ids": [...], "trained": [...]}. The
proof renders each through the serving template and compares token ids and loss mask, position by position.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from llm.chat.replies import encode_replies
from llm.chat.template import Message, Role
from llm.checkpoint.record import Checkpoint, Sample
from llm.errors import PromptMismatch
from llm.fields import Fields, parse_object, read_bytes
from llm.tokenizer import Tokenizer

MAX_SAMPLES_BYTES = 8 << 20
_ROLES = ("system", "user", "assistant")


def dump_samples(samples: Iterable[Sample]) -> str:
    """The text of samples.jsonl."""
    lines = (
        {
            "messages": [{"role": m.role, "content": m.content} for m in sample.messages],
            "ids": sample.ids,
            "trained": sample.trained,
        }
        for sample in samples
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read_samples(path: Path, vocab_size: int) -> list[Sample]:
    """Samples of a samples.jsonl; ids must be below vocab_size.

    Raises:
        CheckpointError: a malformed line, named by its number.
    """
    lines = read_bytes(path, MAX_SAMPLES_BYTES).splitlines()
    return [
        _sample(line, f"{path}: line {n}", vocab_size)
        for n, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _sample(line: bytes, where: str, vocab_size: int) -> Sample:
    fields = Fields(parse_object(line, where), where)
    messages = [_message(item, fields) for item in fields.items("messages")]
    ids, trained = fields.items("ids"), fields.items("trained")
    fields.done()
    if not all(type(i) is int and 0 <= i < vocab_size for i in ids):
        fields.refuse(f"ids must be whole numbers below the vocabulary size {vocab_size}")
    if len(trained) != len(ids) or not all(type(t) is bool for t in trained):
        fields.refuse(f"trained must be {len(ids)} times true or false, one for each id")
    return Sample(messages, cast(list[int], ids), cast(list[bool], trained))


def _message(item: object, line: Fields) -> Message:
    if not isinstance(item, dict):
        line.refuse("messages must be objects")
    fields = Fields(item, f"{line.where}: messages")
    role, content = fields.text("role"), fields.text("content")
    fields.done()
    if role not in _ROLES:
        fields.refuse(f"role must be one of {', '.join(_ROLES)}, got {role[:64]!r}")
    return Message(cast(Role, role), content)


def prove_prompts(checkpoint: Checkpoint) -> int:
    """Render every sample through the serving template and compare it with what was trained.

    Returns:
        Samples compared; 0 when the checkpoint carries none.

    Raises:
        PromptMismatch: names the sample, the first differing position and both texts around it.
    """
    tokenizer = checkpoint.tokenizer
    for number, sample in enumerate(checkpoint.samples, start=1):
        ids, trained = encode_replies(tokenizer, checkpoint.template, sample.messages)[-1]
        at = _first_difference(list(zip(ids, trained, strict=True)), _pairs(sample))
        if at is None:
            continue
        raise PromptMismatch(
            f"{checkpoint.path}: prompt proof failed: sample {number} differs at token {at}: "
            f"trained on {_around(tokenizer, sample.ids, sample.trained, at)}, "
            f"served as {_around(tokenizer, ids, trained, at)}"
        )
    return len(checkpoint.samples)


def _pairs(sample: Sample) -> list[tuple[int, bool]]:
    return list(zip(sample.ids, sample.trained, strict=True))


def _first_difference(left: Sequence[object], right: Sequence[object]) -> int | None:
    for at, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return at
    return None if len(left) == len(right) else min(len(left), len(right))


def _around(tokenizer: Tokenizer, ids: list[int], trained: list[bool], at: int) -> str:
    """A few tokens from the difference on, on one line, and whether the first of them was trained."""
    if at >= len(ids):
        return "nothing (the text ends)"
    return f"{tokenizer.decode(ids[at : at + 8])!r} ({'reply' if trained[at] else 'prompt'}, id {ids[at]})"
