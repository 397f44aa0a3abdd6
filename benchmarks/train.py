"""Training beside the usual ways to do it, in one run, on the same rows.

    python -m benchmarks.train [--size small] [--rows 96] [--pairs 32] [--only sft|preference|looks]
    [--threads 2] [--json FILE]

Supervised fine-tuning, one pass over the same rows at the same learning rate:
    guide  what tutorials for Qwen, LoRA and Arabic publish, corrected only so far that it runs on today's
           libraries: a plain transformers Trainer on one text column (prompt and answer in one string),
           random batches of 8 padded to their longest row, the logits and the loss of whole sequences
    trl    SFTTrainer with its defaults: prompt and completion columns, random batches of 8 padded to their
           longest row
    ours   stages/sft.py: rows packed with documents, one at a time, and the logits of answers alone
All three train the project's LoRA. 8 rows make an optimiser step; ours is a pack of 1,024 tokens, which holds
about as many.

The preference stage, one pass over the same pairs at the same rate, 8 to an optimiser step, from the adapter
that `ours` trained:
    trl          DPOTrainer with its defaults: random batches of 8, and a frozen copy of the adapter that
                 scores each
    ours-first   stages/dpo.py: 2 pairs of similar length at a time; the policy scores all answers before its
                 first step and stores it
    ours-second  another method on the same pairs: the scores of their answers are found on disk

`--only looks` trains ours with and without its looks at held-out rows (`evaluations: 10` and 0), for what
they cost; give it rows enough, as a look at a short run costs a larger share.

The base is a Qwen3 with random weights (speed does not depend on their values) and lengths are those of
instruction data: half of the rows under 90 tokens, one in twenty over 500, none over 1,024. Every variant
runs in a process of its own, so that peak memory is its own, and all from the loading of the model to the
saved adapter counts. Gradient checkpointing is on everywhere: it is TRL's default and what 12 GB need. Losses
(nats per token of held-out answers) and margins (nats, over the pairs) are those of the saved adapters, by
one function for all.

On a CPU this is unkind to trl: there its fused LM head is plain torch, which computes the logits of prompts
and padding too and twice, where its GPU kernel computes those of the answers alone. And a machine that is
shared changes seconds more than CPU seconds.
"""

import argparse
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.settings.errors import one_line_errors
from stages.settings.files import write_json
from stages.settings.params import Params
from stages.settings.reader import read
from stages.settings.stage import quiet

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

ROOT = Path(__file__).parents[1]
# In a narrow model attention and adapters are most of the work. `small` is wide for its depth, with a
# vocabulary to match: of the weights that every token is multiplied by, the logits' are 29 % (Qwen3-0.6B: 26
# %, 1.7B: 18 %), and attention to 1,024 tokens costs 10 % of what the rest of its layer does (27 %, 8 %).
SIZES = {
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
    },
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "head_dim": 64,
    },
    "0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "head_dim": 128,
    },
}
VOCABULARY = {"tiny": 4096, "small": 8192, "0.6b": 151936}
STEP = 8  # rows, or pairs, of an optimiser step
MEDIAN, P95, LONGEST = 90, 500, 1024  # tokens of a row
HELD_OUT = 24  # rows
RATE, PREFERENCE_RATE = 2e-3, 1e-4  # random weights learn nothing at the rates of real ones
BASE, FORMATTED = "models/random", Path("data/formatted")
MODULES = [
    "trl.trainer.sft_trainer",
    "stages.preference.trainers",
    "stages.training.run",
]  # imported once for all processes


def main() -> None:
    arguments = parse()
    quiet()
    os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    found: dict[str, Any] = {
        "options": {key: value for key, value in vars(arguments).items() if key != "json"}
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found["machine"] = alone(folder, prepare, arguments.size, arguments.rows, arguments.pairs)
        wanted = chosen(arguments.only)
        found["sft"] = {variant: alone(folder, run, "sft", variant) for variant in wanted["sft"]}
        add(found["sft"], alone(folder, losses, wanted["sft"]))
        if wanted["preference"]:
            found["preference"] = {
                variant: alone(folder, run, "preference", variant) for variant in wanted["preference"]
            }
            add(found["preference"], alone(folder, margins, wanted["preference"]))
    print(report(found))
    if arguments.json:
        write_json(arguments.json, found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="small", help="of the model")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=32, help=f"a multiple of {STEP}")
    parser.add_argument("--only", choices=["sft", "preference", "looks"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE", help="the numbers for programs")
    arguments = parser.parse_args()
    if arguments.pairs % STEP:
        parser.error(
            f"--pairs is {arguments.pairs}: ours trains on whole steps alone, give a multiple of {STEP}"
        )
    return arguments


def chosen(only: str | None) -> dict[str, list[str]]:
    """Variants of each stage; the preference stage starts from the adapter that `ours` trained."""
    if only == "looks":
        return {"sft": ["ours", UNWATCHED], "preference": ["ours-first", "ours-second", UNWATCHED]}
    sft, preference = ([name for name in table if name != UNWATCHED] for table in (SFT, PREFERENCE))
    return {
        "sft": ["ours"] if only == "preference" else sft,
        "preference": [] if only == "sft" else preference,
    }


def add(found: dict[str, dict], more: dict[str, dict]) -> None:
    for variant, values in more.items():
        found[variant] |= values


def alone(folder: Path, action: Callable, *arguments: Any, modules: list[str] = MODULES) -> Any:
    """What an action returns, done in a fresh process that works in `folder` and finds `modules` imported."""
    print(" ".join([action.__name__, *map(str, arguments)]), file=sys.stderr, flush=True)
    # A fork server, as a process that is started by another one inherits the peak memory of that one.
    context = get_context("forkserver")
    if not shutil.which(
        "nvidia-smi"
    ):  # no GPU: what CUDA sets up when modules are imported would not survive a fork
        context.set_forkserver_preload(["benchmarks.quietly", *modules])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(inside, folder, action, *arguments).result()


def inside(folder: Path, action: Callable, *arguments: Any) -> Any:
    os.chdir(folder)
    with open("log.txt", "a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        return action(*arguments)


# --- the workspace ------------------------------------------------------------------------------------------


def prepare(size: str, rows: int, pairs: int) -> dict:
    """A project with a random base and generated rows, in the current folder; returns the facts of this
    machine.
    """
    import torch

    from stages import base
    from stages.text.prompts import TEMPLATES

    for part in ("stages", "dvc.yaml"):
        Path(part).symlink_to(ROOT / part)
    configure("bfloat16" if torch.cuda.is_available() else "float32")
    make_model(SIZES[size], VOCABULARY[size])
    base.main()
    texts = Texts(TEMPLATES[read().prompt.template])
    write("instructions/train", [texts.instruction(i) for i in range(rows)])
    write("instructions/validation", [texts.instruction(i) for i in range(HELD_OUT)])
    write("preferences/train", [texts.pair(i) for i in range(pairs)])
    write("preferences/validation", [texts.pair(i) for i in range(HELD_OUT)])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def configure(dtype: str) -> None:
    """params.yaml with the settings of qwen3-1_7b, but another base, the batches of this comparison and rates
    for random weights.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    table = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    table["model"], table["data"] = "qwen3-1_7b", "cidar"  # of which nothing is fetched
    model = table["models"]["qwen3-1_7b"]
    model["weights"] = {"path": BASE, "quantization": "none", "dtype": dtype}
    model["sft"] |= {"batch_size": 1, "accumulation": 1, "learning_rate": RATE}
    model["preference"] |= {
        "accumulation": STEP // table["model_defaults"]["preference"]["batch_size"],
        "learning_rate": PREFERENCE_RATE,
    }
    table["prompt"]["max_length"] = LONGEST
    with open("params.yaml", "w", encoding="utf-8") as out:
        yaml.dump(table, out)


def make_model(shape: dict[str, int], vocabulary: int) -> None:
    """A Qwen3 with random weights and nano's tokenizer, whose tokens are the first ones of the vocabulary."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/nano")
    config = Qwen3Config(
        **shape,
        num_key_value_heads=shape["num_attention_heads"] // 2,
        vocab_size=vocabulary,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).to(getattr(torch, read().chosen_model.weights.dtype)).save_pretrained(BASE)
    tokenizer.save_pretrained(BASE)


class Texts:
    """Rows as format writes them, made of runs of the built-in corpus, with the lengths of instruction
    data.
    """

    def __init__(self, template):
        from transformers import AutoTokenizer

        from stages.builtin import skills

        self.template, self.rng = template, np.random.default_rng(1)
        self.tokenizer = AutoTokenizer.from_pretrained(BASE)
        self.words = " ".join(skills.corpus(500, "", lambda _, answer: answer)).split()
        self.ends = np.cumsum(
            [len(ids) for ids in self.tokenizer([f" {word}" for word in self.words])["input_ids"]]
        )

    def length(self) -> float:
        """Lognormal; the longest leave room for the template."""
        sigma = math.log(P95 / MEDIAN) / 1.645
        return float(np.clip(self.rng.lognormal(math.log(MEDIAN), sigma), 16, 0.95 * LONGEST))

    def run_of(self, tokens: float) -> str:
        start = self.rng.integers(len(self.words) - LONGEST)
        return " ".join(
            self.words[start : max(start + 1, np.searchsorted(self.ends, self.ends[start] + tokens))]
        )

    def prompt(self, tokens: float) -> str:
        return self.template.render([{"role": "user", "content": self.run_of(tokens)}])

    def answer(self, tokens: float) -> str:
        return self.template.complete(self.run_of(tokens))

    def instruction(self, number: int) -> dict:
        """A third of a row is prompt."""
        length = self.length()
        return self.row(number, prompt=self.prompt(length / 3), completion=self.answer(length * 2 / 3))

    def pair(self, number: int) -> dict:
        """The rejected answer is from half to all as long as the chosen one."""
        length, shorter = self.length(), self.rng.uniform(0.5, 1)
        answers = {"chosen": self.answer(length * 2 / 3), "rejected": self.answer(shorter * length * 2 / 3)}
        return self.row(number, prompt=self.prompt(length / 3), **answers)

    def row(self, number: int, prompt: str, **answers: str) -> dict:
        found = self.tokenizer([prompt + answer for answer in answers.values()], return_offsets_mapping=True)
        ids, ends = found["input_ids"], found["offset_mapping"]
        start = min(next(i for i, (_, end) in enumerate(own) if end > len(prompt)) for own in ends)
        if len(ids) == 1:
            columns = {"input_ids": ids[0], "trained": [start, len(ids[0])]}
        else:
            parts = (ids[0][:start], ids[0][start:], ids[1][start:])
            columns = dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), parts))
        facts = {"source": "corpus", "id": f"corpus:{number}", "tokens": max(map(len, ids))}
        return {"prompt": prompt, **answers, **columns, **facts}


def write(name: str, rows: list[dict]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = FORMATTED / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)


# --- the variants -------------------------------------------------------------------------------------------


def guide_sft(params: Params) -> "Trainer":
    from datasets import Dataset
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    from stages import sft
    from stages.model import modeling

    tokenizer, model = modeling.load_tokenizer(params.prompt), sft.start(params)
    texts = [row["prompt"] + row["completion"] for row in load("instructions", "prompt", "completion")]
    rows = Dataset.from_dict({"text": texts}).map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=LONGEST),
        batched=True,
        remove_columns="text",
    )
    arguments = TrainingArguments(
        "guide", **shared(params, RATE), per_device_train_batch_size=STEP, gradient_checkpointing=True
    )
    return Trainer(model, arguments, DataCollatorForLanguageModeling(tokenizer, mlm=False), rows)


def trl_sft(params: Params) -> "Trainer":
    from trl import SFTConfig, SFTTrainer

    from stages import sft
    from stages.model import modeling

    rows = load("instructions", "prompt", "completion")
    return SFTTrainer(
        sft.start(params), SFTConfig("trl", **shared(params, RATE)), train_dataset=rows,
        processing_class=modeling.load_tokenizer(params.prompt),
    )  # fmt: skip


def our_sft(params: Params) -> "Trainer":
    from stages import sft
    from stages.training import supervised

    return supervised.build(
        params, sft.start(params), sft.DATA, params.sft.epochs, params.chosen_model.sft.learning_rate
    )


def trl_dpo(params: Params) -> "Trainer":
    from trl import DPOConfig, DPOTrainer

    from stages import dpo
    from stages.model import modeling

    model = modeling.load_checkpoint(params.chosen_model.weights, dpo.PARENT, trainable=True)
    # Its log would tell the mean of ten steps.
    arguments = DPOConfig("trl-dpo", **shared(params, PREFERENCE_RATE), logging_steps=1)
    rows = load("preferences", "prompt", "chosen", "rejected")
    return DPOTrainer(
        model, args=arguments, train_dataset=rows, processing_class=modeling.load_tokenizer(params.prompt)
    )


def our_dpo(params: Params) -> "Trainer":
    from stages import dpo
    from stages.preference import trainers

    return trainers.build(params, "dpo", dpo.PARENT)


def our_second(params: Params) -> "Trainer":
    """A method whose loss starts at ln 2 too."""
    from stages import dpo
    from stages.preference import trainers

    return trainers.build(params, "robust", dpo.PARENT)


UNWATCHED, SCHEDULES = "ours-unwatched", ("sft", "preference")
SFT = {"guide": guide_sft, "trl": trl_sft, "ours": our_sft, UNWATCHED: our_sft}
PREFERENCE = {"trl": trl_dpo, "ours-first": our_dpo, "ours-second": our_second, UNWATCHED: our_second}


def shared(params: Params, learning_rate: float) -> dict:
    """Arguments that are no defaults: one pass, the rate, the device and its precision."""
    import torch

    from stages.model import modeling

    dtype = modeling.compute_dtype(params.chosen_model.weights)
    return {
        "num_train_epochs": 1, "learning_rate": learning_rate, "seed": params.seed, "report_to": "none",
        "use_cpu": not torch.cuda.is_available(), "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
    }  # fmt: skip


def load(role: str, *columns: str) -> "Dataset":
    from stages.training import run as training

    return training.load_rows(FORMATTED / role / "train.parquet", columns)


# --- measuring ----------------------------------------------------------------------------------------------


def run(stage: str, variant: str) -> dict:
    """Train a variant from the loading of its model to its saved adapter, and say what it took."""
    from stages.model.device import peak_memory

    params = read()
    if variant == UNWATCHED:
        blind = {part: getattr(params, part).model_copy(update={"evaluations": 0}) for part in SCHEDULES}
        params = params.model_copy(update=blind)
    asked, cpu, start = count_references(), time.process_time(), time.perf_counter()
    trainer = {"sft": SFT, "preference": PREFERENCE}[stage][variant](params)
    seen = count_tokens(trainer)
    finish(trainer, stage, variant, params)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    real, positions = int(seen["real"]), seen["positions"]
    found = {
        "seconds": seconds, "cpu_seconds": cpu_seconds, "steps": trainer.state.global_step, "tokens": real,
        "tokens_per_second": real / seconds, "padding": 1 - real / positions, "peak_memory_gb": peak_memory(),
    }  # fmt: skip
    return found if stage == "sft" else found | preference_facts(trainer, asked)


def finish(trainer: "Trainer", stage: str, variant: str, params: Params) -> None:
    """Train and save: ours as the pipeline does it, with its checkpoints; the others as a script would."""
    from stages import dpo, sft
    from stages.model import modeling
    from stages.preference import rows
    from stages.training import run as training

    folder = saved(stage, variant)
    if variant.startswith("ours"):
        data, parent = (sft.DATA, None) if stage == "sft" else (rows.DATA, dpo.PARENT)
        settings = params.sft if stage == "sft" else params.preference
        origin = modeling.provenance(params, data, parent) | {"variant": variant}
        training.train(trainer, folder.name, params, settings, origin)
    else:
        trainer.train()
        trainer.save_model(str(folder))


def saved(stage: str, variant: str) -> Path:
    """Where a variant's adapter goes; the preference stage looks for models/sft."""
    return Path("models") / ("sft" if (stage, variant) == ("sft", "ours") else f"{stage}-{variant}")


def count_tokens(trainer: "Trainer") -> dict:
    """Counts, while it trains, the positions that the model computes and those of them that are no
    padding.
    """
    seen, step = {"real": 0, "positions": 0}, trainer.training_step

    def counting(model, inputs, *arguments, **more):
        seen["positions"] += inputs["input_ids"].numel()
        seen["real"] += (
            inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()
        )  # a pack has none
        return step(model, inputs, *arguments, **more)

    trainer.training_step = counting
    return seen


def count_references() -> list[int]:
    """Lists, from now on, how many answers our reference asks the model for."""
    from stages.preference import reference

    asked, scored = [], reference.scored

    def counting(texts, trainer):
        asked.append(len(texts))
        return scored(texts, trainer)

    reference.scored = counting
    return asked


def preference_facts(trainer: "Trainer", asked: list[int]) -> dict:
    """Loss of the first step, and how many answers a reference scored."""
    # TRL's frozen copy of the adapter scores them in its steps.
    answers = sum(asked) if asked else 2 * len(trainer.train_dataset)
    start = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return {"start_loss": start, "reference_answers": answers}


def losses(variants: list[str]) -> dict[str, dict]:
    """Nats per token of held-out answers, by the base and by each variant's adapter."""
    before = mean_loss(None)
    return {
        variant: {"loss_before": before, "loss_after": mean_loss(saved("sft", variant))}
        for variant in variants
    }


def mean_loss(adapter: Path | None) -> float:
    scores = answer_scores(adapter, "instructions/validation", "completion")
    return -sum(logp for logp, _ in scores) / sum(tokens for _, tokens in scores)


def margins(variants: list[str]) -> dict[str, dict]:
    """Mean margin of DPO's rewards over the pairs, by each variant's adapter."""
    beta, before = read().methods["dpo"].beta, mean_difference(saved("sft", "ours"))
    return {
        variant: {"margin": beta * (mean_difference(saved("preference", variant)) - before)}
        for variant in variants
    }


def mean_difference(adapter: Path) -> float:
    chosen, rejected = (
        answer_scores(adapter, "preferences/train", answer) for answer in ("chosen", "rejected")
    )
    return sum(good - bad for (good, _), (bad, _) in zip(chosen, rejected)) / len(chosen)


def answer_scores(adapter: Path | None, data: str, answer: str) -> list[tuple[float, int]]:
    """Log-probability in nats and number of tokens of every answer. One at a time: no padding, no packing, no
    trainer's code.
    """
    import torch
    from peft import PeftModel
    from pyarrow import parquet
    from torch.nn.functional import cross_entropy

    from stages.model import modeling

    params, scores = read(), []
    tokenizer, model = modeling.load_tokenizer(params.prompt), modeling.load_base(params.chosen_model.weights)
    model = (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()
    for row in parquet.read_table(FORMATTED / f"{data}.parquet").to_pylist():
        start, end = (
            torch.tensor(tokenizer(row[part])["input_ids"], device=model.device)
            for part in ("prompt", answer)
        )
        with torch.no_grad():
            logits = model(torch.cat([start, end])[None], logits_to_keep=len(end) + 1).logits[0, :-1].float()
        scores.append((-cross_entropy(logits, end, reduction="sum").item(), len(end)))
    return scores


# --- the report ---------------------------------------------------------------------------------------------

COLUMNS = {
    "seconds": ("seconds", "{:.1f}"), "CPU s": ("cpu_seconds", "{:.1f}"), "steps": ("steps", "{}"),
    "tokens": ("tokens", "{:,}"),
    "tokens/s": ("tokens_per_second", "{:.0f}"), "padding": ("padding", "{:.0%}"),
    "peak GB": ("peak_memory_gb", "{:.2f}"),
    "loss before": ("loss_before", "{:.3f}"), "loss after": ("loss_after", "{:.3f}"),
    "start loss": ("start_loss", "{:.4f}"),
    "margin": ("margin", "{:.3f}"), "reference answers": ("reference_answers", "{}"),
}  # fmt: skip


def report(found: dict) -> str:
    """Both tables, each with what it comes to, and the machine."""
    machine, options = found["machine"], found["options"]
    # Other processes of a machine change how long a run on its CPU takes, but hardly its CPU time.
    clock, time_name = ("cpu_seconds", "CPU time") if machine["device"] == "CPU" else ("seconds", "time")
    lines = table("SFT", found["sft"])
    spent = {variant: values[clock] for variant, values in found["sft"].items()}
    ours = spent.pop("ours")
    lines += looks(ours, spent, time_name)
    lines += [
        f"ours: {other / ours:.2f} times as fast as {variant}, by {time_name}"
        for variant, other in spent.items()
    ]
    if "preference" in found:
        lines += ["", *table("preference", found["preference"])]
        spent = {variant: values[clock] for variant, values in found["preference"].items()}
        second = spent.pop("ours-second")
        lines += looks(second, spent, time_name)
        lines += [
            f"ours-second: {1 - second / other:.0%} less {time_name} than {variant}"
            for variant, other in spent.items()
        ]
    facts = (
        f"{machine['device']}, {machine['cores']} cores, {machine['threads']} threads, torch "
        f"{machine['torch']}"
    )
    return "\n".join(
        [*lines, "", f"{facts}; model {options['size']}, {options['rows']} rows, {options['pairs']} pairs"]
    )


def looks(watched: float, spent: dict[str, float], time_name: str) -> list[str]:
    """What they cost a run, where it was done without them too; that run leaves `spent`."""
    if not (unwatched := spent.pop(UNWATCHED, None)):
        return []
    return [f"looks at held-out rows: {watched / unwatched - 1:+.1%} {time_name}"]


def table(title: str, variants: dict[str, dict], columns: dict[str, tuple[str, str]] = COLUMNS) -> list[str]:
    """Aligned columns, of those that these variants have."""
    columns = {name: column for name, column in columns.items() if column[0] in next(iter(variants.values()))}
    rows = [[title, *columns]]
    rows += [
        [name, *(form.format(values[key]) for key, form in columns.values())]
        for name, values in variants.items()
    ]
    widths = [max(map(len, cells)) for cells in zip(*rows)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    ]


if __name__ == "__main__":
    with one_line_errors():
        main()
