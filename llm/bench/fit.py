"""What a decode step's time is made of, fitted over streams and contexts.

    seconds = weights + row · streams + token · streams · context

The first is there whatever is computed: all weights are read. A row is what a stream more computes with them,
a token what it reads and computes of one cached token more. Least squares of relative errors, none of the
three below 0. Refuses to know how steps were timed.

    >>> fit([(1, 64, 0.003), (4, 64, 0.0044), (16, 64, 0.011), (16, 512, 0.018)]).shares(16, 512)
    {'weights': 0.14, 'rows': 0.45, 'cache': 0.41}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

Step = tuple[int, int, float]
"""Streams, tokens that each sees, seconds."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Seconds of a step's parts.

    Attributes:
        weights: of any step.
        row: of a stream in it.
        token: of each token that a stream sees.
        worst: largest relative error among the steps it was made from.
    """

    weights: float
    row: float
    token: float
    worst: float

    def shares(self, streams: int, context: int) -> dict[str, float]:
        """Parts of a step, of 1."""
        parts = {
            "weights": self.weights,
            "rows": self.row * streams,
            "cache": self.token * streams * context,
        }
        return {name: seconds / sum(parts.values()) for name, seconds in parts.items()}


def fit(steps: Iterable[Step]) -> Fit | None:
    """The parts, or None where these steps do not tell them apart: both streams and contexts must vary."""
    found = list(steps)
    if len({streams for streams, _, _ in found}) < 2 or len({context for _, context, _ in found}) < 2:
        return None
    seconds = np.array([took for _, _, took in found])
    terms = np.array([[1.0, streams, streams * context] for streams, context, _ in found])
    relative = terms / seconds[:, None]
    best = min(_fits(relative), key=lambda parts: float(((relative @ parts - 1) ** 2).sum()))
    weights, row, token = (float(part) for part in best)
    return Fit(weights, row, token, float(np.abs(relative @ best - 1).max()))


def _fits(relative: np.ndarray) -> Iterable[np.ndarray]:
    """The least squares of each choice of terms that needs none below 0; the best of them is the least of all
    such fits.
    """
    for count in (3, 2, 1):
        for chosen in combinations(range(3), count):
            parts = np.zeros(3)
            parts[list(chosen)] = np.linalg.lstsq(relative[:, chosen], np.ones(len(relative)), rcond=None)[0]
            if (parts >= 0).all():
                yield parts
