"""Rounding by a layer's inputs: the algorithm against its definition, and what it is for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llm.adapt.gptq import DAMPING, round_blocks, round_matrix
from llm.adapt.quant import GROUP, fit_q4_1, nearest_q4_1, quantize
from llm.kv.concat import NoCache
from llm.model import Decoder
from tests.checkpoint_writers import LLAMA, random_weights
from tests.fakes import tiny_model


def correlated(num_rows: int, width: int, seed: int = 0) -> Tensor:
    """Inputs of which a few directions carry most, as a network's do: (rows, in)."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(num_rows, width // 8, generator=generator) @ torch.randn(
        width // 8, width, generator=generator
    )
    return few + 0.3 * torch.randn(num_rows, width, generator=generator)


def matrix(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def slowly(weight: Tensor, hessian: Tensor) -> Tensor:
    """Column by column by the definition: H's inverse of the columns that are left, made anew each time.

    The best correction of the columns R that are left, for an error e in column j, is
    -e · H⁻¹[j, R] / H⁻¹[j, j],
    with H⁻¹ the inverse of H over j and R.
    """
    damped = hessian.double()
    damped = damped + DAMPING * damped.diagonal().mean() * torch.eye(len(damped), dtype=torch.float64)
    left, out = weight.double().clone(), torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        if j % GROUP == 0:
            scale, minimum = fit_q4_1(left[:, j : j + GROUP].float()).unbind(1)
        out[:, j] = nearest_q4_1(left[:, j].float(), scale, minimum) * scale + minimum
        inverse = damped[j:, j:].inverse()
        left[:, j:] -= ((left[:, j] - out[:, j]) / inverse[0, 0])[:, None] * inverse[0]
    return out


def cost(weight: Tensor, rounded: Tensor, inputs: Tensor) -> float:
    """Squared error of the layer's output."""
    return float((inputs @ (weight - rounded).T).square().sum())


def test_it_is_the_slow_algorithm() -> None:
    inputs, weight = correlated(200, 96), matrix(8, 96)
    expected = slowly(weight, inputs.T @ inputs)
    found = round_matrix(weight, inputs.T @ inputs).dequantize()
    same = (found - expected).abs() <= 1e-5
    assert float(same.float().mean()) > 0.97, "a number in the middle of two may fall to either"


@pytest.mark.parametrize("seed", range(3))
def test_it_beats_the_fit_on_correlated_inputs(seed: int) -> None:
    """On inputs it did not learn from, by far; in the weights' own error it is the worse one."""
    weight, learned, held = matrix(64, 128, seed + 9), correlated(512, 128, seed), correlated(512, 128, seed)
    held = held.flip(0)[:256]
    fitted = quantize(weight, "q4_1").dequantize()
    rounded = round_matrix(weight, learned[:256].T @ learned[:256]).dequantize()
    assert cost(weight, rounded, held) < 0.6 * cost(weight, fitted, held)
    own = torch.eye(128)
    assert cost(weight, rounded, own) > cost(weight, fitted, own)


def test_without_inputs_it_is_the_fit() -> None:
    weight = matrix(16, 64)
    assert torch.equal(round_matrix(weight, torch.zeros(64, 64)).data, quantize(weight, "q4_1").data)


def logits(model: Decoder, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return model.logits(model(torch.tensor([ids]), torch.arange(len(ids)), NoCache()))


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_blocks_are_rounded_in_order_and_put_into_the_model(family: str) -> None:
    model = tiny_model(scale=4.0, width=64, ffn_width=96)
    if family == "llama":
        model = Decoder(LLAMA)
        model.load_state_dict(random_weights(LLAMA))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    windows = [[(7 * i + j * j) % 250 for j in range(20 + i)] for i in range(12)]
    wanted = [name for name in before if name.startswith("blocks.") and before[name].ndim == 2]
    wanted.remove("blocks.1.attention.out.weight")
    rounded = dict(round_blocks(model, windows, wanted))
    assert list(rounded) == wanted
    last = wanted[-1]
    assert not torch.equal(rounded[last].data, quantize(before[last], "q4_1").data), "it had inputs, too"
    for name, parameter in model.named_parameters():
        expected = rounded[name].dequantize() if name in rounded else before[name]
        assert torch.equal(parameter, expected), name
    fitted = Decoder(model.config)
    fitted.load_state_dict(
        {n: quantize(w, "q4_1").dequantize() if n in rounded else w for n, w in before.items()}
    )
    original = Decoder(model.config)
    original.load_state_dict(before)
    errors = [
        sum(float((logits(m, ids) - logits(original, ids)).square().sum()) for ids in windows)
        for m in (model, fitted)
    ]
    assert errors[0] < errors[1]
