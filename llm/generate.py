"""The course's two generation loops, kept slow and obvious: the oracles of the engine.

`generate_naive` runs the whole context for every token and computes logits at all positions, as the course's
first loop does. `generate_cached` prefills once and then feeds one token at a time, its position offset by
the cached length. Both stop with "length" when a sequence fills the model's positions, where the course's
loop crashes.

    >>> generate_naive(model, prompt, SamplingParams(max_tokens=8, temperature=0))
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llm.config import SamplingParams
from llm.kv.concat import ConcatCache, NoCache
from llm.model import Decoder
from llm.sampler.draws import sample_reference
from llm.sampler.logits import adjust_reference, is_adjusted
from llm.sequence import FinishReason

NextLogits = Callable[[list[int]], Tensor]


def generate_naive(
    model: Decoder, prompt: list[int], params: SamplingParams, max_model_len: int | None = None
) -> tuple[list[int], FinishReason]:
    """Draw a reply, recomputing everything at every step.

    Args:
        model: in eval mode.
        prompt: at least one id, fewer than the limit.
        params: as in the engine; same params, same draws. A padded head's extra rows may be drawn.
        max_model_len: longest prompt + reply in tokens, the model's positions when None.

    Returns:
        New ids (a stop token included) and why they end.
    """

    def next_logits(tokens: list[int]) -> Tensor:
        ids = torch.tensor([tokens], device=model.device)  # (1, T)
        positions = torch.arange(len(tokens), device=model.device)  # (T,)
        return model.logits(model(ids, positions, NoCache()))[
            0, -1
        ]  # all positions computed, the last one used

    return _generate(model, prompt, params, max_model_len, next_logits)


def generate_cached(
    model: Decoder, prompt: list[int], params: SamplingParams, max_model_len: int | None = None
) -> tuple[list[int], FinishReason]:
    """Draw a reply, keeping keys and values: one prefill, then one token per step. Arguments as above."""
    cache = ConcatCache()

    def next_logits(tokens: list[int]) -> Tensor:
        past = len(cache)
        ids = torch.tensor([tokens[past:]], device=model.device)  # (1, T)
        positions = torch.arange(past, len(tokens), device=model.device)  # (T,)
        return model.logits(model(ids, positions, cache)[:, -1:])[0, -1]  # (V,)

    return _generate(model, prompt, params, max_model_len, next_logits)


@torch.inference_mode()
def _generate(
    model: Decoder,
    prompt: list[int],
    params: SamplingParams,
    max_model_len: int | None,
    next_logits: NextLogits,
) -> tuple[list[int], FinishReason]:
    positions = model.config.num_positions
    limit = positions if max_model_len is None else min(max_model_len, positions)
    assert 0 < len(prompt) < limit, f"a prompt of {len(prompt)} tokens leaves no room in {limit} positions"
    tokens = list(prompt)
    while True:
        output = tokens[len(prompt) :]
        logits = next_logits(tokens)
        if is_adjusted(params):
            logits = adjust_reference(logits, params, prompt, output)
        token = sample_reference(logits, params, len(output))
        tokens.append(token)
        if token in params.stop_token_ids:
            return tokens[len(prompt) :], FinishReason.STOP
        if len(tokens) - len(prompt) >= params.max_tokens or len(tokens) >= limit:
            return tokens[len(prompt) :], FinishReason.LENGTH
