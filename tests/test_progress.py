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


def test_answers_that_repeat_themselves_are_said(watch, capsys, inside):
    model = trainers.build(read(), "dpo", Path("models/sft")).model
    assert capsys.readouterr().out.endswith("do not fill a step of 16: they are left out\n")
    state = SimpleNamespace(global_step=25, max_steps=100, is_world_process_zero=True)
    model.train()
    watch.on_step_end(None, state, None, model=model)
    assert capsys.readouterr().out == ""
    assert model.training
    model.get_output_embeddings().weight.data[:] = (
        0  # every token as likely as any: the first is repeated for ever
    )
    watch.on_step_end(None, state, None, model=model)
    assert "warning: dpo, step 25: answers repeat themselves ('" in capsys.readouterr().out


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
    return [line for line in lines if line]


def test_a_run_is_one_tidy_line(inside):
    """Where it computes, one line that is drawn anew, and a summary; no library has anything to say."""
    place, progress, summary = in_a_terminal([sys.executable, "-m", "stages.sft"], inside.path)
    assert re.fullmatch(r"sft: on .*, float32 weights, attention by sdpa", place)
    assert re.fullmatch(
        r"sft: 100%\|█+\| (\d+)/\1 \[\d\d:\d\d<00:00, .*, loss=\d\.\d{3}, tok/s=\d+, GB=\d\.\d\]", progress
    ), progress
    assert re.fullmatch(r"sft: \d+ steps, loss \d\.\d{3} → \d\.\d{3}, \d+ s", summary)
