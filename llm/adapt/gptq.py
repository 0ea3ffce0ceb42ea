"""4-bit rounding that knows a layer's inputs: what one weight's rounding gets wrong, later ones make up for.

After Frantar et al. 2022 (GPTQ). With H = Σ x xᵀ over the layer's inputs x, rounding a row w to w' costs
(w - w') H (w - w')ᵀ, the error of its output. The columns are rounded from the first to the last, and each
one's error is spread over those still to come, as makes the cost grow least: by its row of U, the upper
triangle with UᵀU = H⁻¹. A group's scale and minimum are fitted to its weights as they stand by then.

Blocks are taken in order, and each sees what the rounded blocks before it put out. Refuses to know files.

    >>> rounded = round_matrix(weight, inputs.T @ inputs)          # (out, in), (in, in) → q4_1
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llm.adapt.quant import GROUP, QuantTensor, assemble_q4_1, fit_q4_1, nearest_q4_1
from llm.kv.concat import NoCache
from llm.model import Angles, Decoder

DAMPING = 0.01
"""Of H's mean diagonal, added to the diagonal: inputs that were seldom seen are not believed to be zero."""


def round_matrix(weight: Tensor, hessian: Tensor) -> QuantTensor:
    """The matrix in q4_1, rounded for these inputs.

    Args:
        weight: (out, in) floats, in a multiple of 32.
        hessian: (in, in), the sum of x xᵀ.

    Raises:
        ValueError: weights that the format cannot hold.
    """
    rows, columns = weight.shape
    upper = _inverse_root(hessian)  # (in, in)
    left = weight.detach().float().clone()  # the weights, corrected for the errors of columns before
    scales = torch.empty(rows, columns // GROUP, 2)
    codes = torch.empty(rows, columns // GROUP, GROUP)
    for number, start in enumerate(range(0, columns, GROUP)):
        end = start + GROUP
        group = left[:, start:end]  # (out, 32)
        scales[:, number], codes[:, number], errors = _round_group(group, upper[start:end, start:end])
        left[:, end:] -= errors @ upper[start:end, end:]  # once a group: the same sums, in one product
    return assemble_q4_1(scales, codes)


def _round_group(group: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One group's columns (out, 32), corrected in place on the way.

    Returns:
        Scales and minima (out, 2), numbers from 0 to 15 (out, 32), and what to take off later columns, in
        multiples of U's rows (out, 32).
    """
    fitted = fit_q4_1(group)
    scale, minimum = fitted.unbind(1)
    codes, errors = torch.empty_like(group), torch.empty_like(group)
    for j in range(GROUP):
        column = group[:, j]
        codes[:, j] = code = nearest_q4_1(column, scale, minimum)
        errors[:, j] = error = (column - (code * scale + minimum)) / upper[j, j]
        group[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    return fitted, codes, errors


@contextmanager
def _one_thread() -> Iterator[None]:
    """A column is too small to share: two threads on two busy cores took five times as long as one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _inverse_root(hessian: Tensor) -> Tensor:
    """The upper triangle U with UᵀU = H⁻¹, float32; H damped, in float64.

    H turned round, last column first, is LLᵀ; L turned back is V, an upper triangle with VVᵀ = H. Then
    U = V⁻¹, without ever inverting H, which took ten times as long.
    """
    damped = hessian.double()
    damping = DAMPING * float(damped.diagonal().mean()) + 1e-12  # without any input: plain rounding
    identity = torch.eye(len(damped), dtype=torch.float64)
    turned = torch.linalg.cholesky((damped + damping * identity).flip(0, 1))
    root: Tensor = torch.linalg.solve_triangular(turned.flip(0, 1), identity, upper=True)
    return root.float()


@torch.no_grad()
def round_blocks(
    model: Decoder, windows: Sequence[Sequence[int]], wanted: Collection[str]
) -> Iterator[tuple[str, QuantTensor]]:
    """Matrices of the blocks, by our names, rounded for what the windows put in; in the network's order.

    The model is on the CPU in float32, and its own weights become what they were rounded to.

    Args:
        windows: token ids, each read from its beginning.
        wanted: names of the weights to round.

    Raises:
        ValueError: weights that the format cannot hold.
    """
    streams = [_enter(model, ids) for ids in windows]  # (T, C), and the angles of its positions
    for index, block in enumerate(model.blocks):
        linears = {
            f"blocks.{index}.{name}.weight": module
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        }
        linears = {name: linear for name, linear in linears.items() if name in wanted}
        for name, hessian in _watch(block, linears, streams).items():
            with _one_thread():
                rounded = round_matrix(linears[name].weight, hessian)
            linears[name].weight.copy_(rounded.dequantize())
            yield name, rounded
        streams = [(block(x, angles, NoCache()), angles) for x, angles in streams]


Stream = tuple[Tensor, Angles | None]


def _enter(model: Decoder, ids: Sequence[int]) -> Stream:
    """What the first block gets of a window: (1, T, C)."""
    positions = torch.arange(len(ids))
    x = model.tokens(torch.tensor([list(ids)]))
    if model.positions is not None:
        x = x + model.positions(positions)
    return x, None if model.rotary is None else model.rotary(positions, x.dtype)


def _watch(
    block: nn.Module, linears: Mapping[str, nn.Linear], streams: Sequence[Stream]
) -> dict[str, Tensor]:
    """Σ x xᵀ over what each of the layers gets, (in, in)."""
    sums = {name: torch.zeros(linear.in_features, linear.in_features) for name, linear in linears.items()}
    with ExitStack() as stack:
        for name, linear in linears.items():
            handle = linear.register_forward_pre_hook(partial(_add_inputs, sums[name]))
            stack.callback(handle.remove)
        for x, angles in streams if linears else ():
            block(x, angles, NoCache())
    return sums


def _add_inputs(total: Tensor, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    rows = inputs[0].flatten(0, -2)  # (T, in)
    total.addmm_(rows.T, rows)
