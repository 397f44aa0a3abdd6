"""What only a GPU can show, in one run without a network: memory beside the plan, speed, equality, survival.

    python -m benchmarks.gpu [--minutes 8] [--vram 12] [--only peak/qwen3-4b …] [--json FILE] [--tiny]
    python -m benchmarks.gpu --table [--json FILE]      the results in Markdown

Models have the presets' real shapes, random weights and nano's tokenizer; they are made in memory, layer by
layer. A cap on the allocator (`--vram` less CUDA's context) makes any card as small as the one that is asked
about. Each result is written when it is found. A run takes up what the file lacks, in the order of its worth,
and leaves out what the minutes left do not allow; --only does again what it names.

    peak         the most that the allocator gave out in two optimiser steps of sft and of dpo, beside the
                 plan; dpo's first loss is ln 2 where the reference's forward pass is that of training
    speed        tokens a second of sft (ours, TRL's defaults, the guide's script) and dpo, on the same rows
    packed       log-probabilities of documents in one pack beside those of each alone, by every kernel
    kernels      milliseconds of a forward and backward pass over one pack, by every kernel
    scoring      questions a second of evaluation
    generation   tokens a second of greedy answers
    resume       a stage that was killed by SIGKILL and went on, beside one that was not

The first step of a trainer is not timed: it compiles. --tiny runs the same code with tiny shapes, on a CPU,
too: there the allocator has nothing to say, and kernels that need CUDA are left out.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING
from unittest.mock import patch

from benchmarks import evaluate, train
from stages.settings import manifest, memory
from stages.settings.errors import Problem, one_line_errors
from stages.settings.files import read_json, sha256, write_json
from stages.settings.memory import GB, SHAPES, Shape
from stages.settings.params import Params, Weights
from stages.settings.reader import read
from stages.settings.stage import quiet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, Trainer

ROOT = Path(__file__).parents[1]
FILE = ROOT / "benchmarks/gpu.json"
LENGTH = train.LONGEST  # tokens of a row
STEPS, ACCUMULATION = 2, 2  # of a peak: the optimiser has its state from the first step on
TINY = {"hidden": 64, "layers": 2, "intermediate": 128, "heads": 4, "key_value_heads": 2, "head_dim": 16}
MAIN, FOUR_BIT = "qwen3-1_7b", "qwen2_5-7b"
PEAKS = (
    [MAIN, "qwen2_5-3b", "qwen3-4b"],
    [FOUR_BIT, "qwen3-8b"],
    ["qwen3-0_6b", "qwen2_5-1_5b", "qwen2_5-0_5b"],
)
KERNELS = ("sdpa", "flash_attention_2", "varlen", "flex_attention")
DOCUMENTS = (0.4, 0.3, 0.2, 0.1)  # of a pack
WARM, TIMED = 3, 10  # passes over it


def main() -> None:
    asked = parse()
    if asked.table:
        with one_line_errors():
            print(table(load(asked.json)))
        return
    quiet()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        results = Results(asked.json, facts(asked))
        os.chdir(folder)
        for part in ("stages", "dvc.yaml"):
            Path(part).symlink_to(ROOT / part)
        with patch("stages.model.modeling.load_base", make_base):  # all else is the stages' own code
            measure(asked, results)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--vram", type=float, default=12, help="GB of the card that the cap stands for")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="measurements, or their groups")
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on a CPU too")
    parser.add_argument("--table", action="store_true", help="print the results in Markdown, measure nothing")
    asked = parser.parse_args()
    asked.json = asked.json.resolve()
    return asked


# --- results ------------------------------------------------------------------------------------------------


class Results:
    """One JSON file: the machine, and what was found by name. It is written whole after each finding."""

    def __init__(self, path: Path, machine: dict):
        self.path = path
        self.found = load(path) if path.exists() else {"machine": machine, "results": {}}
        if self.found["machine"] != machine:
            raise Problem(f"{path} holds results of another machine or size: give another --json")

    def __contains__(self, name: str) -> bool:
        return name in self.found["results"] and "error" not in self.found["results"][name]

    def add(self, name: str, value: dict) -> None:
        self.found["results"][name] = value
        write_json(self.path, self.found)


def load(path: Path) -> dict:
    if not path.exists():
        raise Problem(f"{path} is not there: python -m benchmarks.gpu writes it")
    return read_json(path)


def facts(asked: argparse.Namespace) -> dict:
    """Of this machine and run: what two results must share to stand in one file."""
    import torch
    from transformers import __version__ as transformers
    from trl import __version__ as trl

    if not (torch.cuda.is_available() or asked.tiny):
        raise Problem("PyTorch sees no GPU; --tiny runs on a CPU")
    found = {"device": "CPU", "tiny": asked.tiny, "torch": torch.__version__}
    found |= {"transformers": transformers, "trl": trl, "vram_gb": asked.vram}
    if torch.cuda.is_available():
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        found["memory_gb"] = round(torch.cuda.get_device_properties(0).total_memory / GB, 2)
    return found


# --- one after another --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """`seconds` is what it may take on an H100; `cap` whether it must do with `--vram`."""

    name: str
    seconds: float
    action: Callable[[], dict]
    cap: bool = True


def measurements(tiny: bool) -> list[Measurement]:
    """In the order of their worth."""
    rows, pairs = (24, 24) if tiny else (768, 512)
    first, second, last = ([MAIN], [FOUR_BIT], []) if tiny else PEAKS
    found = [Measurement(f"peak/{name}", 25, partial(peak, name, tiny)) for name in first]
    found += [Measurement(f"speed/sft-{way}", 40, partial(sft_speed, way, rows, tiny)) for way in train.SFT]
    found += [Measurement(f"packed/{kernel}", 10, partial(packed, kernel, tiny)) for kernel in KERNELS[:3]]
    found += [Measurement(f"peak/{name}", 40, partial(peak, name, tiny)) for name in second]
    ways = ("trl", "ours-first")
    found += [Measurement(f"speed/dpo-{way}", 40, partial(dpo_speed, way, pairs, tiny)) for way in ways]
    found += [Measurement("scoring", 20, partial(scoring, 12 if tiny else 256, tiny))]
    found += [
        Measurement(f"generation/{name}", 20, partial(generation, name, tiny)) for name in (MAIN, FOUR_BIT)
    ]
    found += [Measurement("peak/markers", 25, partial(peak, MAIN, tiny, markers=True))]
    found += [Measurement(f"kernels/{kernel}", 15, partial(kernels, kernel, tiny)) for kernel in KERNELS[:3]]
    found += [Measurement("resume", 100, partial(resume, tiny), cap=False)]
    found += [Measurement("packed/flex_attention", 60, partial(packed, "flex_attention", tiny))]
    found += [Measurement("kernels/flex_attention", 60, partial(kernels, "flex_attention", tiny))]
    return found + [Measurement(f"peak/{name}", 25, partial(peak, name, tiny)) for name in last]


def measure(asked: argparse.Namespace, results: Results) -> None:
    end, left_out = time.monotonic() + 60 * asked.minutes, []
    for one in measurements(asked.tiny):
        if asked.only and not {one.name, one.name.partition("/")[0]} & set(asked.only):
            continue
        if one.name in results and not asked.only:
            continue
        if not asked.tiny and time.monotonic() + one.seconds > end:
            left_out.append(one.name)
            continue
        started = time.monotonic()
        value = attempt(one, asked.vram)
        results.add(one.name, value | {"took_s": round(time.monotonic() - started, 1)})
        print(f"{one.name}: {json.dumps(results.found['results'][one.name])}", flush=True)
    if left_out:
        print(f"no time left for {', '.join(left_out)}: the same command goes on with them")


def attempt(one: Measurement, vram: float) -> dict:
    """What it found; where the cap is too small, that, and what it found without."""
    import torch

    limit(vram if one.cap else None)
    try:
        return one.action()
    except torch.OutOfMemoryError:
        too_small = one.cap and torch.cuda.get_device_properties(0).total_memory > vram * GB
    except Exception as error:  # whatever it is, the measurements after it are worth having
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    if too_small:
        return attempt(replace(one, cap=False), vram) | {"out_of_memory_under_cap": True}
    return {"error": "out of memory"}


def limit(vram: float | None) -> None:
    """Free what the measurement before held, and give the allocator what a card of that size leaves it."""
    import torch

    forget()
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        share = 1.0 if vram is None else min(1.0, (vram * GB - memory.CONTEXT) / total)
        torch.cuda.set_per_process_memory_fraction(share)


def forget() -> None:
    """Free what nothing holds any more, and count peaks from here."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def now() -> float:
    """Seconds, when all that was asked of the GPU is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# --- models and rows ----------------------------------------------------------------------------------------


def project(name: str, tiny: bool, accumulation: int = 1, markers: bool = False, layers: int = 0) -> Params:
    """A project in the current folder, whose base has a preset's shape, nano's tokenizer and no weights."""
    import torch
    from ruamel.yaml import YAML
    from transformers import AutoTokenizer

    own = read(ROOT / "params.yaml").models[name].weights
    shape = SHAPES[own.repo]
    shape = replace(shape, vocabulary=4096, **TINY) if tiny else replace(shape, layers=layers or shape.layers)
    folder = Path("models", name)
    config_of(shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "models/nano").save_pretrained(folder)
    record(name, folder)
    yaml = YAML()
    table = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    table["model"], table["data"] = name, "cidar"  # of which nothing is fetched
    table["prompt"]["max_length"] = LENGTH
    table["sft"]["train_markers"] = "always" if markers else "never"
    table["hardware"]["vram_gb"] = 80  # what does not fit is to be seen
    model, defaults = table["models"][name], table["model_defaults"]
    dtype = own.dtype if torch.cuda.is_available() else "float32"
    model["weights"] = {"path": folder.as_posix(), "quantization": own.quantization, "dtype": dtype}
    model["sft"]["accumulation"] = accumulation
    model["preference"]["accumulation"] = accumulation
    if accumulation == 1:  # the steps that train.py compares
        model["preference"]["accumulation"] = train.STEP // defaults["preference"]["batch_size"]
    with open("params.yaml", "w", encoding="utf-8") as out:
        yaml.dump(table, out)
    return read()


def record(name: str, folder: Path) -> None:
    """models/base.json, as the stage `base` writes it."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())
    }
    write_json(manifest.MANIFEST, {"model": name, "path": folder.as_posix(), "files": files})


def config_of(shape: Shape) -> "PretrainedConfig":
    from transformers import Qwen2Config, Qwen3Config

    kind = Qwen3Config if shape.qk_norm else Qwen2Config
    return kind(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=4096,
    )


def make_base(weights: Weights, folder: Path | None = None) -> "PreTrainedModel":
    """What modeling.load_base would load, made on the device layer by layer, as it is loaded."""
    import torch
    from accelerate import init_empty_weights
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import AutoConfig, AutoModelForCausalLM

    from stages.model.device import compute_dtype

    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", compute_dtype(weights)
    torch.manual_seed(1)
    with init_empty_weights(include_buffers=False):
        config = AutoConfig.from_pretrained(folder or manifest.base_folder())
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    for name, module in list(model.named_modules()):
        for key, empty in list(module.named_parameters(recurse=False)):
            value = torch.empty(empty.shape, dtype=dtype, device=device)
            value = value.normal_(0, 0.02) if value.dim() > 1 else value.fill_("norm" in name)
            module.register_parameter(key, torch.nn.Parameter(value, requires_grad=False))
        if weights.quantization == "nf4" and type(module) is torch.nn.Linear and ".layers." in name:
            small = Linear4bit(1, 1, module.bias is not None, dtype, True, "nf4", device="meta")
            small.weight = Params4bit(
                module.weight.data, False, compress_statistics=True, quant_type="nf4"
            ).to(device)
            small.in_features, small.out_features, small.bias = (
                module.in_features,
                module.out_features,
                module.bias,
            )
            small.support_avx512bf16_for_cpu = False
            module.weight = None  # it is held by the list
            model.set_submodule(name, small)
    model.tie_weights()
    model.is_loaded_in_4bit = weights.quantization == "nf4"
    return model.to(device)


def write_rows(params: Params, rows: int, pairs: int, tokens: int = 0) -> None:
    """Rows as `format` writes them, with lengths of instruction data, or all nearly as long as `tokens`."""
    from stages.model import modeling

    folder = Path("models/random")
    folder.unlink(missing_ok=True)
    folder.symlink_to(params.model)  # where train.Texts looks for the tokenizer
    texts = train.Texts(modeling.template_of(params.prompt))
    if tokens:
        texts.length = lambda: 0.96 * tokens
    train.write("instructions/train", [texts.instruction(i) for i in range(rows)])
    train.write("instructions/validation", [texts.instruction(i) for i in range(8)])
    train.write("preferences/train", [texts.pair(i) for i in range(pairs)])
    train.write("preferences/validation", [texts.pair(i) for i in range(8)])


def run(trainer: "Trainer") -> None:
    """Train, without a checkpoint or a word."""
    from transformers import PrinterCallback, ProgressCallback

    trainer.args.output_dir, trainer.args.save_strategy = "out", "no"
    for talk in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(talk)
    trainer.train()


def save(trainer: "Trainer", params: Params) -> None:
    from stages import sft
    from stages.model import modeling

    modeling.save_checkpoint(trainer, Path("models/sft"), modeling.provenance(params, sft.DATA, None))


# --- memory, and equality of the two forward passes ---------------------------------------------------------


def peak(name: str, tiny: bool, markers: bool = False) -> dict:
    """Of sft and dpo: the most GB that the allocator gave out, and reserved, beside the plan without CUDA's
    context; and whether dpo begins where its reference stands.
    """
    params = project(name, tiny, ACCUMULATION, markers)
    sft, preference = params.chosen_model.sft, params.chosen_model.preference
    rows, pairs = (STEPS * ACCUMULATION * stage.batch_size for stage in (sft, preference))
    write_rows(params, rows, pairs, tokens=LENGTH // 4 if tiny else LENGTH)
    found = {}
    for stage, make in (("sft", train.our_sft), ("dpo", train.our_dpo)):
        forget()
        trainer = make(params)
        run(trainer)
        planned = memory.run_of(params, name, stage, None if stage == "sft" else "dpo")
        found[stage] = gigabytes() | {"planned_gb": round(memory.predicted(planned) - memory.CONTEXT / GB, 2)}
        if stage == "sft":
            save(trainer, params)
        else:
            start = next(entry for entry in trainer.state.log_history if "loss" in entry)
            found[stage] |= {"loss": start["loss"], "first_margin": start["rewards/margins"]}
        del trainer
    return found


def gigabytes() -> dict:
    import torch

    if not torch.cuda.is_available():
        return {}
    return {
        "measured_gb": round(torch.cuda.max_memory_allocated() / GB, 2),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / GB, 2),
    }


# --- speed --------------------------------------------------------------------------------------------------


def sft_speed(way: str, rows: int, tiny: bool) -> dict:
    params = project(MAIN, tiny)
    write_rows(params, rows, train.STEP)
    return speed(train.SFT[way](params))


def dpo_speed(way: str, pairs: int, tiny: bool) -> dict:
    """Ours scores its reference before the first step: that counts, too."""
    from stages.preference import reference

    params = project(MAIN, tiny)
    write_rows(params, train.STEP, pairs // train.STEP * train.STEP)
    trainer = train.our_sft(params)
    run(trainer)  # compiles what the reference needs, too
    save(trainer, params)
    del trainer
    forget()
    took, compute = [], reference.log_probabilities

    def timed(*arguments):
        start = now()
        found = compute(*arguments)
        took.append(now() - start)
        return found

    with patch.object(reference, "log_probabilities", timed):
        trainer = train.PREFERENCE[way](params)
    found = speed(trainer)
    steps_s = found["tokens"] / found["tokens_per_second"]
    share = (
        found["tokens"] / found["all_tokens"]
    )  # of the reference's time, that of the steps that were timed
    found["reference_s"] = round(sum(took), 1)
    whole = round(found["tokens"] / (steps_s + share * sum(took)))
    return found | {"tokens_per_second": whole, "of_steps_alone": found["tokens_per_second"]}


def speed(trainer: "Trainer") -> dict:
    """Tokens a second of all steps but the first, which compiles; without padding."""
    from transformers import TrainerCallback

    seen, ends = train.count_tokens(trainer), []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments, **more):
            ends.append((now(), int(seen["real"]), seen["positions"]))

    trainer.add_callback(Clock())
    run(trainer)
    (start, before, _), (end, tokens, positions) = ends[0], ends[-1]
    return {
        "tokens_per_second": round((tokens - before) / (end - start)), "tokens": tokens - before,
        "all_tokens": tokens, "padding": round(1 - tokens / positions, 3), **gigabytes(),
    }  # fmt: skip


def scoring(items: int, tiny: bool) -> dict:
    """Questions a second, of four choices: answered by a letter, and by texts of which each is scored."""
    from stages.model import modeling
    from stages.model import scoring as ours

    params = project(MAIN, tiny)
    write_rows(params, 1, 1)
    model, tokenizer = make_base(params.chosen_model.weights).eval(), modeling.load_tokenizer(params.prompt)
    texts, found = train.Texts(template=None), {}
    for kind, make in evaluate.KINDS.items():
        questions = make(texts, items)
        ours.choices(model, tokenizer, questions[:8], "")
        start = now()
        ours.choices(model, tokenizer, questions, "")
        found[f"{kind}_per_second"] = round(items / (now() - start), 1)
    return found | gigabytes()


def generation(name: str, tiny: bool) -> dict:
    """Tokens a second of greedy answers to 32 prompts at a time, and to one."""
    from stages.model import generation as ours
    from stages.model import modeling

    params, limit, found = project(name, tiny), 8 if tiny else 64, {}
    write_rows(params, 1, 1)
    model, tokenizer = make_base(params.chosen_model.weights).eval(), modeling.load_tokenizer(params.prompt)
    texts = train.Texts(modeling.template_of(params.prompt))
    never = model.config.vocab_size - 1  # no text has this token
    for prompts in (32, 1):
        asked = [texts.prompt(60) for _ in range(prompts)]
        ours.generate(model, tokenizer, asked[:2], [never], 2, "")
        start = now()
        answers = ours.generate(model, tokenizer, asked, [never], limit, "")
        tokens = sum(len(answer.tokens) for answer in answers)
        found[f"tokens_per_second_{prompts}"] = round(tokens / (now() - start), 1)
    return found | gigabytes()


# --- packs, by every kernel ---------------------------------------------------------------------------------


def unavailable(kernel: str, backward: bool) -> str:
    """Why a kernel is not there; empty where it is."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    if kernel == "flash_attention_2" and not is_flash_attn_2_available():
        return "flash_attn is not installed"
    if kernel == "varlen" and not (
        torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    ):
        return "torch has it for CUDA alone, from Ampere on"
    if kernel == "flex_attention" and backward and not torch.cuda.is_available():
        return "torch has no backward pass of it on a CPU"
    return ""


def attend_varlen(
    query: "Tensor", key: "Tensor", value: "Tensor", ends: "Tensor", longest: int, scale: float
):
    """Torch's own FlashAttention over documents that end at `ends`; [tokens, heads, width] each."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=True
    )


def varlen(module, query, key, value, attention_mask, scaling=None, **given):
    """An attention function of transformers: [1, heads, tokens, width] → [1, tokens, heads, width]."""
    states = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))
    return attend_varlen(*states, given["cu_seq_lens_q"], given["max_length_q"], scaling)[None], None


def pack(model: "PreTrainedModel", kernel: str) -> tuple[dict, list["Tensor"]]:
    """Inputs of one row that holds several documents, and the documents."""
    import torch
    from transformers import AttentionInterface

    AttentionInterface.register("varlen", varlen)
    model.set_attn_implementation(kernel)
    lengths = [int(share * LENGTH) for share in DOCUMENTS]
    generator = torch.Generator().manual_seed(1)
    documents = [
        torch.randint(0, 4000, (length,), generator=generator).to(model.device) for length in lengths
    ]
    places = torch.cat([torch.arange(length, device=model.device) for length in lengths])
    inputs = {"input_ids": torch.cat(documents)[None], "position_ids": places[None]}
    if kernel == "varlen":
        ends = torch.tensor([0, *lengths], device=model.device).cumsum(0, dtype=torch.int32)
        inputs |= {"cu_seq_lens_q": ends, "max_length_q": max(lengths)}
    return inputs, documents


def packed(kernel: str, tiny: bool) -> dict:
    """The largest difference of a token's log-probability, in nats, between a pack and its documents alone,
    each a row of its own, by sdpa; and what it would be if the documents saw each other.
    """
    import torch

    if why := unavailable(kernel, backward=False):
        return {"left_out": why}
    model = make_base(project(MAIN, tiny).chosen_model.weights).eval()

    def logps(ids: "Tensor", **more) -> "Tensor":
        logits = model(ids[None], use_cache=False, **more).logits[0, :-1].float()
        return logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]

    with torch.inference_mode():
        inputs, documents = pack(model, kernel)
        ids = inputs.pop("input_ids")[0]
        together = logps(ids, **inputs)
        model.set_attn_implementation("sdpa")
        mixed, alone = logps(ids), [logps(document) for document in documents]
    ends = torch.tensor([len(document) for document in documents]).cumsum(0)[:-1] - 1
    inside = torch.ones(len(ids) - 1, dtype=torch.bool, device=ids.device)
    inside[ends] = False  # what follows a document's last token is the next document's first
    alone = torch.cat(alone)
    return {
        "largest_nats": (together[inside] - alone).abs().max().item(),
        "mean_nats": (together[inside] - alone).mean().abs().item(),
        "largest_nats_if_seen": (mixed[inside] - alone).abs().max().item(),
    }


def kernels(kernel: str, tiny: bool) -> dict:
    """Milliseconds of a forward and backward pass over a pack, as sft does it, and the memory it took."""
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from stages import sft

    if why := unavailable(kernel, backward=True):
        return {"left_out": why}
    params = project(MAIN, tiny)
    model = sft.start(params)
    add_fused_lm_head(model.get_base_model())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    inputs, _ = pack(model.get_base_model(), kernel)
    inputs["labels"], times = inputs["input_ids"], []
    forget()
    for _ in range(WARM + TIMED):
        start = now()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            loss = model(**inputs, use_cache=False, fused_lm_head=True).loss
        loss.backward()
        times.append(now() - start)
    return {"milliseconds": round(1000 * median(times[WARM:]), 2), "loss": loss.item(), **gigabytes()}


# --- a kill -------------------------------------------------------------------------------------------------


def resume(tiny: bool) -> dict:
    """The stage sft on two layers, once from start to end and once killed after its first checkpoint."""
    import shutil

    params = project(MAIN, tiny, layers=2)
    base = make_base(params.chosen_model.weights)
    base.save_pretrained(params.chosen_model.weights.path)
    record(params.model, Path(params.chosen_model.weights.path))
    write_rows(params, 12 if tiny else 40, train.STEP, tokens=LENGTH)
    del base
    forget()
    command = [sys.executable, "-m", "stages.sft"]
    staged(command)
    whole, weights = curve(), sha256(Path("models/sft/adapter_model.safetensors"))
    shutil.rmtree("models/sft")
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while killed.poll() is None and not list(
        Path(".cache/checkpoints").glob("*/checkpoint-*/trainer_state.json")
    ):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    said = staged(command)
    again = curve()
    return {
        "steps": len(whole), "went_on": "going on from" in said,
        "largest_loss_difference": max(abs(one - other) for one, other in zip(whole, again, strict=True)),
        "same_bytes": weights == sha256(Path("models/sft/adapter_model.safetensors")),
    }  # fmt: skip


def staged(command: list[str]) -> str:
    """What a stage says. Raises RuntimeError with its last line where it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr.strip().rpartition("\n")[2])
    return result.stdout


def curve() -> list[float]:
    lines = Path("metrics/curves/sft.tsv").read_text(encoding="utf-8").splitlines()
    column = lines[0].split("\t").index("loss")
    return [float(cell) for line in lines[1:] if (cell := line.split("\t")[column])]


# --- the table ----------------------------------------------------------------------------------------------


def table(found: dict) -> str:
    """In Markdown: memory beside the plan, then all else by name."""
    machine, results = found["machine"], found["results"]
    said = ", ".join(f"{key} {value}" for key, value in machine.items())
    peaks = [
        "| model | stage | planned GB | measured GB | measured / planned | reserved GB |",
        "|---" * 6 + "|",
    ]
    others = ["| measurement | found |", "|---|---|"]
    for name, value in results.items():
        stages = {stage: one for stage, one in value.items() if isinstance(one, dict) and "planned_gb" in one}
        for stage, one in stages.items():
            measured, planned = one.get("measured_gb"), one["planned_gb"]
            ratio = f"{measured / planned:.2f}" if measured else ""
            cells = [
                name.removeprefix("peak/"),
                stage,
                planned,
                measured or "",
                ratio,
                one.get("reserved_gb", ""),
            ]
            peaks.append("| " + " | ".join(map(str, cells)) + " |")
            if "loss" in one:
                nats = abs(one["loss"] - math.log(2))
                others.append(f"| reference, {name.removeprefix('peak/')} | loss ln 2 ± {nats:.1g} |")
        if not stages:
            facts = ", ".join(f"{key} {shown(one)}" for key, one in value.items() if key != "took_s")
            others.append(f"| {name} | {facts} |")
    return "\n".join([f"Measured: {said}.", "", *peaks, "", *others])


def shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) and value < 100 else str(value)


if __name__ == "__main__":
    with one_line_errors():
        main()
