"""Looks at held-out rows while a run trains: how well they are predicted, how a few prompts are answered,
which step is kept, and when to stop.

A look costs a forward pass over a fixed sample, which is as large as `COST` of the run allows. The page of
answers is for people, in `.cache/looks`; what is measured stands in the curves and metrics.
"""

import html
import math
import time
from pathlib import Path
from statistics import fmean

from datasets import Dataset
from transformers import Trainer, TrainerCallback

from stages.model import generation
from stages.settings.files import cache, read_json, replace_file, write_json
from stages.settings.params import Schedule
from stages.text.arabic import arabic_share
from stages.text.prompts import TEMPLATES

HELD_OUT = "validation.parquet"  # beside the rows of training
COST = 0.02  # of the run's time, for all looks
STEP_COST = 3  # forward passes that a row costs in training, its backward pass included
ANSWER_COST = 200  # micro-batches of training that may pass for each time that the prompts are answered
ROWS = (16, 512)  # of a sample: the fewest and the most
PROMPTS = 4
ANSWER = 48  # tokens: prompts are chosen whose own answer is no longer
SAVED_EVERY = 600  # seconds that a kill may cost, where checkpoints are further apart


def sampled(held_out: Dataset, trained: int, epochs: float, evaluations: int) -> Dataset | None:
    """Rows spread evenly over those held out, as many as the looks of a run on `trained` rows may cost."""
    if not evaluations or not len(held_out):
        return None
    count = int(trained * epochs * STEP_COST * COST / (evaluations + 1))
    count = min(max(count, ROWS[0]), ROWS[1], len(held_out))
    return held_out.select([i * len(held_out) // count for i in range(count)])


class Looks(TrainerCallback):
    """Asks for a look at even steps and at the last one, keeps the best checkpoint, stops a run that gains
    nothing more.
    """

    def __init__(self, settings: Schedule, evaluated: bool):
        """`evaluated`: whether there are held-out rows to look at."""
        self.settings, self.count = settings, settings.evaluations if evaluated else 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.steps = places(state.max_steps, self.count)
        self.saved = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            control.should_evaluate = control.should_save = True
        elif args.world_size == 1 and time.monotonic() - self.saved > SAVED_EVERY:
            control.should_save = True  # of several processes each would have a clock of its own

    def on_save(self, args, state, control, **kwargs):
        self.saved = time.monotonic()

    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step and exhausted(state.log_history, self.settings.patience):
            control.should_training_stop = True


def places(last: int, count: int) -> list[int]:
    """Even steps of at most `count` looks, as the trainer spaces its checkpoints, and the last step."""
    step = math.ceil(last / count) if count else last + 1
    return sorted({*range(step, last + 1, step), *([last] if count else [])})


def losses(history: list[dict]) -> list[tuple[float, int]]:
    """Held-out losses of a training's log and their steps, but for that before the first step."""
    return [
        (entry["eval_loss"], entry["step"]) for entry in history if "eval_loss" in entry and entry["step"]
    ]


def exhausted(history: list[dict], patience: int) -> bool:
    """Whether the last `patience` looks were all worse than one before; never with 0."""
    found = losses(history)
    return bool(patience and found) and found.index(min(found)) < len(found) - patience


class Answers(TrainerCallback):
    """Answers the same few held-out prompts at every look, for the log (stop rate, repetition, Arabic) and
    for a page that a person can read while the run goes on.

    Prompts are those whose own answers are short, so that an answer that does not stop says something. In a
    short run they are answered at some of the looks, the first and the last among them.
    """

    def __init__(self, title: str, trainer: Trainer, count: int, folder: Path):
        """`count`: of looks; `folder` is the run's own."""
        self.trainer, self.tokenizer, self.store = trainer, trainer.processing_class, folder / "looks.json"
        self.page, self.title, self.count = cache("looks") / f"{title.replace(' ', '-')}.html", title, count
        pairs = sorted(prompts_and_answers(trainer.eval_dataset), key=lambda pair: len(pair[1]))
        short = [pair for pair in pairs if len(pair[1]) <= ANSWER] or pairs[:PROMPTS]
        chosen = [short[i * len(short) // PROMPTS] for i in range(min(PROMPTS, len(short)))]
        start = self.tokenizer.bos_token or ""  # where a tokenizer adds one it would do so again
        prompts, answers = ([pair[part] for pair in chosen] for part in (0, 1))
        self.prompts, self.wanted = (
            [self.tokenizer.decode(ids).removeprefix(start) for ids in part] for part in (prompts, answers)
        )
        self.limit = max([ANSWER, *map(len, answers)]) + ANSWER // 3

    def on_train_begin(self, args, state, control, **kwargs):
        """A run that goes on shows what was answered up to there."""
        looks = places(state.max_steps, self.count)
        answered = max(1, state.max_steps * args.gradient_accumulation_steps // ANSWER_COST)
        self.steps = {0, *looks[:: -max(1, math.ceil(len(looks) / answered))]}
        known = read_json(self.store) if self.store.exists() else []
        self.shown = [look for look in known if look["step"] <= state.global_step]

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        if state.global_step not in self.steps or not state.is_world_process_zero:
            return
        model.eval()  # also for the log, which is one of training otherwise
        stops = self.tokenizer.convert_tokens_to_ids(
            list(dict.fromkeys([self.tokenizer.eos_token, self.tokenizer.pad_token]))
        )
        found = generation.generate(
            model, self.tokenizer, self.prompts, stops, self.limit, "a look at answers"
        )
        self.trainer.log(
            {
                "eval_stop_rate": fmean(answer.stopped for answer in found),
                "eval_repetition": max(answer.repetition for answer in found),
                "eval_arabic_share": fmean(arabic_share(answer.text) for answer in found),
            }
        )
        look = {"step": state.global_step, "loss": metrics["eval_loss"], "answers": [a.text for a in found]}
        self.shown = [old for old in self.shown if old["step"] < look["step"]] + [look]
        write_json(self.store, self.shown)
        self.write_page(state.max_steps)

    def readable(self, text: str) -> str:
        """A rendered prompt, or an answer, without the marks of its template."""
        marks = {
            mark.strip()
            for one in TEMPLATES.values()
            for mark in (one.system, one.user, one.assistant, one.stop)
        }
        for mark in sorted({*marks, self.tokenizer.eos_token} - {""}, key=len, reverse=True):
            text = text.replace(mark, "")
        return text.strip()

    def write_page(self, steps: int) -> None:
        """A prompt per section, what was answered at each look, the newest first, and the answer in the
        data.
        """
        title, looks = html.escape(self.title), self.shown
        lines = [
            "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>",
            "<meta http-equiv=refresh content=60>",
            f"<title>{title}</title>",
            "<style>body{font:16px/1.6 system-ui;max-width:46em;margin:2em auto;padding:0 1em}"
            "table{border-collapse:collapse;width:100%}td{border-top:1px solid #8884;padding:.3em "
            ".5em;vertical-align:top}"
            "td:first-child{white-space:nowrap;opacity:.6}pre{white-space:pre-wrap;font:inherit;margin:0}</style>",
            f"<h1>{title}</h1><p>{looks[-1]['step']:,} of {steps:,} steps</p>",
        ]
        for i, (prompt, wanted) in enumerate(zip(self.prompts, self.wanted)):
            lines.append(f"<h2><pre dir=auto>{html.escape(self.readable(prompt))}</pre></h2><table>")
            lines += [
                f"<tr><td>step {look['step']:,}, loss {look['loss']:.3f}<td><pre dir=auto>"
                f"{html.escape(look['answers'][i])}</pre>"
                for look in reversed(looks)
            ]
            lines.append(
                f"<tr><td>in the data<td><pre dir=auto>{html.escape(self.readable(wanted))}</pre></table>"
            )
        with replace_file(self.page) as temporary:
            temporary.write_text("\n".join(lines), encoding="utf-8")


def prompts_and_answers(rows: Dataset) -> list[tuple[list[int], list[int]]]:
    """The tokens of a prompt and of a good answer to it, as TRL's trainers hold them: of supervised rows (the
    last answer of a conversation, none of a document), pairs, or answers with a label.
    """
    if "input_ids" in rows.column_names:
        starts = [last_answer(labels) for labels in rows["labels"]]
        return [(ids[:start], ids[start:]) for ids, start in zip(rows["input_ids"], starts) if start > 1]
    if "chosen_ids" in rows.column_names:
        return list(zip(rows["prompt_ids"], rows["chosen_ids"]))
    good = rows.select([i for i, label in enumerate(rows["label"]) if label] or range(len(rows)))
    return list(zip(good["prompt_ids"], good["completion_ids"]))


def last_answer(labels: list[int]) -> int:
    """Where the last run of trained tokens starts, whose labels are not -100: 1 or 0 in a document."""
    return next((i for i in range(len(labels), 0, -1) if labels[i - 1] == -100), 0)
