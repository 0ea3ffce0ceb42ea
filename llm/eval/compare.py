"""One checkpoint examined: its answers, its score, its perplexity. Two of them side by side.

Both get the same conversations and seeds, each in its own template and by its own policy, one after the
other, so that only one is in memory. Refuses to know how a comparison is written down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from llm.checkpoint import Checkpoint, open_checkpoint
from llm.config import BLOCK_SIZE
from llm.eval.answers import answer_all, running
from llm.eval.cases import Case, Score, grade
from llm.eval.divergence import (
    Divergence,
    answer_window,
    compare_answers,
    gather,
    same_vocabulary,
)
from llm.eval.passages import Passage, measure_all
from llm.hardware import usable_cores
from llm.likelihood import Likelihood
from llm.load import load_text_model
from llm.quality import Quality
from llm.runner.native.weights import Quantization
from llm.text import TextModel

MAX_MODEL_LEN = 4096
"""Tokens of a conversation and of a window of text: 131,072 positions would need the memory of as many."""
CACHE_TOKENS = 16 << 10
"""Tokens with keys and values at a time: of SmolLM2-135M 0.75 GB in float32."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On what a checkpoint is examined.

    Attributes:
        cases, passages: questions, and texts to score; either may be empty.
        seeds: of the answers; None is greedy.
        max_tokens: of an answer.
        devices, quantization, threads: what computes; the weights as they are unless told otherwise.
    """

    cases: Sequence[Case] = ()
    passages: Sequence[Passage] = ()
    seeds: Sequence[int | None] = (None,)
    max_tokens: int = 60
    devices: str = "auto"
    quantization: Quantization = "none"
    threads: int = field(default_factory=usable_cores)


@dataclass(frozen=True, slots=True)
class Findings:
    """What came of it.

    Attributes:
        name: the checkpoint's.
        answers, scores: for each seed.
        likelihoods: of each passage.
    """

    name: str
    checkpoint: Checkpoint
    answers: list[list[str]]
    scores: list[Score]
    likelihoods: list[Likelihood]

    @property
    def likelihood(self) -> Likelihood:
        """Of all passages."""
        return sum(self.likelihoods, Likelihood())


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two checkpoints on the same terms.

    Attributes:
        first, second: KL is measured where the first one speaks.
        kl: of each question's first answer; empty when the vocabularies differ.
        divergence: of all of them, None when the vocabularies differ or nothing was asked.
    """

    terms: Terms
    first: Findings
    second: Findings
    kl: list[Quality | None]
    divergence: Divergence | None


def examine(path: str, terms: Terms) -> Findings:
    """Load a checkpoint and ask it everything.

    Raises:
        CheckpointError, DataError, DeviceError, OptionError, RequestError, EngineError: one line each.
    """
    checkpoint = open_checkpoint(path)
    length = min(checkpoint.config.num_positions, MAX_MODEL_LEN)
    model = load_text_model(
        checkpoint,
        devices=terms.devices,
        quantization=terms.quantization,
        threads=terms.threads,
        max_model_len=length,
        num_blocks=max(CACHE_TOKENS, length) // BLOCK_SIZE + 1,
    )
    answers, likelihoods = asyncio.run(_ask(model, terms))
    scores = [grade(terms.cases, said) for said in answers] if terms.cases else []
    return Findings(checkpoint.name, checkpoint, answers, scores, likelihoods)


async def _ask(model: TextModel, terms: Terms) -> tuple[list[list[str]], list[Likelihood]]:
    async with running(model):
        likelihoods = await measure_all(model, terms.passages)
        conversations = [case.messages for case in terms.cases]
        answers = await answer_all(model, conversations, terms.seeds, terms.max_tokens)
        return answers, likelihoods


def compare(first: Findings, second: Findings, terms: Terms) -> Comparison:
    """Put two side by side, and measure how far they are apart."""
    one, two = first.checkpoint, second.checkpoint
    if first.name == second.name:  # two runs' best, say: their places tell them apart
        first, second = replace(first, name=str(one.path)), replace(second, name=str(two.path))
    kl: list[Quality | None] = []
    if terms.cases and same_vocabulary(one.tokenizer, two.tokenizer):
        longest = min(one.config.num_positions, two.config.num_positions, MAX_MODEL_LEN)
        windows = [
            answer_window(one.tokenizer, one.template, case.messages, answer, longest)
            for case, answer in zip(terms.cases, first.answers[0], strict=True)
        ]
        kl = compare_answers(
            one,
            two,
            windows,
            devices=terms.devices,
            quantization=terms.quantization,
            threads=terms.threads,
        )
    return Comparison(terms, first, second, kl, gather(kl))
