"""What a training run says while it runs: how far it is, and a warning when something goes wrong."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from statistics import fmean

from tqdm import tqdm
from transformers import Trainer, TrainerCallback

from stages.model.device import peak_memory
from stages.settings.errors import Problem

# Our name of a quantity that is shown → the trainer's.
SHOWN = {
    "loss": "loss",
    "margin": "rewards/margins",
    "held-out loss": "eval_loss",
    "held-out margin": "eval_rewards/margins",
}


class Progress(TrainerCallback):
    """Steps, loss, margin, tokens per second, memory, time left: a bar in a terminal, else a line a minute
    and at each look at held-out rows. Stops a run whose loss is no number.
    """

    EVERY = 60  # seconds between lines, and between what `keep` is given
    WARM = (3, 20)  # steps and seconds after which the time that a run takes can be told

    def __init__(self, name: str, tokens: int, keep: Callable[[list[dict]], None]):
        """`tokens` were seen before this process went on; `keep` is given the log as it grows."""
        self.name, self.tokens, self.keep = name, tokens, keep
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.first = state.is_world_process_zero
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=self.name, unit="step", dynamic_ncols=True,
            mininterval=1,
            disable=None if self.first else True,
        )  # fmt: skip
        self.lines = self.first and self.bar.disable
        self.started = self.said = self.kept = time.monotonic()
        self.began, self.told = state.global_step, False

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.began:  # what comes before the first step comes once
            self.started = time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.shown |= {ours: f"{logs[theirs]:.3f}" for ours, theirs in SHOWN.items() if theirs in logs}
        if "loss" in logs:
            self.step(state, logs)
        if "eval_loss" in logs and state.global_step:
            self.line(state)
            self.save(state)

    def step(self, state, logs: dict) -> None:
        if not math.isfinite(logs["loss"]):
            raise Problem(
                f"the loss of {self.name} is {logs['loss']} at step {state.global_step}: lower the "
                "learning rate"
            )
        now = time.monotonic()
        speed = (logs["num_tokens"] - self.tokens) / (now - self.started)
        self.shown |= {"tok/s": f"{speed:.0f}", "GB": f"{peak_memory():.1f}"}
        self.bar.set_postfix(self.shown, refresh=False)
        self.bar.update(state.global_step - self.bar.n)
        steps, seconds = self.WARM
        if not self.told and state.global_step - self.began >= steps and now - self.started > seconds:
            self.told = True
            if self.left(state) > seconds:
                self.tell(state)
        if now - self.said > self.EVERY:
            self.line(state)
        if now - self.kept > self.EVERY:
            self.save(state)

    def left(self, state) -> float:
        """Seconds, at the speed of this process so far."""
        steps = state.global_step - self.began
        return (time.monotonic() - self.started) / max(1, steps) * (state.max_steps - state.global_step)

    def tell(self, state) -> None:
        if self.first:
            left = self.left(state)
            end = time.strftime("%H:%M", time.localtime(time.time() + left))
            tqdm.write(f"{self.name}: about {duration(left)} more, until {end}", file=sys.stdout)

    def line(self, state) -> None:
        self.said = time.monotonic()
        if self.lines:
            shown = ", ".join(f"{name} {value}" for name, value in self.shown.items())
            left = duration(self.left(state))
            print(
                f"{self.name}: step {state.global_step} of {state.max_steps}, {shown}, {left} left",
                flush=True,
            )

    def save(self, state) -> None:
        self.kept = time.monotonic()
        if self.first:
            self.keep(state.log_history)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def duration(seconds: float) -> str:
    """As people say it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Watch(TrainerCallback):
    """Says, once each, when a run goes wrong. Metrics of held-out rows can look better all the while."""

    WINDOW = 10  # steps that are averaged
    # margin of rewards, in nats: σ(10) = 0.99995, nothing is left to learn but distance from the reference
    SATURATED = 10.0
    FALLEN = (10.0, 0.5)  # nats, and share of its log-probability, that the chosen answer may lose
    REPEATED = 0.5  # share of 4-grams that an answer has said before
    ARABIC = 0.5  # share of an answer's letters
    FEW = 30  # steps; fewer teach little whatever the rate
    MOVED = 0.1  # nats of held-out margin, below which a preference run has gone nowhere

    def __init__(self, name: str, trainer: Trainer):
        self.name, self.args, self.rows = name, trainer.args, len(trainer.train_dataset)
        self.held_out = len(trainer.eval_dataset or ())
        # Rewards are β log p/q where there is a reference q, whose log-probabilities stand in the data then.
        columns = trainer.train_dataset.column_names
        self.beta = trainer.args.beta if any(column.startswith("ref_") for column in columns) else None
        self.recent = deque(maxlen=self.WINDOW)
        self.said = set()

    def on_train_begin(self, args, state, control, **kwargs):
        if state.max_steps < self.FEW and not state.global_step:
            batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
            epochs = math.ceil(self.FEW * args.num_train_epochs / state.max_steps)
            rows = "packs of rows" if getattr(args, "packing", False) else "rows"
            self.warn(
                state,
                "few",
                f"{state.max_steps} steps of {batch} {rows} from {self.rows:,} teach little: lower "
                "accumulation, "
                f"or set epochs to {epochs}",
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "eval_stop_rate" in logs and state.global_step > state.max_steps / 2:
            self.look(state, logs)
        if "rewards/margins" in logs:
            self.pairs(state, logs)

    def look(self, state, logs: dict) -> None:
        """At answers to held-out prompts."""
        if logs["eval_stop_rate"] == 0:
            cure = "raise the learning rate or epochs, or set sft.train_markers: always"
            self.warn(state, "stop", f"no held-out answer stops by itself: {cure}")
        if logs["eval_repetition"] > self.REPEATED:
            self.warn(state, "repetition", "answers repeat themselves: lower the learning rate")
        if logs["eval_arabic_share"] < self.ARABIC:
            share = f"{logs['eval_arabic_share']:.0%} of their letters"
            self.warn(
                state, "script", (f"answers to held-out prompts are hardly Arabic ({share}): see the data")
            )

    def pairs(self, state, logs: dict) -> None:
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

    def on_train_end(self, args, state, control, **kwargs):
        """A preference run whose held-out pairs are told apart as before has taught nothing."""
        looks = [entry for entry in state.log_history if "eval_rewards/margins" in entry]
        if len(looks) < 2:
            return
        start, end = (
            (look["eval_rewards/margins"], look.get("eval_rewards/accuracies"))
            for look in (looks[0], looks[-1])
        )
        if self.beta:
            start = 0.0, 0.5  # of a policy that is its reference all margins are nothing, or rounding
        noise = 2 * math.sqrt(0.25 / self.held_out)  # two standard errors of an accuracy
        told_apart = end[1] is not None and abs(end[1] - start[1]) > noise  # KTO has no pairs
        if abs(end[0] - start[0]) < self.MOVED and not told_apart:
            self.warn(
                state,
                "nowhere",
                f"held-out answers are told apart as before (margin {start[0]:.3f} → {end[0]:.3f}): "
                f"{state.global_step} steps at a rate of {args.learning_rate:g} were too few or too small",
            )

    def warn(self, state, kind: str, text: str) -> None:
        if kind not in self.said and state.is_world_process_zero:
            self.said.add(kind)
            tqdm.write(f"warning: {self.name}, step {state.global_step}: {text}")
