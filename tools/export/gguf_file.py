"""A merged model as one GGUF file, for llama.cpp, Ollama and LM Studio.

The `gguf` package of the llama.cpp project writes the file; ggml itself, as xllamacpp carries it, rounds the
weights. Which tensor gets how many bits is llama.cpp's own choice (src/llama-quant.cpp). Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import ctypes
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors import safe_open
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer

from stages.settings.errors import Problem
from stages.settings.files import read_json, replace_file
from tools.export import checks, vocabulary
from tools.export.importance import DATA, Importance

ARCHITECTURES = {
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}
EVERY = 6  # of Gemma 3's layers one attends to the whole context, the others to a window: llama.cpp knows it
FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q6_k": gguf.LlamaFileType.MOSTLY_Q6_K,
    "q5_k_m": gguf.LlamaFileType.MOSTLY_Q5_K_M,
    "q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}
WANTED = {"f16": Type.F16, "q8_0": Type.Q8_0, "q6_k": Type.Q6_K, "q5_k_m": Type.Q5_K, "q4_k_m": Type.Q4_K}
# What llama.cpp takes where a row is no multiple of the 256 or 32 weights that a type rounds together.
NARROWER = {
    Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0,
    **dict.fromkeys((Type.Q5_0, Type.Q5_1, Type.Q8_0), Type.F16),
}  # fmt: skip
ROWS = 1024  # that a thread rounds at a time


@dataclass(frozen=True)
class Tensor:
    """One tensor: its GGUF name, its name and file among the safetensors, its shape, and how it is stored."""

    name: str
    source: str
    file: Path
    shape: tuple[int, ...]
    type: Type

    @property
    def size(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return int(np.prod(self.shape)) // block * size


def write(model: Path, path: Path, kind: str, importance: Importance | None = None) -> None:
    """`model` is a folder that transformers loads, `kind` a key of FILE_TYPES. Tensors pass through memory
    one by one.
    """
    weighed = importance.columns if importance else {}
    config, tokenizer = settings(model), AutoTokenizer.from_pretrained(model)
    tensors = plan(model, config, kind)
    with replace_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config["model_type"]]])
        describe(writer, config, FILE_TYPES[kind])
        if importance:
            describe_importance(writer, importance)
        vocabulary.describe(writer, tokenizer, config["vocab_size"], checks.begins(tokenizer))
        factors = rope_factors(config)
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        for tensor in tensors:
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size, tensor.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for tensor in tqdm(
            tensors, desc=f"gguf {kind}", unit="tensor", leave=False, dynamic_ncols=True, disable=None
        ):
            with safe_open(tensor.file, framework="pt") as file:
                weights = as_llama_cpp_has_it(file.get_tensor(tensor.source), tensor.source, config)
                of_columns = weighed.get(tensor.source.removesuffix(".weight"))
                writer.write_tensor_data(stored(weights, tensor, of_columns))
        writer.close()


def settings(model: Path) -> dict:
    """config.json with what it leaves to its class, in the words of transformers 5."""
    return AutoConfig.from_pretrained(model).to_dict()


def check(model: Path) -> None:
    """Raise Problem where llama.cpp would compute something else than a folder's model does, or make other
    tokens.
    """
    kind = read_json(model / "config.json").get("model_type")
    if kind not in ARCHITECTURES:
        raise Problem(
            f"--gguf: model_type is {kind}: a GGUF can be written of {', '.join(ARCHITECTURES)}: export "
            "without --gguf"
        )
    for what, right in supported(settings(model)).items():
        if not right:
            raise Problem(f"--gguf: by its config.json the model has {what}: export without --gguf")
    vocabulary.kind_of(read_json(model / "tokenizer.json"))


def supported(config: dict) -> dict[str, bool]:
    """What llama.cpp would pass over in silence, and whether a model is without it."""
    rope, kind = rotary(config), config["model_type"]
    scaling = {"llama": ("default", "llama3"), "gemma3_text": ("default", "linear")}.get(kind, ("default",))
    found = {
        f"rope_type {rope['rope_type']}": rope["rope_type"] in scaling,
        "a partial_rotary_factor": rope.get("partial_rotary_factor", 1) == 1,
        "use_sliding_window": not config.get("use_sliding_window"),
        "mlp_bias": not config.get("mlp_bias"),
        "attention_bias": not config.get("attention_bias"),
    }
    if kind != "gemma3_text":
        return found | {f"hidden_act {config['hidden_act']}": config["hidden_act"] == "silu"}
    local, layers = config["rope_parameters"]["sliding_attention"], config["layer_types"]
    usual = ["full_attention" if i % EVERY == 0 else "sliding_attention" for i in range(1, len(layers) + 1)]
    activation, scalar = config["hidden_activation"], config["query_pre_attn_scalar"]
    return found | {
        f"hidden_activation {activation}": activation == "gelu_pytorch_tanh",
        f"query_pre_attn_scalar {scalar}": scalar == config["head_dim"],
        "use_bidirectional_attention": not config.get("use_bidirectional_attention"),
        "attn_logit_softcapping": not config.get("attn_logit_softcapping"),
        "rotary positions of its own in layers with a window": (local["rope_type"], local["rope_theta"])
        == ("default", 10000.0),
        f"layer_types other than every {EVERY}th of full attention": layers == usual,
    }


def rotary(config: dict) -> dict:
    """rope_parameters, of Gemma those of its layers of full attention."""
    return config["rope_parameters"].get("full_attention", config["rope_parameters"])


def rope_factors(config: dict) -> np.ndarray | None:
    """What Llama 3 divides the frequency of each pair of a head by: 1 for the fast ones, `factor` for those
    slower than the context it was first trained on, between them what leads from one to the other.
    [head_dim / 2], as transformers' _compute_llama3_parameters has it.
    """
    rope = rotary(config)
    if rope["rope_type"] != "llama3":
        return None
    pairs = np.arange(0, head_size(config), 2) / head_size(config)
    turns = rope["original_max_position_embeddings"] / (2 * math.pi * rope["rope_theta"] ** pairs)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    fast = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / (fast + (1 - fast) / rope["factor"])).astype(np.float32)


def head_size(config: dict) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def as_llama_cpp_has_it(tensor: torch.Tensor, source: str, config: dict) -> torch.Tensor:
    """Gemma's norms with the 1 that is added to them. Llama's queries and keys with the two halves of a
    head, which are turned together, beside one another: pair by pair.
    """
    part = source.split(".")[-2]
    if config["model_type"] == "gemma3_text" and part.endswith("norm"):
        return tensor.float() + 1
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    if config["model_type"] == "llama" and part in heads:
        return tensor.unflatten(0, (heads[part], 2, -1)).transpose(1, 2).flatten(0, 2)
    return tensor


def plan(model: Path, config: dict, kind: str) -> list[Tensor]:
    layers = config["num_hidden_layers"]
    names = gguf.get_tensor_name_map(ARCHITECTURES[config["model_type"]], layers)
    found = []
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for source in file.keys():  # noqa: SIM118 (it is no dict)
                name = names.get_name(source, (".weight", ".bias"))
                shape = tuple(file.get_slice(source).get_shape())
                stored_as = type_of(name, shape, kind, layers, config["tie_word_embeddings"])
                found.append(Tensor(name, source, path, shape, stored_as))
    return found


def type_of(name: str, shape: tuple[int, ...], kind: str, layers: int, tied: bool) -> Type:
    """llama.cpp's mixtures: more bits for the head, and for values and down projections of the first, last
    and every third layer.
    """
    if len(shape) == 1:
        return Type.F32
    wanted = WANTED[kind]
    if kind.endswith("_m") and (
        name == ("token_embd.weight" if tied else "output.weight") or is_sensitive(name, layers)
    ):
        wanted = Type.Q6_K
    while shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
        wanted = NARROWER[wanted]
    return wanted


def is_sensitive(name: str, layers: int) -> bool:
    _, layer, part, *_ = [*name.split("."), "", ""]
    if part not in ("attn_v", "ffn_down"):
        return False
    first, layer = layers // 8, int(layer)
    return layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2


def stored(tensor: torch.Tensor, of: Tensor, importance: np.ndarray | None) -> np.ndarray:
    """Its bytes in the file. `importance` of its columns, float32."""
    if of.type in (Type.F16, Type.F32):
        return tensor.to({Type.F16: torch.float16, Type.F32: torch.float32}[of.type]).numpy()
    rows, columns = of.shape
    weights, result = np.ascontiguousarray(tensor.float().numpy()), np.empty(of.size, np.uint8)
    quantise = ggml_quantize_chunk()
    of_columns = None if importance is None else ctypes.c_void_p(importance.ctypes.data)

    def work(first: int) -> None:
        source, target = (ctypes.c_void_p(array.ctypes.data) for array in (weights, result))
        quantise(of.type, source, target, first * columns, min(ROWS, rows - first), columns, of_columns)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # ggml lets go of the interpreter's lock
        list(pool.map(work, range(0, rows, ROWS)))
    return result


def ggml_quantize_chunk() -> ctypes._CFuncPtr:
    """ggml's own function (ggml.h): type, float32 weights, target, first weight, rows, weights per row,
    importance or null → bytes.
    """
    from xllamacpp import xllamacpp

    try:
        function = ctypes.CDLL(xllamacpp.__file__).ggml_quantize_chunk
    except AttributeError:
        cure = "export --gguf f16 and run llama.cpp's llama-quantize on it"
        raise Problem(f"--gguf: this system's xllamacpp does not offer ggml's quantisation: {cure}") from None
    function.restype = ctypes.c_size_t
    function.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    return function


def describe(writer: gguf.GGUFWriter, config: dict, file_type: gguf.LlamaFileType) -> None:
    rope, size = rotary(config), head_size(config)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if config["model_type"] == "gemma3_text":
        writer.add_sliding_window(config["sliding_window"])


def describe_importance(writer: gguf.GGUFWriter, importance: Importance) -> None:
    """As llama-quantize notes it, but for the file of the matrix, of which there is none."""
    writer.add_string("quantize.imatrix.dataset", DATA.as_posix())
    writer.add_int32("quantize.imatrix.entries_count", len(importance.columns))
    writer.add_int32("quantize.imatrix.chunks_count", importance.rows)
