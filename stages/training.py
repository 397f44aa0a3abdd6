"""What sft and dpo share: trainer arguments, a progress line, the run itself, curves and facts."""

import csv
import math
import resource
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from pyarrow import parquet
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback

from stages.files import replace_file
from stages.params import Params, Problem, Schedule, Training

# Our name of a logged quantity → the trainer's.
CURVES = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "chosen_logp": "logps/chosen",
    "rejected_logp": "logps/rejected",
}


def load_rows(path: Path, columns: Iterable[str]) -> Dataset:
    """Columns of a Parquet file as an in-memory dataset (datasets' own reader would leave a copy in a cache)."""
    return Dataset(InMemoryTable(parquet.read_table(path, columns=list(columns))))


def arguments(params: Params, training: Training, schedule: Schedule, epochs: float, learning_rate: float) -> dict:
    """Trainer arguments that every stage has in common."""
    dtype = params.chosen_model.weights.dtype
    return {
        "output_dir": ".cache/trainer",  # the trainer wants a folder, and leaves it empty
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "lr_scheduler_type": schedule.schedule,
        "warmup_steps": schedule.warmup,
        "per_device_train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.accumulation,
        "gradient_checkpointing": training.gradient_checkpointing,
        "max_length": params.prompt.max_length,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "seed": params.seed,
        "data_seed": params.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide a lost loss behind the one before
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
    }


def run(trainer: Trainer, name: str) -> dict:
    """Train, write metrics/curves/<name>.tsv, and return the facts of the run. Raises Problem where the loss is lost."""
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # TRL casts adapters on a 4-bit base to bf16, whose rounding swallows small updates (at 5e-7, 99 % of them).
            parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress(name))
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    if trainer.state.global_step < trainer.state.max_steps:
        raise Problem(f"{name} stopped at step {trainer.state.global_step} of {trainer.state.max_steps}: run again")
    write_curves(Path(f"metrics/curves/{name}.tsv"), history)
    found = facts(history, seconds)
    print(f"{name}: {found['steps']} steps in {seconds:.0f} s, loss {found['start_loss']:.3f} → {found['final_loss']:.3f}")
    return found


class Progress(TrainerCallback):
    """One line: steps, loss, margin, time left. Stops a run whose loss is no number."""

    def __init__(self, name: str):
        self.name = name

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, desc=self.name, unit="step", dynamic_ncols=True, mininterval=1, disable=None)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise Problem(f"the loss of {self.name} is {logs['loss']} at step {state.global_step}: lower the learning rate")
        shown = {ours: f"{logs[theirs]:.3f}" for ours, theirs in CURVES.items() if theirs in logs and ours in ("loss", "margin")}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def write_curves(path: Path, history: list[dict]) -> None:
    """One row per step, for `dvc plots`."""
    names = [ours for ours, theirs in CURVES.items() if theirs in history[0]]
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["step", *names])
        writer.writerows([entry["step"], *(f"{entry[CURVES[name]]:.6g}" for name in names)] for entry in history)


def facts(history: list[dict], seconds: float) -> dict:
    """Steps, losses and margins first and last (mean of the last tenth), then speed and memory."""
    tail = history[-max(1, len(history) // 10) :]
    found = {"steps": history[-1]["step"], "start_loss": round(history[0]["loss"], 4)}
    for ours in ("loss", "margin", "accuracy"):
        if CURVES[ours] in history[0]:
            found[f"final_{ours}"] = round(sum(entry[CURVES[ours]] for entry in tail) / len(tail), 4)
    tokens = int(history[-1]["num_tokens"])
    return found | {
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds),
        "seconds": round(seconds, 1),
        "peak_memory_gb": round(peak_memory() / 2**30, 2),
    }


def peak_memory() -> int:
    """Bytes: of the GPU's allocator, or of this process where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
