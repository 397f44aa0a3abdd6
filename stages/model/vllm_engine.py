"""Sampled answers by vLLM, for GPUs where it is installed (it is none of the requirements). Its interface is
that of vLLM's documentation (docs.vllm.ai: LLM, SamplingParams, LoRARequest) and is tested against a stand-in
with the same signatures; it was not run.

The tokens of prompts, the stop tokens and the seeds are those that transformers would be given. The answers
are others all the same: its kernels round otherwise, and it draws otherwise.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

from stages.model.device import compute_dtype, no_gpu
from stages.model.generation import Row, Wanted
from stages.settings import manifest
from stages.settings.errors import Problem
from stages.settings.files import read_json
from stages.settings.params import Weights

CHUNK = 2048  # answers that are asked together, and kept together
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has kernels for: its max_lora_rank
OTHERWISE = "or take sample.engine: transformers"


def require(folder: Path) -> None:
    """Raise Problem where vLLM cannot answer as the checkpoint in `folder`, before anything is loaded."""
    if find_spec("vllm") is None:
        raise Problem(f"sample.engine is 'vllm', which is not installed: pip install vllm, {OTHERWISE}")
    if not torch.cuda.is_available():
        raise Problem(f"sample.engine is 'vllm', which needs a GPU, and {no_gpu()}: {OTHERWISE}")
    adapter = adapter_of(folder)
    for key in ("use_dora", "modules_to_save", "trainable_token_indices"):
        if adapter.get(key):
            raise Problem(
                f"sample.engine is 'vllm', which serves no adapter with {key}, as {folder} has one: train "
                f"without, {OTHERWISE}"
            )


def adapter_of(folder: Path) -> dict:
    """The settings of an adapter; of a whole model none."""
    config = folder / "adapter_config.json"
    return read_json(config) if config.exists() else {}


def sample(weights: Weights, folder: Path, wanted: Wanted, stops: list[int]) -> None:
    """The answers that are left, of the checkpoint in `folder`."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    adapter, settings = adapter_of(folder), wanted.settings
    rank = max([adapter.get("r", 1), *adapter.get("rank_pattern", {}).values()])
    lora = {"enable_lora": True, "max_lora_rank": min(one for one in RANKS if one >= rank)}
    engine = LLM(
        model=str(manifest.base_folder() if adapter else folder),
        skip_tokenizer_init=True,
        dtype=str(compute_dtype(weights)).removeprefix("torch."),
        max_model_len=max(map(len, wanted.rows)) + settings.limit,
        **(lora if adapter else {}),
    )
    request = LoRARequest(folder.name, 1, str(folder.resolve())) if adapter else None
    left = wanted.left
    for chunk in (left[i : i + CHUNK] for i in range(0, len(left), CHUNK)):
        found = engine.generate(
            [{"prompt_token_ids": wanted.rows[place]} for place in chunk],
            [
                SamplingParams(
                    temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.limit,
                    seed=wanted.seeds[place], stop_token_ids=stops, ignore_eos=True, detokenize=False,
                )
                for place in chunk
            ],
            lora_request=request,
        )  # fmt: skip
        wanted.keep({place: ended(one.outputs[0], stops) for place, one in zip(chunk, found)})


def ended(output, stops: list[int]) -> Row:
    """Its tokens, with the stop token at their end where it stopped: whether vLLM gives it, its documentation
    leaves open.
    """
    tokens = list(output.token_ids)
    lacks = output.finish_reason == "stop" and tokens[-1:] != [output.stop_reason]
    return [*tokens, output.stop_reason] if lacks and output.stop_reason in stops else tokens
