"""A merged Qwen2 or Qwen3 model as one GGUF file, for llama.cpp, Ollama and LM Studio.

The `gguf` package of the llama.cpp project writes the file; ggml itself, as xllamacpp carries it, rounds the
weights. Which tensor gets how many bits is llama.cpp's own choice (src/llama-quant.cpp). Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import ctypes
import json
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
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stages.settings.errors import Problem
from stages.settings.files import read_json, replace_file

ARCHITECTURES = {"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
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


def write(model: Path, path: Path, kind: str) -> None:
    """`model` is a folder that transformers loads, `kind` a key of FILE_TYPES. Tensors pass through memory
    one by one.
    """
    config = read_json(model / "config.json")
    tensors = plan(model, config, kind)
    with replace_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, config["model_type"])
        describe(writer, config, FILE_TYPES[kind])
        describe_tokenizer(writer, AutoTokenizer.from_pretrained(model), config["vocab_size"])
        for tensor in tensors:
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size, tensor.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tqdm(
            tensors, desc=f"gguf {kind}", unit="tensor", leave=False, dynamic_ncols=True, disable=None
        ):
            with safe_open(tensor.file, framework="pt") as file:
                writer.write_tensor_data(stored(file.get_tensor(tensor.source), tensor))
        writer.close()


def check(config: dict) -> None:
    if config["model_type"] not in ARCHITECTURES:
        raise Problem(
            f"--gguf: model_type is {config['model_type']}: a GGUF can be written of "
            f"{', '.join(ARCHITECTURES)}"
        )
    if (
        config.get("rope_scaling")
        or (config.get("rope_parameters") or {}).get("rope_type", "default") != "default"
    ):
        raise Problem(
            "--gguf: config.json scales its rotary positions, which is not supported: export without --gguf"
        )


def plan(model: Path, config: dict, kind: str) -> list[Tensor]:
    layers = config["num_hidden_layers"]
    names = gguf.get_tensor_name_map(ARCHITECTURES[config["model_type"]], layers)
    found = []
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for source in file.keys():  # noqa: SIM118 (it is no dict)
                name, shape = (
                    names.get_name(source, (".weight", ".bias")),
                    tuple(file.get_slice(source).get_shape()),
                )
                found.append(
                    Tensor(
                        name,
                        source,
                        path,
                        shape,
                        type_of(name, shape, kind, layers, config["tie_word_embeddings"]),
                    )
                )
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


def stored(tensor: torch.Tensor, of: Tensor) -> np.ndarray:
    """Its bytes in the file."""
    if of.type in (Type.F16, Type.F32):
        return tensor.to({Type.F16: torch.float16, Type.F32: torch.float32}[of.type]).numpy()
    rows, columns = of.shape
    weights, result = np.ascontiguousarray(tensor.float().numpy()), np.empty(of.size, np.uint8)
    quantise = ggml_quantize_chunk()

    def work(first: int) -> None:
        source, target = (ctypes.c_void_p(array.ctypes.data) for array in (weights, result))
        quantise(of.type, source, target, first * columns, min(ROWS, rows - first), columns, None)

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
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def describe_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Vocabulary, merges, stop token and chat template. Qwen's embeddings have more rows than its tokenizer
    has tokens.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    known = {index: token for token, index in tokenizer.get_vocab().items()}
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    added = set(tokenizer.added_tokens_decoder) - special
    kinds = {index: gguf.TokenType.CONTROL for index in special} | {
        index: gguf.TokenType.USER_DEFINED for index in added
    }
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([known.get(index, f"[PAD{index}]") for index in range(size)])
    unused = gguf.TokenType.UNUSED
    writer.add_token_types(
        [kinds.get(index, gguf.TokenType.NORMAL if index in known else unused) for index in range(size)]
    )
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"]]
    )
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
