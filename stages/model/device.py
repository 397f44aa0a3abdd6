"""The device that a model is on: which precision it computes in, and how much memory was used."""

import resource

import torch

from stages.settings.params import Weights


def compute_dtype(weights: Weights) -> torch.dtype:
    """The dtype that params.yaml asks for, or float16 where the GPU is too old for bfloat16 (before
    Ampere).
    """
    wanted = getattr(torch, weights.dtype)
    if (
        wanted == torch.bfloat16
        and torch.cuda.is_available()
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        return torch.float16
    return wanted


def peak_memory() -> float:
    """GB (2**30 bytes): of the GPU's allocator, or of this process where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
