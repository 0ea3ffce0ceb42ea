"""What changes logits before a token is drawn: penalties, bias, min-p. Rows that want none are not touched.

    repetition   l > 0 ? l / r : l · r      for every id of the prompt and the reply (Keskar et al. 2019)
    frequency    l - f · count              for every id of the reply (OpenAI's definition)
    presence     l - p                      for every id of the reply
    bias         l + b                      for the ids the request names
    min tokens   -inf for the ids that end the reply, until it has that many
    grammar      -inf for the ids that the reply's grammar forbids next
    min-p        -inf where the probability at this temperature is below min_p times the largest

In this order. `adjust` does it for a batch, `adjust_reference` for one row, id by id: its oracle (the grammar
has its own). Refuses to know how tokens are drawn (draws.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from llm.config import SamplingParams
from llm.sampler import Asked
from llm.sequence import Sequence


def is_adjusted(params: SamplingParams) -> bool:
    """Whether a row with these parameters is drawn from other logits than the model's."""
    drawn = params.temperature > 0.0
    return bool(
        params.has_penalties
        or params.logit_bias
        or (drawn and params.min_p)
        or (params.min_tokens and params.stop_token_ids)
    )


@torch.inference_mode()
def adjust(logits: Tensor, asked: Asked, vocab_size: int, masks: Tensor | None = None) -> Tensor:
    """The logits that tokens are drawn from.

    Args:
        logits: (M, V), left as they are.
        asked: M sequences that want a token, with prompt and reply so far, and its position; `rows` does not
            matter here.
        vocab_size: ids the tokenizer knows; those beyond count for nothing.
        masks: of the sequences that follow a grammar, in order: what `llm.grammar.expand` says to add.

    Returns:
        (M, V or vocab_size); the same tensor when no row asks for a change.
    """
    sequences = asked.sequences
    rows = [row for row, sequence in enumerate(sequences) if is_adjusted(sequence.params)]
    ruled = [row for row, sequence in enumerate(sequences) if sequence.matcher is not None]
    assert (masks is None) == (not ruled)
    if not rows and not ruled:
        return logits
    if masks is not None and len(ruled) == len(logits) and not rows:
        return logits[:, :vocab_size] + masks[:, :vocab_size]
    logits = logits.clone() if logits.dtype in (torch.float32, torch.float64) else logits.float()
    for row in rows:
        _adjust_row(logits[row, :vocab_size], sequences[row], asked.positions[row])
    if masks is not None:
        for row, mask in zip(ruled, masks, strict=True):
            logits[row, :vocab_size].add_(mask[:vocab_size])
    for row in rows:
        _cut_improbable(logits[row, :vocab_size], sequences[row].params)
    return logits


def _adjust_row(row: Tensor, sequence: Sequence, position: int) -> None:
    """One row (V,), in place."""
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = _ids(row, sorted({*sequence.prompt, *sequence.output}))
        values = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if (params.frequency_penalty or params.presence_penalty) and sequence.output:
        counts = Counter(sequence.output)
        penalties = [params.frequency_penalty * count + params.presence_penalty for count in counts.values()]
        row[_ids(row, list(counts))] -= row.new_tensor(penalties)
    if params.logit_bias:
        ids, amounts = zip(*params.logit_bias, strict=True)
        row[_ids(row, list(ids))] += row.new_tensor(amounts)
    if position < params.min_tokens and params.stop_token_ids and sequence.matcher is None:
        row[_ids(row, [token for token in params.stop_token_ids if token < len(row)])] = -torch.inf


def _cut_improbable(row: Tensor, params: SamplingParams) -> None:
    """min-p on one row (V,), in place."""
    if params.min_p and params.temperature > 0.0:
        lowest = row.max() + params.temperature * math.log(params.min_p)
        row[row < lowest] = -torch.inf


def _ids(row: Tensor, ids: list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.long, device=row.device)


def adjust_reference(logits: Tensor, params: SamplingParams, prompt: Rows[int], output: Rows[int]) -> Tensor:
    """The slow twin: one row (V,) → a new one, by the formulas above."""
    changed = logits.clone()
    for token in range(len(logits)):
        value, count = float(logits[token]), list(output).count(token)
        if token in prompt or count:
            value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        if count:
            value -= params.frequency_penalty * count + params.presence_penalty
        value += sum(amount for biased, amount in params.logit_bias if biased == token)
        if len(output) < params.min_tokens and token in params.stop_token_ids:
            value = -math.inf
        changed[token] = value
    if params.min_p and params.temperature > 0.0:
        lowest = float(changed.max()) + params.temperature * math.log(params.min_p)
        changed[changed < lowest] = -math.inf
    return changed
