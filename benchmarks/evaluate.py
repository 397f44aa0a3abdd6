"""Scoring multiple-choice questions beside lm-evaluation-harness, in one run, on the same items.

    python -m benchmarks.evaluate [--size small] [--items 48] [--only letters|texts] [--tokens 2048]
    [--threads 2] [--json FILE]

Two kinds of items, both of four choices:
    letters  exam questions that show their choices and are answered by a letter, which is one token: half of
             the prompts under 100 tokens, one in twenty over 250, of which the first line, some 16, names one
             of 40 subjects
    texts    a prompt of 100 to 200 tokens and whole answers of 10 to 25
Two ways to score them:
    lm-eval  HFLM.loglikelihood on the loaded model
    ours     stages/model/scoring.py
The base is a Qwen3 with random weights (speed does not depend on their values), and for all sizes but `tiny`
Qwen's vocabulary of 151,936. Batches hold the same number of tokens: ours `--tokens`, padding included;
lm-eval's batch size is that number over the mean length of its rows. Every way runs in a process of its own,
so that peak memory is its own. What counts is the scoring, from texts to numbers; loading the model does not.
Tokens are what the model reads without padding: a row of lm-eval is a prompt with one choice, or a prompt
alone where choices are letters.

What is saved on letters is the LM head at places that predict no answer, so the gain depends on the head's
share of what a token is multiplied by: 67 % in `small`, 26 % in Qwen3-0.6B, 18 % in 1.7B.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import train
from benchmarks.train import BASE, LONGEST, Texts, alone, configure, make_model
from stages.settings.errors import one_line_errors
from stages.settings.files import write_json
from stages.settings.stage import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Question = tuple[str, list[str]]
    Scorer = Callable[[PreTrainedModel, PreTrainedTokenizerBase, list[Question], int], list[float]]

SIZES = {
    "tiny": train.SIZES["tiny"],
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "head_dim": 64,
    },
    "0.6b": train.SIZES["0.6b"],
}
VOCABULARY = {"tiny": 4096, "small": 151936, "0.6b": 151936}
MEDIAN, P95 = 100, 250  # tokens of a prompt that asks for a letter
SUBJECTS = 40
LETTERS = "أبجد"  # each one token of nano's, with the blank in front of it
ITEMS = "items.json"
MODULES = ["lm_eval.models.huggingface", "stages.model.scoring"]  # imported once for all processes


def main() -> None:
    arguments = parse()
    quiet()
    os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    found: dict[str, Any] = {
        "options": {key: value for key, value in vars(arguments).items() if key != "json"}
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found["machine"] = alone(folder, prepare, arguments.size, arguments.items, modules=MODULES)
        for kind in [arguments.only] if arguments.only else list(KINDS):
            found[kind] = {
                way: alone(folder, run, kind, way, arguments.tokens, modules=MODULES) for way in WAYS
            }
            found[kind]["agreement"] = agreement(*(found[kind][way].pop("logps") for way in WAYS))
    print(report(found))
    if arguments.json:
        write_json(arguments.json, found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="small", help="of the model")
    parser.add_argument("--items", type=int, default=48, help="of each kind")
    parser.add_argument("--only", choices=list(KINDS))
    parser.add_argument("--tokens", type=int, default=2048, help="of a batch")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE", help="the numbers for programs")
    return parser.parse_args()


# --- the items ----------------------------------------------------------------------------------------------


def prepare(size: str, items: int) -> dict:
    """A random base and generated items, in the current folder; returns the facts of this machine."""
    import torch

    configure("bfloat16" if torch.cuda.is_available() else "float32")
    make_model(SIZES[size], VOCABULARY[size])
    texts = Texts(template=None)
    table = {kind: make(texts, items) for kind, make in KINDS.items()}
    Path(ITEMS).write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def letter_questions(texts: Texts, items: int) -> list["Question"]:
    """The options, in front of which their letters stand, are half of the prompt."""
    start, subjects = texts.run_of(10), [texts.run_of(5) for _ in range(SUBJECTS)]
    lengths = texts.rng.lognormal(np.log(MEDIAN), np.log(P95 / MEDIAN) / 1.645, items).clip(40, LONGEST / 2)
    questions = []
    for length in lengths - 35:  # tokens of all that is the same in every prompt
        options = "\n".join(f"{letter}. {texts.run_of(length / 8)}" for letter in LETTERS)
        prompt = (
            f"{start} {texts.rng.choice(subjects)}\n\nسؤال: {texts.run_of(length / 2)}\n{options}\n\nجواب:"
        )
        questions.append((prompt, [f" {letter}" for letter in LETTERS]))
    return questions


def text_questions(texts: Texts, items: int) -> list["Question"]:
    def text(fewest: int, most: int) -> str:
        return texts.run_of(texts.rng.uniform(fewest, most))

    return [(f"سؤال: {text(95, 195)}\nجواب:", [f" {text(10, 25)}" for _ in range(4)]) for _ in range(items)]


KINDS = {"letters": letter_questions, "texts": text_questions}


# --- the ways -----------------------------------------------------------------------------------------------


def by_harness(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", questions: list["Question"], rows: int
) -> list[float]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    requests = [
        Instance("loglikelihood", {}, (prompt, choice), 0) for prompt, own in questions for choice in own
    ]
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=rows)
    return [logp for logp, _ in harness.loglikelihood(requests, disable_tqdm=True)]


def by_ours(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", questions: list["Question"], tokens: int
) -> list[float]:
    from stages.model import scoring

    return [
        one.logp for own in scoring.choices(model, tokenizer, questions, "", tokens=tokens) for one in own
    ]


WAYS: dict[str, "Scorer"] = {"lm-eval": by_harness, "ours": by_ours}


def lengths(
    way: str, tokenizer: "PreTrainedTokenizerBase", questions: list["Question"], tokens: int
) -> list[int]:
    """Tokens of every row that the model reads. lm-eval reads once what requests share that differ in their
    last token alone.
    """
    from stages.model import scoring

    pairs = [scoring.parted(prompt, choice) for prompt, own in questions for choice in own]
    sequences = scoring.encode(tokenizer, pairs, LONGEST)
    if way == "ours":
        return [len(row.tokens) for row in scoring.lay_out(dict(enumerate(sequences)), tokens)]
    return [len(read) for read in {tuple(one.read) for one in sequences}]


# --- measuring ----------------------------------------------------------------------------------------------


def run(kind: str, way: str, tokens: int) -> dict:
    """Score all items of a kind in one way, and say what it took."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stages.model.device import peak_memory

    questions, tokenizer = (
        json.loads(Path(ITEMS).read_text(encoding="utf-8"))[kind],
        AutoTokenizer.from_pretrained(BASE),
    )
    model = AutoModelForCausalLM.from_pretrained(
        BASE, dtype="auto", device_map="cuda" if torch.cuda.is_available() else None
    ).eval()
    rows = lengths(way, tokenizer, questions, tokens)
    batch = tokens if way == "ours" else max(1, round(tokens / np.mean(rows)))
    with torch.inference_mode():
        model(
            torch.tensor([[0]], device=model.device)
        )  # weights are read from the file when they are first used
    loaded, cpu, start = memory_now(), time.process_time(), time.perf_counter()
    logps = WAYS[way](model, tokenizer, questions, batch)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    choices = iter(logps)
    return {
        "items": len(questions), "seconds": seconds, "cpu_seconds": cpu_seconds,
        "items_per_second": len(questions) / seconds,
        "items_per_cpu_second": len(questions) / cpu_seconds, "peak_memory_gb": peak_memory(),
        "scoring_memory_gb": peak_memory() - loaded, "batch": batch,
        "tokens_per_item": sum(rows) / len(questions),
        "prompt_tokens": float(np.mean([len(ids) for ids in tokenizer([prompt for prompt,
            _ in questions])["input_ids"]])),
        "logps": [[next(choices) for _ in own] for _, own in questions],
    }  # fmt: skip


def memory_now() -> float:
    """GB (2**30 bytes) that are held now: by the GPU's allocator, or by this process where there is no
    GPU.
    """
    import psutil
    import torch

    return (
        torch.cuda.memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss
    ) / 2**30


def agreement(one: list[list[float]], other: list[list[float]]) -> dict[str, float]:
    """Share of items at which both find the same choice most probable, and the largest difference of
    log-probabilities.
    """
    return {
        "same_choice": float(np.mean([np.argmax(a) == np.argmax(b) for a, b in zip(one, other)])),
        "largest_difference": float(max(np.abs(np.subtract(a, b)).max() for a, b in zip(one, other))),
    }


# --- the report ---------------------------------------------------------------------------------------------

COLUMNS = {
    "seconds": ("seconds", "{:.1f}"), "CPU s": ("cpu_seconds", "{:.1f}"),
    "items/s": ("items_per_second", "{:.2f}"),
    "items/CPU s": ("items_per_cpu_second", "{:.2f}"), "peak GB": ("peak_memory_gb", "{:.2f}"),
    "beside the model": ("scoring_memory_gb", "{:.2f}"), "tokens/item": ("tokens_per_item", "{:.0f}"),
    "in the prompt": ("prompt_tokens", "{:.0f}"), "batch": ("batch", "{}"),
}  # fmt: skip


def report(found: dict) -> str:
    """A table for each kind of items, with what it comes to, and the machine."""
    machine, options, lines = found["machine"], found["options"], []
    # Other processes of a machine change how long a run on its CPU takes, but hardly its CPU time.
    rate, unit = (
        ("items_per_cpu_second", "CPU second")
        if machine["device"] == "CPU"
        else ("items_per_second", "second")
    )
    for kind in filter(found.get, KINDS):
        theirs, ours, same = (found[kind][name] for name in (*WAYS, "agreement"))
        faster, total, more = (
            ours[key] / theirs[key] for key in (rate, "peak_memory_gb", "scoring_memory_gb")
        )
        lines += [
            *train.table(kind, {way: found[kind][way] for way in WAYS}, COLUMNS),
            f"ours: {faster:.1f} times lm-eval's items per {unit}, {total:.2f} of its peak memory, "
            f"{more:.2f} of that beside the model",
            f"same choice in {same['same_choice']:.1%} of items, log-probabilities within "
            f"{same['largest_difference']:.0e}",
            "",
        ]
    facts = (
        f"{machine['device']}, {machine['cores']} cores, {machine['threads']} threads, torch "
        f"{machine['torch']}"
    )
    return "\n".join(
        [
            *lines,
            f"{facts}; model {options['size']}, {options['items']} items of a kind, batches of "
            f"{options['tokens']} tokens",
        ]
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
