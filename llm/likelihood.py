"""How probable a model thinks a text that is already there: negative log likelihood and perplexity.

Of a conversation the assistant's tokens count: what training weighs (`llm.chat.replies`), and no more. Of a
plain text every token counts but the first, which follows nothing. All in nats. A text is read once, as a
prompt whose every position is asked for. Refuses to know files and requests.

    >>> texts = read_chat(model.tokenizer, model.template, messages)
    >>> [likelihood(text, await measure(model, text.ids)).perplexity for text in texts]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from llm.chat.replies import encode_replies
from llm.chat.template import ChatTemplate, Message
from llm.chat.tools import Tool
from llm.choice import TextDelta
from llm.config import SamplingParams
from llm.sequence import FinishReason, Logprob
from llm.sequence import Sequence as TokenSequence
from llm.terms import DEFAULT_TERMS, Observer, Terms
from llm.text import TextModel
from llm.tokenizer import Tokenizer

MOST_NATS = 700.0
"""The logarithm of the largest perplexity that is told: e^710 is no float."""
IMPOSSIBLE = -9999.0
"""What is said for the logarithm of zero: sums stay numbers, and JSON has no minus infinity. Peers say this.
"""


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A text as a model reads it.

    Attributes:
        ids: at least one.
        counts: of each id, whether it is scored; the first never is.
    """

    ids: list[int]
    counts: list[bool]

    @property
    def num_scored(self) -> int:
        """Tokens that count."""
        return sum(self.counts)

    def windows(self, longest: int) -> Iterator[ScoredText]:
        """Parts of at most `longest` ids, at least 2, nothing before a part seen. The next begins with the
        last id of the one before, so that each id that counts does so once.
        """
        assert longest >= 2, longest
        for start in range(0, max(len(self.ids) - 1, 1), longest - 1):
            counts = self.counts[start : start + longest]
            yield ScoredText(self.ids[start : start + longest], [False, *counts[1:]])


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of one text or, added up, of many.

    Attributes:
        nll: −Σ ln p of the tokens that count.
        num_tokens: how many they are.
    """

    nll: float = 0.0
    num_tokens: int = 0

    def __add__(self, other: Likelihood) -> Likelihood:
        return Likelihood(self.nll + other.nll, self.num_tokens + other.num_tokens)

    @property
    def mean(self) -> float:
        """Nats per token; 0 of no tokens."""
        return self.nll / self.num_tokens if self.num_tokens else 0.0

    @property
    def perplexity(self) -> float:
        """e^mean: among how many equally probable tokens the model would have had to guess."""
        return math.exp(min(self.mean, MOST_NATS))


def read_chat(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool] = ()
) -> list[ScoredText]:
    """A conversation with all its replies, each of which counts once.

    Usually one text; several where a template writes a turn differently once others follow.

    Raises:
        RequestError: the template refuses the conversation, or does not write a reply after its prompt.
    """
    stretches = encode_replies(tokenizer, template, messages, tools)
    return [ScoredText(ids, [False, *trained[1:]]) for ids, trained in stretches]


def read_text(ids: list[int]) -> ScoredText:
    """A plain text: all of it counts but the first id."""
    return ScoredText(ids, [False, *[True] * (len(ids) - 1)])


async def measure(model: TextModel, ids: list[int], terms: Terms = DEFAULT_TERMS) -> list[Logprob]:
    """What the model thought of each id from the second on.

    Args:
        ids: 1 to max_model_len - 1: the engine draws a token after them, which nobody sees.
        terms: on which they are read.

    Raises:
        EngineError: as TextModel.stream.
    """
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    if terms.observer is not None:
        terms = replace(terms, observer=_Unheard(terms.observer))
    scores: list[Logprob] = []
    stream = model.stream(ids, params, strip=False, template_ends=False, terms=terms)
    async with aclosing(stream):
        async for deltas in stream:
            for delta in deltas:
                scores += delta.prompt_logprobs
    return scores


class _Unheard:
    """Tells an observer of a reply without tokens: the one that was drawn is nobody's."""

    def __init__(self, observer: Observer) -> None:
        self.submitted: Callable[[Sequence[TokenSequence]], None] = observer.submitted
        self.ended: Callable[[BaseException | None], None] = observer.ended
        self._received = observer.received

    def received(self, delta: TextDelta) -> None:
        """Only that it goes on, and that it is over."""
        finish = None if delta.finish is None else FinishReason.STOP
        self._received(TextDelta(delta.choice, "", 0, finish, at=delta.at))


def likelihood(text: ScoredText, scores: Sequence[Logprob]) -> Likelihood:
    """Add up what counts.

    Args:
        scores: of the ids from the second on.
    """
    pairs = zip(scores, text.counts[1:], strict=True)
    counted = [finite(score.value) for score, counts in pairs if counts]
    return Likelihood(0.0 - math.fsum(counted), len(counted))  # never -0.0


def finite(value: float) -> float:
    """A log probability that is a number; NaN counts as impossible."""
    return value if value > IMPOSSIBLE else IMPOSSIBLE
