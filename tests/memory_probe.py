"""Measure on a CPU what a training step keeps and needs at most, as it would be on a GPU.

Three things are done as the GPU does them: the mask of a dropout is one byte a value, TRL's Triton kernels
work in place on their tile, and PEFT sees autocast switched on (on a CPU it asks for CUDA's).
"""

import weakref

import pytest
import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from trl.kernels import chunked_logprob
from trl.trainer import utils
from trl.trainer.utils import add_fused_lm_head

from stages.model.rows import train_rows
from stages.settings.memory import Run, Shape
from stages.settings.params import Lora


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors made inside that are alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {tensor.untyped_storage()._cdata for tensor in tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in given | set(self.sizes):
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata)
        self.peak = max(self.peak, self.now)
        return out

    def free(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor)]


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def dropout(x: torch.Tensor, p: float, training: bool, inplace: bool = False) -> torch.Tensor:
        return torch.native_dropout(x, p, True)[0] if training else x

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    monkeypatch.setattr(
        torch, "is_autocast_enabled", lambda device="cpu": torch._C.is_autocast_enabled("cpu")
    )
    monkeypatch.setattr(utils, "_use_triton", lambda device: True)  # score trained positions only
    for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
        monkeypatch.setattr(chunked_logprob, name, lambda *args, **kwargs: None)


def config_of(shape: Shape) -> PretrainedConfig:
    sizes = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
    }
    if shape.masks == 2:
        kinds = ["sliding_attention"] * (shape.layers - 1) + ["full_attention"]
        sizes |= {"layer_types": kinds, "query_pre_attn_scalar": shape.head_dim}
    return kind_of(shape)(**sizes, attn_implementation="sdpa")


def kind_of(shape: Shape) -> type[PretrainedConfig]:
    if shape.qk_norm:
        return Gemma3TextConfig if shape.norms == 4 else Qwen3Config
    return Qwen2Config if shape.attention_bias else LlamaConfig


def adapter_of(lora: Lora, token_rows: dict[str, list[int]] | None = None) -> LoraConfig:
    return LoraConfig(
        r=lora.r,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
        trainable_token_indices=token_rows,
    )


def model_of(run: Run) -> PreTrainedModel:
    """A random model of the run's shape, as the stages load it."""
    model = AutoModelForCausalLM.from_config(config_of(run.shape), dtype=getattr(torch, run.dtype))
    if run.quantization == "nf4":
        quantise(model, getattr(torch, run.dtype))
    add_fused_lm_head(model)
    if run.lora:
        tables = ["embed_tokens"] if run.shape.tied else ["embed_tokens", "lm_head"]
        rows = {name: [1, 2] for name in tables} if run.token_rows else None
        model = train_rows(get_peft_model(model, adapter_of(run.lora, rows)))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            parameter.grad = torch.zeros_like(parameter)
    return model.train()


def quantise(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Every linear layer but the LM head in nf4 with double quantisation."""
    for parent in list(model.model.layers.modules()):
        for name, linear in list(parent.named_children()):
            if type(linear) is torch.nn.Linear:
                small = (
                    without_values(linear, dtype)
                    if isinstance(linear.weight, FakeTensor)
                    else with_values(linear, dtype)
                )
                small.support_avx512bf16_for_cpu = False
                setattr(parent, name, small)
    model.is_loaded_in_4bit = True


def with_values(linear: torch.nn.Linear, dtype: torch.dtype) -> Linear4bit:
    small = Linear4bit(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        dtype,
        compress_statistics=True,
        quant_type="nf4",
    )
    small.load_state_dict(linear.state_dict())
    return small.to("cpu")


def without_values(linear: torch.nn.Linear, dtype: torch.dtype) -> Linear4bit:
    """The same in fake tensors: bitsandbytes has their arithmetic, but cannot make its weights of them."""
    with unset_fake_temporarily():
        small = Linear4bit(64, 1, False, dtype, compress_statistics=True, quant_type="nf4")
    blocks = linear.weight.numel() // 64
    nested = QuantState(
        torch.zeros(-(-blocks // 256)), code=torch.zeros(256), blocksize=256, dtype=torch.float32
    )
    small.quant_state = QuantState(
        torch.zeros(blocks, dtype=torch.uint8),
        shape=linear.weight.shape,
        code=torch.zeros(16),
        blocksize=64,
        quant_type="nf4",
        dtype=dtype,
        offset=torch.zeros(()),
        state2=nested,
    )
    small.weight = torch.nn.Parameter(torch.zeros(blocks * 32, 1, dtype=torch.uint8), requires_grad=False)
    wanted = {
        "quant_state": small.quant_state,
        "compress_statistics": True,
        "quant_type": "nf4",
        "blocksize": 64,
        "bnb_quantized": True,
    }
    for name, value in wanted.items():
        setattr(small.weight, name, value)
    small.in_features, small.out_features, small.bias = linear.in_features, linear.out_features, linear.bias
    return small


def step(run: Run) -> tuple[int, int]:
    """Bytes that a forward pass leaves for the backward pass, and the most that both had alive, without
    weights and gradients.
    """
    model = model_of(run)
    if run.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if run.lora:
            model.enable_input_require_grads()
    sequences = run.batch_size * run.rows
    ids = torch.randint(0, run.shape.vocabulary, (sequences, run.length))
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0  # padding, so that a mask is needed
    with Live() as live:
        with torch.autocast("cpu", getattr(torch, run.dtype), enabled=run.width < 4):
            loss = model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True).loss
        kept = live.now
        loss.backward()
    return kept, live.peak


def no_grad_pass(run: Run) -> int:
    """The most that log-probabilities without gradients have alive."""
    model = model_of(run).eval()
    ids = torch.randint(0, run.shape.vocabulary, (run.batch_size * run.rows, run.length))
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    with (
        Live() as live,
        torch.no_grad(),
        torch.autocast("cpu", getattr(torch, run.dtype), enabled=run.width < 4),
    ):
        model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True)
    return live.peak


def prefill(run: Run) -> tuple[int, int]:
    """Bytes of the cache after the base has read a prompt, and the most that were alive."""
    model = model_of(run).eval()
    ids = torch.randint(0, run.shape.vocabulary, (1, run.length))
    with Live() as live, torch.no_grad(), model.disable_adapter():
        cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers), live.peak
