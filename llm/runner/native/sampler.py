"""The sampler of the native runner: one pass of C over each row's logits, on the kernel's threads.

What a sequence asks for is written once, when it joins; a step writes positions and rows. The tokens are
those of `llm.sampler.eager`, its oracle, but where a uniform number lies within rounding of a border. No
row's token depends on another row or on the number of threads. Refuses to know how a row is drawn
(kernel/draw.h) and why it asks.

    >>> runner.run(batch).sampler.draw(logits, Asked.next(batch.asking, batch.draws), vocab_size)
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as Rows

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.runner.native.binding import Draws, Kernel, Questions, Sampling
from llm.runner.native.sampling import Recipe
from llm.sampler import Asked
from llm.sampler.logprobs import measure
from llm.sequence import Logprob, Sequence


class NativeSampler:
    """See Sampler. Its logits are float32 rows in the host's memory, one behind the other."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._ballot = Ballot()
        self._questionnaire = Questionnaire()

    def draw(
        self, logits: Tensor, asked: Asked, vocab_size: int, masks: NDArray[np.uint8] | None = None
    ) -> list[int]:
        """See Sampler."""
        ballot, count = self._ballot, len(asked.sequences)
        ballot.fill(asked)
        draws = ballot.draws
        draws.num_rows, draws.vocab_size = count, vocab_size
        draws.logits, draws.stride = _address(logits), logits.shape[1]
        if masks is not None:
            assert masks.flags.c_contiguous and 8 * masks.shape[1] >= vocab_size, masks.shape
            draws.masks, draws.mask_bytes = masks.ctypes.data, masks.shape[1]
        assert ballot.num_masks == (0 if masks is None else len(masks)), ballot.num_masks
        self._kernel.draw(draws)
        tokens: list[int] = ballot.tokens[:count].tolist()
        return tokens

    def measure(
        self,
        logits: Tensor,
        rows: Rows[int],
        tokens: Rows[int],
        num_top: Rows[int | None],
        vocab_size: int,
    ) -> list[Logprob | None]:
        """See Sampler. A row that C leaves alone, because it is no numbers, is left to torch."""
        counts = [
            -1 if count is None or token < 0 else min(count, vocab_size)
            for count, token in zip(num_top, tokens, strict=True)
        ]
        result: list[Logprob | None] = [None] * len(counts)
        asked = [i for i, count in enumerate(counts) if count >= 0]
        if not asked:
            return result
        form = self._questionnaire
        form.fill([rows[i] for i in asked], [tokens[i] for i in asked], [counts[i] for i in asked])
        questions = form.questions
        questions.num_rows, questions.vocab_size = len(asked), vocab_size
        questions.logits, questions.stride = _address(logits), logits.shape[1]
        self._kernel.measure(questions)
        for i, answer in zip(asked, form.answers(len(asked)), strict=True):
            if answer is None:
                row = logits[rows[i]].unsqueeze(0)
                (answer,) = measure(row, [tokens[i]], [num_top[i]], vocab_size)
            result[i] = answer
        return result


def _address(logits: Tensor) -> int:
    assert logits.dtype is torch.float32 and logits.device.type == "cpu" and logits.is_contiguous()
    return logits.data_ptr()


class Ballot:
    """The arrays of a draw. Who draws changes when a sequence joins or leaves; what each wants never does."""

    def __init__(self) -> None:
        self.draws = Draws()
        self.num_masks = 0
        self._members: list[Sequence] = []
        self._recipes: dict[int, Recipe] = {}  # of the members, by sequence
        self._growing: list[tuple[Recipe, Sampling]] = []  # with penalties: a row's, and where it stands
        self._make_room(16)

    def fill(self, asked: Asked) -> None:
        """Rows and positions of a step, and what was said since the last."""
        count = len(asked.sequences)
        if asked.sequences != self._members:
            self._enlist(asked.sequences)
        self.rows[:count] = asked.rows
        self.positions[:count] = asked.positions
        for recipe, told in self._growing:
            recipe.catch_up(told)

    def _enlist(self, sequences: list[Sequence]) -> None:
        if len(sequences) > len(self.tokens):
            self._make_room(2 * len(sequences))
        recipes: dict[int, Recipe] = {}
        self._growing = []
        self.num_masks = 0
        for i, sequence in enumerate(sequences):
            recipe = recipes.get(sequence.id) or self._recipes.get(sequence.id) or Recipe(sequence)
            recipes[sequence.id] = recipe
            self._samplings[i] = recipe.sampling
            if recipe.is_growing:
                self._growing.append((recipe, self._samplings[i]))
            self.mask_rows[i] = -1 if sequence.matcher is None else self.num_masks
            self.num_masks += sequence.matcher is not None
        self._recipes, self._members = recipes, list(sequences)

    def _make_room(self, count: int) -> None:
        self.rows, self.positions, self.mask_rows, self.tokens = np.zeros((4, count), np.int32)
        self._samplings = (Sampling * count)()
        draws = self.draws
        draws.rows, draws.positions = self.rows.ctypes.data, self.positions.ctypes.data
        draws.mask_rows, draws.tokens = self.mask_rows.ctypes.data, self.tokens.ctypes.data
        draws.samplings = ctypes.cast(self._samplings, ctypes.POINTER(Sampling))


class Questionnaire:
    """The arrays of a measurement."""

    def __init__(self) -> None:
        self.questions = Questions()
        self._width = -1
        self._make_room(16, 0)

    def fill(self, rows: list[int], tokens: list[int], counts: list[int]) -> None:
        """What is asked of which rows."""
        count, width = len(rows), max(counts)
        if count > len(self.rows) or width > self._width:
            self._make_room(max(count, len(self.rows)), max(width, self._width))
        self.rows[:count], self.tokens[:count], self.counts[:count] = rows, tokens, counts

    def answers(self, count: int) -> list[Logprob | None]:
        """Of the first `count` rows; None for one that was left alone."""
        tokens, counts = self.tokens[:count].tolist(), self.counts[:count].tolist()
        values, ranks = self.values[:count].tolist(), self.ranks[:count].tolist()
        ids, best = self.top_ids[:count].tolist(), self.top_values[:count].tolist()
        return [
            Logprob(tokens[i], values[i], ranks[i], tuple(zip(ids[i][:n], best[i][:n], strict=True)))
            if ranks[i]
            else None
            for i, n in enumerate(counts)
        ]

    def _make_room(self, count: int, width: int) -> None:
        self._width = width
        self.rows, self.tokens, self.counts, self.ranks = np.zeros((4, count), np.int32)
        self.values = np.zeros(count, np.float32)
        self.top_ids = np.zeros((count, width), np.int32)
        self.top_values = np.zeros((count, width), np.float32)
        questions = self.questions
        questions.width = width
        questions.rows, questions.tokens = self.rows.ctypes.data, self.tokens.ctypes.data
        questions.num_top, questions.ranks = self.counts.ctypes.data, self.ranks.ctypes.data
        questions.values = self.values.ctypes.data
        questions.top_ids, questions.top_values = self.top_ids.ctypes.data, self.top_values.ctypes.data
