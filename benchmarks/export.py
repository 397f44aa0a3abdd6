"""Merging an adapter into its base, and writing GGUF files, in one run on the same weights.

    python -m benchmarks.export [--size 0.6b] [--quantization none|nf4] [--gguf q4_k_m] [--json FILE]
    python -m benchmarks.export --rounding exports/dpo

    peft   what PEFT's documentation shows: the base loaded whole, the adapter on it, merge_and_unload,
           save_pretrained
    ours   tools/export/merge.py: shard by shard
    gguf   tools/export/gguf_file.py, of the merged model

The base has random weights in bfloat16 (speed does not depend on their values) in shards of about 4 GB, the
adapter rank 16 on all linear layers. Every variant runs in a process of its own; its peak is that of resident
memory, pages of mapped files included. From a 4-bit base peft merges what `dequantize()` makes of it.

With `--rounding` it is asked what rounding costs a finished export, with an importance matrix and without:
the nats per token by which the next tokens of the rounded model diverge from those of the unrounded one, on
held-out rows.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import parquet

from benchmarks.train import alone
from stages.settings.errors import one_line_errors
from stages.settings.files import write_json
from stages.settings.params import Weights
from stages.settings.stage import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tools.export.importance import Importance

SIZES = {
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}
VOCABULARY = {"tiny": 4096}  # others Qwen's
SHARD = 4e9  # bytes
MODULES = ["peft", "transformers", "tools.export.merge", "tools.export.gguf_file"]
HELD_OUT, TEXTS = Path("data/formatted/instructions/validation.parquet"), 48
BASE, ADAPTER, PEFT, MERGED = Path("base"), Path("adapter"), Path("by-peft"), Path("merged")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="0.6b")
    parser.add_argument(
        "--quantization", choices=["none", "nf4"], default="none", help="of the base in training"
    )
    parser.add_argument("--gguf", default="q4_k_m", choices=["f16", "q8_0", "q4_k_m"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="the numbers for programs")
    parser.add_argument("--rounding", type=Path, metavar="EXPORT", help="what rounding costs it, and no more")
    asked = parser.parse_args()
    quiet()
    if asked.rounding:
        return rounding(asked.rounding)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {"options": {"size": asked.size, "quantization": asked.quantization}}
        found["weights_gb"] = alone(folder, prepare, asked.size, modules=MODULES)
        for variant in (peft, ours):
            found[variant.__name__] = alone(folder, variant, asked.quantization, modules=MODULES)
        found["largest_difference"] = alone(folder, difference, modules=MODULES)
        found[f"gguf {asked.gguf}"] = alone(folder, gguf, asked.gguf, modules=MODULES)
    print(f"{asked.size}, {found['weights_gb']:.1f} GB in bfloat16, trained in {asked.quantization}")
    for variant in ("peft", "ours", f"gguf {asked.gguf}"):
        print(f"  {variant:12} {found[variant]['seconds']:7.1f} s {found[variant]['peak_gb']:6.2f} GB")
    print(f"  the two merged models differ by at most {found['largest_difference']:.5f} in a weight")
    if asked.json:
        write_json(asked.json, found)


def prepare(size: str) -> float:
    """Write base and adapter; returns the size of the base in GB."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    root, shape = Path(__file__).parents[1], SIZES[size]
    config = Qwen2Config(
        **shape, vocab_size=VOCABULARY.get(size, 151936), tie_word_embeddings=size != "7b", dtype="bfloat16"
    )
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(BASE)
    AutoTokenizer.from_pretrained(root / "models/nano").save_pretrained(BASE)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    block, shards = torch.randn(1 << 20).mul(0.02).to(torch.bfloat16), [{}]
    for name, parameter in model.named_parameters():
        if sum(tensor.nbytes for tensor in shards[-1].values()) > SHARD:
            save_file(shards[-1], BASE / f"model-{len(shards):05}.safetensors", metadata={"format": "pt"})
            shards[-1] = dict.fromkeys(shards[-1])
            shards.append({})
        size_of = parameter.numel()
        shards[-1][name] = block.repeat(-(-size_of // len(block)))[:size_of].view(parameter.shape).clone()
    last = f"model-{len(shards):05}.safetensors"
    save_file(shards[-1], BASE / last, metadata={"format": "pt"})
    where = {name: f"model-{i:05}.safetensors" for i, shard in enumerate(shards, 1) for name in shard}
    total = sum(path.stat().st_size for path in BASE.glob("*.safetensors"))
    write_json(
        BASE / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where}
    )
    adapted = get_peft_model(
        model.to_empty(device="cpu"), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    )
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape) * 0.01
    adapted.save_pretrained(ADAPTER)
    return total / 1e9


def peft(quantization: str) -> dict:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    start = time.perf_counter()
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        BASE, dtype="auto", quantization_config=nf4 if quantization == "nf4" else None
    )
    if quantization == "nf4":
        model = model.dequantize()
    PeftModel.from_pretrained(model, ADAPTER).merge_and_unload().save_pretrained(PEFT, max_shard_size="4GB")
    return measured(start)


def ours(quantization: str) -> dict:
    from tools.export.merge import merge

    start = time.perf_counter()
    MERGED.mkdir()
    merge(Weights(path=str(BASE), quantization=quantization, dtype="bfloat16"), BASE, ADAPTER, MERGED)
    return measured(start)


def difference() -> float:
    """The largest one between a weight of the two merged models, whose shards are cut differently."""
    from safetensors import safe_open

    theirs, our = (
        {name: path for path in folder.glob("*.safetensors") for name in list(safe_open(path, "pt").keys())}
        for folder in (PEFT, MERGED)
    )
    tensors = (
        (safe_open(our[name], "pt").get_tensor(name), safe_open(theirs[name], "pt").get_tensor(name))
        for name in our
    )
    return max((one.float() - other.float()).abs().max().item() for one, other in tensors)


def gguf(kind: str) -> dict:
    import shutil

    from tools.export import gguf_file

    for path in BASE.glob("*.json"):
        if "index" not in path.name:
            shutil.copy(path, MERGED)
    start = time.perf_counter()
    gguf_file.write(MERGED, Path("model.gguf"), kind)
    return measured(start)


def rounding(export: Path) -> None:
    from tools.export import checks, importance

    model, _ = checks.load(export)
    rows = parquet.read_table(HELD_OUT, columns=["input_ids"])["input_ids"].to_pylist()
    rows = rows[:: -(-len(rows) // TEXTS)]
    expected, matrix = [checks.next_tokens(model, row, len(row)) for row in rows], importance.measure(export)
    print(f"{export}, {len(rows)} held-out rows; the matrix of {matrix.rows} training rows; nats per token")
    for kind in importance.KINDS:
        nats = []
        for one in (None, matrix):
            model = rounded(export, kind, one)
            found = (checks.next_tokens(model, row, len(row)) for row in rows)
            nats.append(checks.divergence(expected, found))
        print(f"  {kind:8} {nats[0]:8.4f} without, {nats[1]:8.4f} with")


def rounded(export: Path, kind: str, matrix: "Importance | None") -> "PreTrainedModel":
    """What a GGUF file of this kind stands for."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tools.export import gguf_file

    config = AutoConfig.from_pretrained(export)  # transformers reads no head_dim from the file
    with tempfile.TemporaryDirectory() as name:
        gguf_file.write(export, Path(name) / "model.gguf", kind, matrix)
        return AutoModelForCausalLM.from_pretrained(
            name, gguf_file="model.gguf", config=config, dtype=torch.float32
        ).eval()


def measured(start: float) -> dict:
    scale = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": time.perf_counter() - start,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9,
    }


if __name__ == "__main__":
    with one_line_errors():
        main()
