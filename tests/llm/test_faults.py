"""What an exception of a forward pass means to those who wait for it."""

from __future__ import annotations

import pytest
import torch

from llm.errors import DeviceLost, OutOfMemory, StepFailed
from llm.runner.faults import fault_of


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ValueError("out of memory"), StepFailed),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), StepFailed),
        (AssertionError(), StepFailed),
        (MemoryError(), OutOfMemory),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), OutOfMemory),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), OutOfMemory),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            OutOfMemory,
        ),
        (torch.AcceleratorError("an illegal memory access was encountered"), DeviceLost),
        (RuntimeError("CUDA error: device-side assert triggered"), DeviceLost),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling"), DeviceLost),
    ],
    ids=str,
)
def test_faults(error: Exception, fault: type[StepFailed]) -> None:
    assert fault_of(error) is fault


def test_what_torch_says_when_a_cpu_has_no_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 55)
    assert fault_of(raised.value) is OutOfMemory
