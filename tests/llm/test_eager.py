"""The eager runner's own shortcuts against the model it runs."""

import pytest
import torch

from llm.config import EngineConfig
from llm.runner.eager import FEW_ROWS, EagerRunner
from tests.fakes import tiny_model


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("num_rows", [0, 1, 2, FEW_ROWS, FEW_ROWS + 1])
def test_the_head_from_the_left_is_the_head(num_rows: int, tied_head: bool) -> None:
    model = tiny_model(dtype=torch.float64, tied_head=tied_head)
    runner = EagerRunner(model, EngineConfig(max_model_len=64))
    hidden = torch.randn(num_rows, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = runner._logits(hidden)
    assert logits.shape == (num_rows, 257)
    assert logits.is_contiguous()
    assert torch.allclose(logits, model.logits(hidden), atol=1e-12)
