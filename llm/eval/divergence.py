"""How far two models of one vocabulary are apart: KL per token, where the first one speaks.

Both read the same ids, the first one's conversations with its own answers; of each position of an answer the
two distributions are compared (`llm.quality` says how). Refuses to know who was right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm.chat.replies import encode_replies
from llm.chat.template import ChatTemplate, Message
from llm.checkpoint import Checkpoint
from llm.config import EngineConfig
from llm.errors import RequestError
from llm.load import make_runner
from llm.placement import resolve_places
from llm.quality import ROWS_AT_ONCE, Quality, Window, compare_windows
from llm.runner import Runner
from llm.runner.native.weights import Quantization
from llm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of all answers together.

    Attributes:
        num_positions: tokens of the answers.
        mean_kl, max_kl: KL(first ‖ second) per token, in nats.
        top1: the share of tokens for which both hold the same id for the most probable.
    """

    num_positions: int
    mean_kl: float
    max_kl: float
    top1: float


def same_vocabulary(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether every id means the same to both."""
    if one.vocab_size != other.vocab_size or dict(one.control) != dict(other.control):
        return False
    return all(one.token_bytes(i) == other.token_bytes(i) for i in range(one.vocab_size))


def answer_window(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], answer: str, longest: int
) -> Window | None:
    """A conversation and its answer as training would write them, of which the answer's tokens count; None
    when none of them is within the first `longest` ids, or the template cannot write them.
    """
    try:
        ids, spoken = encode_replies(tokenizer, template, [*messages, Message("assistant", answer)])[-1]
    except RequestError:
        return None
    end = len(spoken) - spoken[::-1].index(True) if any(spoken) else 0
    begin = end
    while begin and spoken[begin - 1]:
        begin -= 1
    ids = ids[: min(end, longest)]
    return Window(ids, begin - 1) if 0 < begin < len(ids) else None


def compare_answers(
    reference: Checkpoint,
    other: Checkpoint,
    windows: Sequence[Window | None],
    *,
    devices: str,
    quantization: Quantization,
    threads: int,
) -> list[Quality | None]:
    """Each window's, None where there is none. Both models are loaded, each for one window at a time."""
    longest = max((len(window.ids) for window in windows if window is not None), default=2)
    vocab_size = min(c.config.vocab_size for c in (reference, other))
    vocab_size = min(vocab_size, reference.tokenizer.vocab_size)

    def load(checkpoint: Checkpoint) -> Runner:
        config = EngineConfig(max(longest, 2), max_num_seqs=1, max_num_batched_tokens=ROWS_AT_ONCE)
        place = resolve_places(checkpoint, devices, quantization=quantization)[0]
        return make_runner(checkpoint, config, place, threads=threads)

    one, two = load(reference), load(other)
    return [
        None if window is None else compare_windows(one, two, [window], vocab_size=vocab_size)
        for window in windows
    ]


def gather(parts: Sequence[Quality | None]) -> Divergence | None:
    """All answers as one; None without any."""
    found = [part for part in parts if part is not None]
    count = sum(part.num_positions for part in found)
    if not count:
        return None
    return Divergence(
        num_positions=count,
        mean_kl=sum(part.mean_kl * part.num_positions for part in found) / count,
        max_kl=max(part.max_kl for part in found),
        top1=sum(part.top1 * part.num_positions for part in found) / count,
    )
