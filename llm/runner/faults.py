"""What an exception of a forward pass means: this batch failed, memory was short, or the device is lost.

torch tells them apart by class on accelerators and by words on a CPU. Refuses to know who waits.
"""

from __future__ import annotations

import torch

from llm.errors import DeviceLost, OutOfMemory, StepFailed

_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "_status_alloc_failed")
_LOST = ("cuda error", "cuda driver error", "hip error", "cublas_status", "cudnn_status")
"""In the messages of RuntimeErrors, which is all that older and foreign allocators and drivers raise."""


def fault_of(error: BaseException) -> type[StepFailed]:
    """The error that those who wait for the batch are to get."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return OutOfMemory
    said = str(error).lower() if isinstance(error, RuntimeError) else ""
    if any(words in said for words in _NO_MEMORY):
        return OutOfMemory
    if isinstance(error, torch.AcceleratorError) or any(words in said for words in _LOST):
        return DeviceLost
    return StepFailed


def release_memory(device: torch.device) -> None:
    """Give back what torch keeps for later, so that the next batch finds the largest piece there can be."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
