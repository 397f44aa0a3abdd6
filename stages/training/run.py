"""What sft, dpo and refine share: trainer arguments, and a run that can be killed, from its checkpoint to its
metrics.
"""

import csv
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from pyarrow import parquet
from safetensors import SafetensorError
from transformers import PrinterCallback, Trainer

from stages.console import trackers
from stages.console.progress import Progress, Watch
from stages.model import modeling
from stages.model.device import compute_dtype, described, peak_memory, require
from stages.settings import memory
from stages.settings.errors import Problem, unwritable
from stages.settings.files import cache, read_json, replace_file, write_json
from stages.settings.params import Params, Schedule, Training
from stages.settings.reader import read
from stages.training import checkpoints
from stages.training.looks import Answers, Looks, exhausted

# Our name of a logged quantity → the trainer's.
CURVES = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "gradient_norm": "grad_norm",
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "chosen_logp": "logps/chosen",
    "rejected_logp": "logps/rejected",
    "held_out_loss": "eval_loss",
    "held_out_margin": "eval_rewards/margins",
    "held_out_accuracy": "eval_rewards/accuracies",
    "held_out_chosen_logp": "eval_logps/chosen",
    "stop_probability": "eval_stop_probability",
    "stop_rate": "eval_stop_rate",
    "repetition": "eval_repetition",
}
LAST = 10  # steps at least that a last loss or margin is the mean of; one alone says little
UNDO = (
    "what it trained is kept: undo that and run again, which takes seconds; an edit that changes no result, "
    "such as a comment, can be made once more after that and accepted by `dvc commit {stage}`"
)
OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}


def load_rows(path: Path, columns: Iterable[str]) -> Dataset:
    """Columns of a Parquet file as an in-memory dataset (datasets' own reader would leave a copy in a
    cache).
    """
    return Dataset(InMemoryTable(parquet.read_table(path, columns=list(columns))))


def arguments(
    params: Params, training: Training, schedule: Schedule, epochs: float, learning_rate: float
) -> dict:
    """Trainer arguments that every stage has in common."""
    on_gpu, dtype = torch.cuda.is_available(), compute_dtype(params.chosen_model.weights)
    return {
        "output_dir": str(cache("checkpoints")),  # until `run` knows the folder of its own
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        # transformers' `constant` alone would leave the warm-up out
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(schedule.schedule, schedule.schedule),
        "warmup_steps": schedule.warmup,
        "optim": OPTIMIZERS[params.training.optimizer],
        "weight_decay": params.training.weight_decay,
        "max_grad_norm": params.training.max_grad_norm,
        "per_device_train_batch_size": training.batch_size,
        "per_device_eval_batch_size": training.batch_size,
        "gradient_accumulation_steps": shared(params, training),
        "gradient_checkpointing": training.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "max_length": params.prompt.max_length,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "torch_compile": params.training.compile,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "dataloader_num_workers": 2 if on_gpu else 0,
        "ddp_timeout": 24 * 3600,  # seconds that processes wait while the first one computes the reference
        "ddp_find_unused_parameters": False,
        "log_level": "error",
        "log_level_replica": "error",
        "seed": params.seed,
        "data_seed": params.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide a lost loss behind the one before
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": 0.1,  # of all; where a run looks ten times, at these steps
        "save_total_limit": 2,
        "metric_for_best_model": "loss",  # held out: of the method's own loss, see `looks`
        "greater_is_better": False,
        "report_to": "none",
    }


def shared(params: Params, training: Training) -> int:
    """Accumulation of one process: a step sees batch_size x accumulation rows however many GPUs there are."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if training.accumulation % processes:
        raise Problem(
            f"accumulation is {training.accumulation} for {params.model}, which {processes} processes "
            "cannot share: make it a multiple of "
            f"{processes} and batch_size smaller by as much, so that a step sees as many rows as before"
        )
    return training.accumulation // processes


def train(trainer: Trainer, name: str, params: Params, settings: Schedule, provenance: dict) -> dict:
    """Train, unless this very run came to its end before; then write models/<name>, its curves and metrics.

    Raises Problem, with a cure, where what the run reads was edited meanwhile: undone, it need not be trained
    again.
    """
    precision = compute_dtype(params.chosen_model.weights)
    if str(precision) != f"torch.{params.chosen_model.weights.dtype}":
        print(f"{name}: this GPU has no bfloat16: computing in float16 with a loss scaler")
    determinants = provenance | {
        "processes": trainer.args.world_size,
        "device": trainer.args.device.type,
        "precision": str(precision),
    }
    if trainer.is_world_process_zero():
        print(f"{name}: {described(trainer.model)}", flush=True)
    with checkpoints.claimed(name, determinants, trainer.accelerator) as folder:
        params.require_unchanged("run again")  # the folder's name tells of the code that stands there now
        finished = folder / "finished"
        if (finished / "facts.json").exists():
            print(f"{name}: trained to its end before, which is recorded now", flush=True)
        else:
            title = " ".join(filter(None, [name, params.model, provenance.get("method")]))
            learn(trainer, name, title, settings, provenance, folder)
        trainer.accelerator.wait_for_everyone()
        found = read_json(finished / "facts.json")
        if trainer.is_world_process_zero():
            params.require_unchanged(UNDO.format(stage=name.replace("refine-", "refine@")))
            checkpoints.publish(finished / "model", Path("models") / name)
            with replace_file(Path(f"metrics/curves/{name}.tsv")) as temporary:
                shutil.copyfile(finished / "curves.tsv", temporary)
            write_json(Path(f"metrics/train_{name}.json"), found)
            print(f"{name}: {summary(found)}")
    return found


def learn(
    trainer: Trainer, name: str, title: str, settings: Schedule, provenance: dict, folder: Path
) -> None:
    """Train, from the last whole checkpoint of this very run if there is one; then write, into `finished` of
    its folder, the model as it was at the step to keep, its curves and facts.

    Raises Problem, with a cure, where the loss is lost or the run was stopped before its end.
    """
    looks = Looks(settings, trainer.eval_dataset is not None)
    trainer.remove_callback(PrinterCallback)
    trainer.args.output_dir = os.path.relpath(folder)  # trackers show it
    resumed, tokens = checkpoints.agreed(folder, settings.patience, trainer.accelerator), 0
    if resumed:
        print(f"{name}: going on from {resumed.name}", flush=True)
        tokens = tokens_seen(read_json(resumed / "trainer_state.json")["log_history"])
        trainer._total_train_tokens = tokens  # TRL would count from nothing again
    trainer.args.eval_on_start = looks.count > 0 and not resumed
    curves = Path(f"metrics/curves/{name}.tsv")
    trainer.add_callback(looks)
    answers = Answers(title, trainer, looks.count, folder) if looks.count else None
    if answers and answers.prompts:  # documents have none
        trainer.add_callback(answers)
        print(f"{name}: answers as it learns: {answers.page}", flush=True)
    trainer.add_callback(checkpoints.Seal(trainer.accelerator))
    trainer.add_callback(Progress(name, tokens, lambda history: write_curves(curves, history)))
    trainer.add_callback(Watch(name, trainer))
    trackers.track(trainer, title)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=resumed and str(resumed))
    state = trainer.state
    if state.global_step < state.max_steps and not exhausted(state.log_history, settings.patience):
        raise Problem(f"{name} stopped at step {state.global_step} of {state.max_steps}: run again to go on")
    kept = state.global_step
    if settings.keep == "best" and state.best_global_step:
        kept = state.best_global_step
    if kept < state.global_step:
        trainer._load_best_model()
    found = facts(trainer, kept, tokens, time.monotonic() - started)
    modeling.save_checkpoint(trainer, folder / "finished/model", provenance | {"step": kept})
    if trainer.is_world_process_zero():
        write_curves(folder / "finished/curves.tsv", state.log_history)
        write_json(folder / "finished/facts.json", found)


def summary(found: dict) -> str:
    """A finished run in a line."""
    held_out = ""
    if "held_out_loss" in found:
        before, after = found["held_out_start_loss"], found["held_out_loss"]
        kept = "" if found["kept_step"] == found["steps"] else f", step {found['kept_step']} kept"
        held_out = f", held-out loss {before:.3f} → {after:.3f}{kept}"
    return (
        f"{found['steps']} steps, loss {found['start_loss']:.3f} → {found['final_loss']:.3f}{held_out}, "
        f"{found['cost'][0]['seconds']:.0f} s"
    )


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Around a training stage: one line with a cure for what stops a good run, be it no memory, no disk, or a
    person.
    """
    require(name)
    trackers.chosen()
    try:
        yield
    except torch.OutOfMemoryError:
        # read(): the plan asks for more than a stage may see.
        raise Problem(memory.advice(read(), name)) from None
    except KeyboardInterrupt:
        raise Problem(f"{name} was interrupted: the same command goes on from its last checkpoint") from None
    except (OSError, RuntimeError, SafetensorError) as error:
        if why := unwritable(error):
            raise Problem(f"{name}: {why}; the same command goes on from its last checkpoint") from None
        raise


def write_curves(path: Path, history: list[dict]) -> None:
    """One row per step, for `dvc plots`; what was held out stands where there was a look."""
    steps: dict[int, dict] = {}
    for entry in history:
        if any(theirs in entry for theirs in CURVES.values()):
            steps.setdefault(entry["step"], {"step": entry["step"]}).update(entry)
    history = list(steps.values())
    names = [ours for ours, theirs in CURVES.items() if any(theirs in entry for entry in history)]
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["step", *names])
        # A step of good answers alone, or of bad ones, has no margin.
        cells = [
            [f"{entry[CURVES[name]]:.6g}" if CURVES[name] in entry else "" for name in names]
            for entry in history
        ]
        writer.writerows([entry["step"], *own] for entry, own in zip(history, cells))


def tokens_seen(history: list[dict]) -> int:
    """By a training whose log this is, since its first step."""
    return max((int(entry.get("num_tokens", 0)) for entry in history), default=0)


def facts(trainer: Trainer, kept: int, tokens_before: int, seconds: float) -> dict:
    """Steps, losses and margins first and last (mean of the last tenth, of ten steps at least), and those of
    held-out rows before the first step and at the one that is `kept`. `cost` is what this process took: a
    list, which `dvc metrics diff` passes over, for another machine's seconds are no result.
    """
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    tail = history[-max(LAST, len(history) // 10) :]
    found = {"steps": history[-1]["step"], "start_loss": round(history[0]["loss"], 4)}
    for ours in ("loss", "margin", "accuracy"):
        if known := [entry[CURVES[ours]] for entry in tail if CURVES[ours] in entry]:
            found[f"final_{ours}"] = round(fmean(known), 4)
    found["kept_step"] = kept
    looks = {e["step"]: e for e in trainer.state.log_history if "eval_loss" in e}
    if kept in looks:
        found["held_out_start_loss"] = round(looks[0]["eval_loss"], 4)
        for ours in ("held_out_loss", "held_out_margin", "held_out_accuracy"):
            if CURVES[ours] in looks[kept]:
                found[ours] = round(looks[kept][CURVES[ours]], 4)
    tokens = tokens_seen(history)
    cost = {
        "tokens_per_second": round((tokens - tokens_before) / seconds),
        "seconds": round(seconds, 1),
        "peak_memory_gb": round(peak_memory(), 2),
    }
    return found | {"tokens": tokens, "cost": [cost]}
