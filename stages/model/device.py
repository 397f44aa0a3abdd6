"""The device that a model is on: whether it will do, which precision it computes in, and how much memory was
used.
"""

import os
import resource
import shutil
import sysconfig
from pathlib import Path

import torch
from transformers import PreTrainedModel

from stages.settings import memory
from stages.settings.errors import Problem
from stages.settings.params import Params, Weights
from stages.settings.reader import read

GB = 2**30
COMPILERS = ("cc", "gcc", "clang")  # of which Triton takes the first
MARGIN = 0.03  # of the GPU's free memory, for what an allocator cannot use


def require(name: str) -> None:
    """Raise Problem, before anything is loaded, where a stage (sft, dpo, refine-<item>; evaluate, which
    trains nothing) would fail on this machine, or take days.
    """
    params = read()  # the whole file: as with the memory plan, what only checks is no dependency
    require_whole_models()
    if name != "evaluate" and (why := memory.unplanned(params.chosen_model.weights)):
        print(f"{name}: the memory of {params.model} is {why}", flush=True)
    if not torch.cuda.is_available():
        if params.chosen_model.weights.repo and not params.hardware.cpu:
            raise Problem(
                f"{params.model} needs a GPU, and {no_gpu()}; hardware.cpu: true runs it on the CPU all "
                "the same"
            )
        return
    if name != "evaluate":
        require_one_gpu_a_process()
        require_compiler()
        require_memory(params, name)


def no_gpu() -> str:
    """Why torch sees none."""
    if not torch.backends.cuda.is_built():
        return f"this PyTorch ({torch.__version__}) is one for CPUs"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return f"PyTorch says: {' '.join(str(error).split())}"
    return "PyTorch sees none (nvidia-smi, CUDA_VISIBLE_DEVICES)"


def require_whole_models() -> None:
    """A stage loads, asks and saves a whole model in every process; FSDP would spread its weights."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1"):
        raise Problem(
            "this was launched with FSDP, which no stage is made for: launch with a whole model on each GPU "
            "(workflows/accelerate/ddp.yaml), and lower memory by quantization: nf4"
        )


def require_one_gpu_a_process() -> None:
    """Several GPUs in one process would be used by torch's DataParallel, which no stage is made for."""
    if (count := torch.cuda.device_count()) > 1 and "WORLD_SIZE" not in os.environ:
        raise Problem(
            f"this process sees {count} GPUs: choose one by CUDA_VISIBLE_DEVICES=0, or use all by `launch`: "
            "docs/scaling.md"
        )


def require_compiler() -> None:
    """TRL's fused LM head is a Triton kernel, which is compiled at the first step."""
    if not any(map(shutil.which, COMPILERS)):
        raise Problem("no C compiler, which Triton needs at the first step: apt install build-essential")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise Problem("no Python.h, which Triton needs at the first step: apt install python3-dev")


def require_memory(params: Params, name: str) -> None:
    """Against what is free now: another process, or a desktop, takes its share of hardware.vram_gb."""
    # this process has its context already
    free = torch.cuda.mem_get_info()[0] * (1 - MARGIN) + memory.CONTEXT
    run = next((run for run in memory.runs(params) if run.stage == name), None)
    if run and memory.predicted(run) > free / GB:
        needs = (
            f"{name} needs {memory.predicted(run):.1f} GB, and {free / GB:.1f} are free on this GPU "
            "(nvidia-smi)"
        )
        raise Problem(memory.explain(run, needs, free / GB))


def described(model: PreTrainedModel) -> str:
    """Where a model computes and how, in a few words."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    how = f"{dtype} weights, attention by {model.config._attn_implementation}"
    if model.device.type != "cuda":
        return f"on the CPU ({torch.get_num_threads()} threads), {how}"
    free, total = torch.cuda.mem_get_info(model.device)
    return (
        f"on {torch.cuda.get_device_name(model.device)}, {free / GB:.1f} of {total / GB:.1f} GB free, {how}"
    )


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
        return torch.cuda.max_memory_allocated() / GB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB
