"""What a training run says while it runs: one line of progress, and a warning when something goes wrong."""

import math
import time
from collections import deque
from statistics import fmean

from tqdm import tqdm
from transformers import Trainer, TrainerCallback

from stages.model import generation
from stages.model.device import peak_memory
from stages.settings.errors import Problem


class Progress(TrainerCallback):
    """Steps, loss, margin, tokens per second, memory, time left. Stops a run whose loss is no number."""

    def __init__(self, name: str, tokens: int):
        """`tokens` were seen before this process went on."""
        self.name, self.tokens = name, tokens

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=self.name, unit="step", dynamic_ncols=True,
            mininterval=1,
            disable=None if state.is_world_process_zero else True,
        )  # fmt: skip
        self.started = time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise Problem(
                f"the loss of {self.name} is {logs['loss']} at step {state.global_step}: lower the "
                "learning rate"
            )
        speed = (logs["num_tokens"] - self.tokens) / (time.monotonic() - self.started)
        names = {"loss": "loss", "margin": "rewards/margins"}
        shown = {ours: f"{logs[theirs]:.3f}" for ours, theirs in names.items() if theirs in logs}
        self.bar.set_postfix(shown | {"tok/s": f"{speed:.0f}", "GB": f"{peak_memory():.1f}"}, refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class Watch(TrainerCallback):
    """Says, once each, when a preference run collapses. Metrics of held-out pairs can look better all the
    while.
    """

    WINDOW = 10  # steps that are averaged
    # margin of rewards, in nats: σ(10) = 0.99995, nothing is left to learn but distance from the reference
    SATURATED = 10.0
    FALLEN = (10.0, 0.5)  # nats, and share of its log-probability, that the chosen answer may lose
    REPEATED = 0.5  # share of 4-grams that an answer has said before

    def __init__(self, name: str, trainer: Trainer):
        columns, self.tokenizer = trainer.train_dataset.column_names, trainer.processing_class
        self.name = name
        # Rewards are β log p/q where there is a reference q, whose log-probabilities stand in the data then.
        self.beta = trainer.args.beta if any(column.startswith("ref_") for column in columns) else None
        self.prompts = (
            self.tokenizer.batch_decode(trainer.train_dataset[:4]["prompt_ids"])
            if "prompt_ids" in columns
            else []
        )
        self.recent = deque(maxlen=self.WINDOW)
        self.said = set()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "rewards/margins" not in logs:
            return
        self.recent.append(logs)
        if len(self.recent) < self.WINDOW:
            return
        margin = fmean(entry["rewards/margins"] for entry in self.recent)
        if margin > self.SATURATED:
            self.warn(
                state,
                "margin",
                f"the margin has exploded to {margin:.1f}: lower the learning rate, or train for fewer "
                "epochs",
            )
        if self.beta:
            gained = fmean(entry["rewards/chosen"] for entry in self.recent) / self.beta
            before = fmean(entry["logps/chosen"] for entry in self.recent) - gained
            if -gained > max(self.FALLEN[0], self.FALLEN[1] * -before):
                change = f"({before:.0f} → {before + gained:.0f} nats)"
                cure = "lower the rate, or take a method with an SFT term (cpo, rpo)"
                self.warn(state, "chosen", f"chosen answers have become less probable {change}: {cure}")

    def on_step_end(self, args, state, control, model=None, **kwargs):
        quarters = {state.max_steps * quarter // 4 for quarter in (1, 2, 3)}
        if not self.prompts or state.global_step not in quarters or not state.is_world_process_zero:
            return
        model.eval()
        stops = [self.tokenizer.eos_token_id]
        answers = generation.generate(
            model, self.tokenizer, self.prompts, stops, limit=48, title="a look at answers"
        )
        model.train()
        worst = max(answers, key=lambda answer: answer.repetition)
        if worst.repetition > self.REPEATED:
            self.warn(
                state,
                "repetition",
                f"answers repeat themselves ({worst.text[:60]!r}): lower the learning rate",
            )

    def warn(self, state, kind: str, text: str) -> None:
        if kind not in self.said and state.is_world_process_zero:
            self.said.add(kind)
            tqdm.write(f"warning: {self.name}, step {state.global_step}: {text}")
