"""What a run says while it runs, and what it says when it goes wrong."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stages import dpo
from stages.console.progress import Watch
from stages.preference import reference, trainers
from stages.preference.trainers import PairTrainer
from stages.settings.reader import read

STATE = SimpleNamespace(global_step=20, max_steps=100, is_world_process_zero=True)


@pytest.fixture
def watch(inside) -> Watch:
    trainer = trainers.build(read(), "dpo", Path("models/sft"))
    return Watch("dpo", trainer)


def say(watch: Watch, capsys, steps: int = 12, **logs) -> str:
    for _ in range(steps):
        watch.on_log(None, STATE, None, logs={key.replace("_", "/", 1): value for key, value in logs.items()})
    return capsys.readouterr().out


def test_a_good_run_warns_of_nothing(watch, capsys):
    assert say(watch, capsys, rewards_margins=1.2, rewards_chosen=-0.3, logps_chosen=-80.0) == ""


def test_a_margin_that_explodes_is_said_once(watch, capsys):
    said = say(watch, capsys, steps=30, rewards_margins=14.0, rewards_chosen=0.0, logps_chosen=-80.0)
    assert said == (
        "warning: dpo, step 20: the margin has exploded to 14.0: lower the learning rate, or train for "
        "fewer epochs\n"
    )


def test_a_chosen_answer_that_becomes_improbable_is_said(watch, capsys):
    said = say(
        watch, capsys, rewards_margins=1.0, rewards_chosen=-6.0, logps_chosen=-140.0
    )  # β 0.1: 60 nats lost of 80
    assert "chosen answers have become less probable (-80 → -140 nats)" in said
    assert say(watch, capsys, rewards_margins=1.0, rewards_chosen=-6.0, logps_chosen=-140.0) == ""
    calm = Watch.__new__(Watch)
    calm.__dict__ = watch.__dict__ | {"said": set(), "recent": watch.recent.__class__(maxlen=10)}
    assert say(calm, capsys, rewards_margins=1.0, rewards_chosen=-3.0, logps_chosen=-140.0) == ""  # 30 of 110


@pytest.mark.parametrize(
    ("logs", "said"),
    [
        (
            {"eval_stop_rate": 0.0},
            "no held-out answer stops by itself: raise the learning rate or epochs, or set",
        ),
        ({"eval_repetition": 0.8}, "answers repeat themselves: lower the learning rate"),
        ({"eval_arabic_share": 0.1}, "answers to held-out prompts are hardly Arabic (10% of their letters)"),
    ],
)
def test_what_answers_show_is_said_in_the_second_half(watch, capsys, logs, said):
    logs = {"eval_stop_rate": 1.0, "eval_repetition": 0.0, "eval_arabic_share": 1.0} | logs
    watch.on_log(None, STATE, None, logs=logs)
    assert capsys.readouterr().out == ""
    late = SimpleNamespace(global_step=60, max_steps=100, is_world_process_zero=True)
    watch.on_log(None, late, None, logs=logs)
    assert f"warning: dpo, step 60: {said}" in capsys.readouterr().out


def look(step: int, margin: float, accuracy: float) -> dict:
    return {"step": step, "eval_rewards/margins": margin, "eval_rewards/accuracies": accuracy}


@pytest.mark.parametrize(("margin", "accuracy", "warned"), [(0.03, 0.52, True), (0.9, 0.8, False)])
def test_a_preference_run_that_went_nowhere_says_so(watch, capsys, margin, accuracy, warned):
    watch.held_out = 64
    state = SimpleNamespace(**vars(STATE), log_history=[look(0, 0.0, 0.0), look(20, margin, accuracy)])
    watch.on_train_end(watch.args, state, None)
    said = capsys.readouterr().out
    assert ("20 steps at a rate of 2.5e-05 were too few or too small" in said) == warned


def test_too_few_steps_are_said_with_the_number_to_set(watch, capsys):
    state = SimpleNamespace(global_step=0, max_steps=3, is_world_process_zero=True)
    watch.on_train_begin(watch.args, state, None)
    assert (
        "3 steps of 16 rows from 176 teach little: lower accumulation, or set epochs to 10"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("where", ["scored", "training_step"])
def test_out_of_gpu_memory_names_what_to_lower(inside, monkeypatch, where):
    """In the reference pass as in a step."""

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(reference if where == "scored" else PairTrainer, where, full)
    monkeypatch.setenv("DVC_ROOT", str(inside.path / "nothing-there"))  # no reference on disk
    cure = r"error: models.nano.preference.*: dpo ran out of GPU memory; .* GB were predicted; .* needs .* GB"
    with pytest.raises(SystemExit, match=cure):
        dpo.main()


def in_a_terminal(command: list[str], folder: Path) -> list[str]:
    """The lines that stay on a terminal of 140 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 140, 0, 0))
    process = subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while chunk := os.read(ours, 4096):
            seen += chunk
    os.close(ours)
    assert process.wait() == 0
    lines = [line.split("\r")[-1].strip() for line in seen.decode().replace("\r\n", "\n").split("\n")]
    # What a bar within the bar draws below it, and takes away, moves the cursor back up.
    return [line for line in lines if line and "\x1b[A" not in line]


def test_a_run_is_one_tidy_line(inside):
    """Where it computes, where its answers are, one line that is drawn anew, and a summary; no library has
    anything to say.
    """
    lines = in_a_terminal([sys.executable, "-m", "stages.sft"], inside.path)
    drawn = [line for line in lines if re.match(r"sft: +\d+%\|", line)]
    place, page, *warned, summary = (line for line in lines if line not in drawn)
    progress = drawn[-1]
    assert re.fullmatch(r"sft: on .*, float32 weights, attention by sdpa", place)
    assert re.fullmatch(r"sft: answers as it learns: .*cache/looks/sft-nano.html", page)
    assert all(line.startswith("warning: sft, step ") for line in warned), warned
    assert re.fullmatch(
        r"sft: 100%\|█+\| (\d+)/\1 \[\d\d:\d\d<00:00, .*, held-out loss=\d\.\d{3}, loss=\d\.\d{3}, "
        r"tok/s=\d+, GB=\d\.\d\]",
        progress,
    ), progress
    assert re.fullmatch(
        r"sft: \d+ steps, loss \d\.\d{3} → \d\.\d{3}, "
        r"held-out loss \d\.\d{3} → \d\.\d{3}(, step \d+ kept)?, \d+ s",
        summary,
    )
