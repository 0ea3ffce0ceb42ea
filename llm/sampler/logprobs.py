"""How probable the model thought tokens: log probabilities of chosen ones, their ranks, and the best others.

Read from the logits as the model gave them, before penalties, bias, grammar and temperature. Refuses to know
who asked and how a token was drawn.

>>> measure(torch.tensor([[0.0, 0.0, -9.0]]), [1], [2], 3)[0].top
((0, -0.693...), (1, -0.693...))
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from llm.sequence import Logprob


@torch.inference_mode()
def measure(
    logits: Tensor, tokens: Rows[int], num_top: Rows[int | None], vocab_size: int
) -> list[Logprob | None]:
    """Log probabilities, row by row.

    Args:
        logits: (R, V).
        tokens: of each row the token that is asked about; below 0 for none.
        num_top: of each row how many of the best to name; None for a row that does not ask.
        vocab_size: ids the tokenizer knows; those beyond count for nothing.

    Returns:
        One for each row that asks about a token.
    """
    asked = [row for row, count in enumerate(num_top) if count is not None and tokens[row] >= 0]
    result: list[Logprob | None] = [None] * len(logits)
    if not asked:
        return result
    rows = logits[asked, :vocab_size]  # (A, V)
    rows = rows if rows.dtype == torch.float64 else rows.float()
    total = rows.logsumexp(-1, keepdim=True)  # (A, 1)
    ids = torch.tensor([tokens[row] for row in asked], device=rows.device).unsqueeze(1)  # (A, 1)
    chosen = rows.gather(-1, ids)  # (A, 1)
    ranks = ((rows > chosen).sum(-1) + 1).tolist()  # (A,)
    values = (chosen - total).squeeze(1).tolist()  # (A,)
    widest = min(max(num_top[row] or 0 for row in asked), vocab_size)
    best, best_ids = rows.topk(widest, dim=-1)  # (A, k)
    names, best_values = best_ids.tolist(), (best - total).tolist()
    for i, row in enumerate(asked):
        count = num_top[row] or 0
        top = tuple(zip(names[i][:count], best_values[i][:count], strict=True))
        result[row] = Logprob(tokens[row], values[i], ranks[i], top)
    return result
