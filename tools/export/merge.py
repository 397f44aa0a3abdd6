"""An adapter merged into its base, shard by shard: one shard and one layer are in memory at a time.

W' = W + scale · B A (Hu et al. 2021, arXiv 2106.09685), by PEFT's own code, so that rank-stabilised and
weight-decomposed adapters are right, too, and in float32. W is what the adapter was trained on: of a 4-bit
base, the weights that its 4-bit values stand for. Merged into the 16-bit weights of such a base an adapter
answers differently; merged into 4-bit weights it is mostly rounded away.
"""

from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from stages.base import INDEX, model_files
from stages.settings.files import read_json, write_json
from stages.settings.params import Weights


def merge(weights: Weights, base: Path, adapter: Path | None, out: Path) -> None:
    """Write the weights of `base` to `out` in the dtype that params.yaml gives the model, with the adapter in
    them, if there is one.
    """
    model = skeleton(base)
    own = {name for name, _ in model.named_parameters()}  # a tied one once: what every loader looks for
    model.to_empty(device="cpu")  # allocated and never touched, so it takes up no memory
    quantised = linear_layers(model) if weights.quantization == "nf4" and adapter else set()
    layers, rows = (adapted_layers(model, adapter), token_rows(adapter)) if adapter else ({}, {})
    dtype = getattr(torch, weights.dtype)
    where, left_out = {}, []
    shards = [
        base / name
        for name in model_files([path.name for path in base.iterdir()])
        if name.endswith(".safetensors")
    ]
    for shard in tqdm(shards, desc="merge", unit="shard", leave=False, dynamic_ncols=True, disable=None):
        tensors = {}
        with safe_open(shard, framework="pt") as file:
            for held in file.keys():  # noqa: SIM118 (it is no dict)
                name = held if held in own else f"model.{held}"  # saved without its head
                if name not in own:
                    left_out.append(held)
                    continue
                layer, tensor = name.removesuffix(".weight"), file.get_tensor(held)
                if layer in quantised:
                    tensor = through_nf4(tensor, dtype)
                if layer in layers:
                    tensor = merged(layers[layer], tensor)
                if layer.rpartition(".")[2] in rows:
                    ids, values = rows[layer.rpartition(".")[2]]
                    tensor = tensor.index_copy(0, ids, values.to(tensor.dtype))
                tensors[name] = tensor.to(dtype).contiguous()
        save_file(tensors, out / shard.name, metadata={"format": "pt"})
        (out / shard.name).chmod(0o644)  # safetensors makes files that only their owner reads
        where |= dict.fromkeys(tensors, shard.name)
    if len(set(where.values())) > 1:
        write_json(out / INDEX, {"metadata": read_json(base / INDEX)["metadata"], "weight_map": where})
    if left_out:
        print(f"note: left out what the model has no weights for: {', '.join(left_out)}")


def skeleton(base: Path) -> PreTrainedModel:
    """The modules of the model with its head, whose weights are nowhere."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))


def linear_layers(model: PreTrainedModel) -> set[str]:
    """Those that bitsandbytes holds in 4 bits: all but the head."""
    head = model.get_output_embeddings()
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def adapted_layers(model: PreTrainedModel, adapter: Path) -> dict[str, BaseTunerLayer]:
    """The layers that an adapter changes, by their names in the base."""
    adapted = PeftModel.from_pretrained(model, adapter)
    return {
        name: module
        for name, module in adapted.get_base_model().named_modules()
        if isinstance(module, BaseTunerLayer) and not isinstance(module, TrainableTokensLayer)
    }


def token_rows(adapter: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The rows of embedding and LM head that were trained whole, by the names of the modules: ids and
    values.
    """
    indices = PeftConfig.from_pretrained(adapter).trainable_token_indices or {}
    weights = load_file(adapter / "adapter_model.safetensors")
    values = {
        name.split(".")[-3]: tensor
        for name, tensor in weights.items()
        if name.endswith(".trainable_tokens_delta")
    }
    return {name: (torch.tensor(ids), values[name]) for name, ids in indices.items()}


def through_nf4(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What stages/model/modeling.py's 4-bit model computes with in place of a weight."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    return dequantize_4bit(*quantize_4bit(tensor.to(dtype), compress_statistics=True, quant_type="nf4"))


def merged(layer: BaseTunerLayer, tensor: torch.Tensor) -> torch.Tensor:
    weight = layer.get_base_layer().weight
    weight.data = tensor.float()
    layer.merge()
    result, weight.data = weight.data, torch.empty(0)
    return result
