"""Looks at held-out rows while a run trains: the step that is kept, an early stop, answers, curves and
trackers.
"""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset
from pyarrow import parquet
from tokenizers.processors import TemplateProcessing

from stages import sft
from stages.console import trackers
from stages.console.progress import Progress, duration
from stages.preference import trainers
from stages.settings.errors import Problem
from stages.settings.reader import read
from stages.training import looks, supervised
from stages.training import run as training


def changed(**values):
    """params of the workspace with some of sft's changed."""
    params = read()
    return params.model_copy(update={"sft": params.sft.model_copy(update=values)})


@pytest.fixture
def few(inside, tmp_path, monkeypatch) -> Path:
    """A handful of rows to train on, far fewer than can be learned from, and all that are held out."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    parquet.write_table(parquet.read_table(sft.DATA).slice(0, 8), tmp_path / "train.parquet")
    held_out = parquet.read_table(sft.DATA.with_name(looks.HELD_OUT))
    parquet.write_table(held_out, tmp_path / looks.HELD_OUT)
    return tmp_path / "train.parquet"


def run(params, data, name: str, epochs: float = 40, callback=None) -> tuple[dict, supervised.AnswerTrainer]:
    trainer = supervised.build(params, sft.start(params), data, epochs, 2e-3)
    if callback:
        trainer.add_callback(callback)
    return training.train(trainer, name, params, params.sft, {"test": "looks", "chain": []}), trainer


def curve(name: str) -> list[dict]:
    with Path(f"metrics/curves/{name}.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_the_step_with_the_least_held_out_loss_is_kept(few):
    found, trainer = run(changed(keep="best"), few, "test-best")
    losses = {
        int(row["step"]): float(row["held_out_loss"]) for row in curve("test-best") if row["held_out_loss"]
    }
    assert len(losses) == 11  # ten looks, and one before the first step
    best = min((loss, step) for step, loss in losses.items() if step)
    assert best[1] < found["steps"]  # it overfits
    assert (found["held_out_loss"], found["kept_step"]) == (pytest.approx(best[0], abs=1e-4), best[1])
    assert found["held_out_start_loss"] == pytest.approx(losses[0], abs=1e-4)
    assert json.loads(Path("models/test-best/provenance.json").read_text())["step"] == best[1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        best[0], rel=1e-4
    )  # of the weights that were saved

    last, _ = run(changed(keep="last"), few, "test-last")
    assert last["kept_step"] == last["steps"] == found["steps"]
    adapters = {
        Path(f"models/test-{name}/adapter_model.safetensors").read_bytes() for name in ("best", "last")
    }
    assert len(adapters) == 2


@pytest.mark.long
def test_a_run_that_gains_nothing_more_stops_and_goes_on_no_further(few, monkeypatch):
    params = changed(patience=2)
    found, _ = run(params, few, "test-patient")
    losses = [float(row["held_out_loss"]) for row in curve("test-patient") if row["held_out_loss"]][1:]
    assert found["steps"] < 320
    assert losses.index(min(losses)) == len(losses) - 3

    def full(*args):
        raise OSError("no room")

    with monkeypatch.context() as patch, pytest.raises(OSError):  # killed after its end, before it was saved
        patch.setattr(training.modeling, "save_checkpoint", full)
        run(params, few, "test-ended")
    again, _ = run(params, few, "test-ended")
    assert {key: again[key] for key in again if key != "cost"} == {k: found[k] for k in found if k != "cost"}
    bytes_of = {Path(f"models/test-{n}/adapter_model.safetensors").read_bytes() for n in ("patient", "ended")}
    assert len(bytes_of) == 1


class Killed(training.Watch):
    """Stops the process at a look, before its checkpoint is written."""

    def __init__(self, step: int):
        self.step = step

    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise SystemExit(f"killed at {state.global_step}")

    on_train_begin = on_log = on_train_end = lambda *args, **kwargs: None


@pytest.mark.long
def test_a_run_killed_between_a_look_and_its_checkpoint_ends_the_same(few):
    params = changed()
    whole, _ = run(params, few, "test-whole-look", epochs=4)
    assert whole["steps"] == 8
    for step in (0, 3, 6):
        with pytest.raises(SystemExit, match=f"killed at {step}"):
            run(params, few, "test-cut-look", epochs=4, callback=Killed(step))
    cut, _ = run(params, few, "test-cut-look", epochs=4)
    assert {key: cut[key] for key in cut if key != "cost"} == {k: whole[k] for k in whole if k != "cost"}
    for file in ("models/test-{}-look/adapter_model.safetensors", "metrics/curves/test-{}-look.tsv"):
        assert Path(file.format("cut")).read_bytes() == Path(file.format("whole")).read_bytes()


LONG = [pytest.param(*case, marks=pytest.mark.long) for case in (("kto", 0.5), ("simpo", None))]


@pytest.mark.parametrize(("method", "start"), [("dpo", math.log(2)), *LONG])
def test_preference_runs_look_at_the_loss_of_their_method(inside, monkeypatch, tmp_path, method, start):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    params = read()
    trainer = trainers.build(params, method, Path("models/sft"))
    found = training.train(trainer, f"test-look-{method}", params, params.preference, {"chain": []})
    rows = [row for row in curve(f"test-look-{method}") if row["held_out_loss"]]
    assert len(rows) > 5
    assert rows[0]["step"] == "0"
    assert {"held_out_margin", "held_out_chosen_logp"} <= set(rows[0])
    if start:
        assert float(rows[0]["held_out_loss"]) == pytest.approx(start, rel=1e-3)
    assert found["held_out_loss"] == min(round(float(row["held_out_loss"]), 4) for row in rows[1:])


def test_answers_are_a_page_to_read_while_it_runs(few, tmp_path):
    run(changed(), few, "test-page", epochs=2)
    page = (tmp_path / ".cache/looks/test-page-nano.html").read_text(encoding="utf-8")
    assert "4 of 4 steps" in page
    assert "<td>step 4, loss " in page
    assert "<td>step 0, loss " in page
    assert page.count("<td>in the data") == looks.PROMPTS
    assert "dir=auto" in page
    assert "im_start" not in page
    rates = [row["stop_rate"] for row in curve("test-page") if row["stop_rate"]]
    assert len(rates) >= 2


def test_a_prompt_begins_once_where_a_tokenizer_marks_the_beginning(few, tmp_path):
    """As those of llama and gemma do."""
    trainer = supervised.build(changed(), sft.start(changed()), few, 1, 2e-3)
    tokenizer = trainer.processing_class
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    rows = [
        [tokenizer.bos_token_id, *tokenizer.backend_tokenizer.encode("قل: نعم", add_special_tokens=False).ids]
    ]
    stop = [tokenizer.eos_token_id]
    ids, labels = [rows[0] + stop], [[-100] * len(rows[0]) + stop]
    trainer.eval_dataset = Dataset.from_dict({"input_ids": ids, "labels": labels})
    answers = looks.Answers("test", trainer, 1, tmp_path)
    assert tokenizer(answers.prompts)["input_ids"] == rows
    assert [answers.readable(text) for text in (answers.prompts[0], "نعم<|im_end|>")] == ["قل: نعم", "نعم"]


def test_a_sample_is_no_larger_than_its_cost_allows():
    held_out = Dataset.from_dict({"row": list(range(1000))})
    assert len(looks.sampled(held_out, 100_000, 1, 10)) == looks.ROWS[1]
    few = looks.sampled(held_out, 10_000, 1, 10)
    assert len(few) == 54  # 2 % of 10,000 rows at three forward passes each, in eleven looks
    assert few["row"][-1] > 970  # spread over all
    assert len(looks.sampled(held_out, 10, 1, 10)) == looks.ROWS[0]
    assert looks.sampled(held_out, 10_000, 1, 0) is None
    assert looks.sampled(held_out.select([]), 10_000, 1, 10) is None


def test_without_a_terminal_there_are_lines_and_growing_curves(capsys, monkeypatch):
    monkeypatch.setattr(Progress, "EVERY", -1)
    monkeypatch.setattr(Progress, "WARM", (1, -1))
    kept = []
    progress = Progress("sft", 0, lambda history: kept.append(len(history)))
    state = SimpleNamespace(global_step=0, max_steps=4, is_world_process_zero=True, log_history=[{}])
    progress.on_train_begin(None, state, None)
    state.global_step = 1
    progress.on_log(None, state, None, logs={"loss": 2.0, "num_tokens": 10})
    progress.on_log(None, state, None, logs={"eval_loss": 1.5})
    told, line, look = capsys.readouterr().out.splitlines()
    assert told.startswith("sft: about ")
    assert line.startswith("sft: step 1 of 4, loss 2.000, tok/s ")
    assert "held-out loss 1.500" in look
    assert kept == [1, 1]
    assert [duration(seconds) for seconds in (45, 700, 12_000)] == ["45 s", "12 min", "3 h 20 min"]


def test_tensorboard_is_shown_the_run_and_the_result_is_the_same(few, inside, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain, _ = run(changed(), few, "test-plain", epochs=2)
    monkeypatch.setattr(trackers, "chosen", lambda: ["tensorboard", "dvclive"])
    before = Path("dvc.yaml").read_bytes()
    shown, _ = run(changed(), few, "test-shown", epochs=2)
    events = EventAccumulator(str(tmp_path / ".cache/trackers/test-shown-nano"))
    events.Reload()
    assert {"train/loss", "eval/loss"} <= set(events.Tags()["scalars"])
    text = " ".join(str(events.Tensors(tag)[0].tensor_proto) for tag in events.Tags()["tensors"])
    assert "learning_rate" in text
    assert str(tmp_path) not in text
    assert Path("dvc.yaml").read_bytes() == before
    assert {key: shown[key] for key in shown if key != "cost"} == {k: plain[k] for k in plain if k != "cost"}


def test_a_tracker_that_is_not_installed_is_named(inside, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    inside.set({"training.trackers": ["wandb"]})
    with pytest.raises(
        Problem, match=r"training\.trackers has wandb, which is not installed: pip install wandb"
    ):
        trackers.chosen()
    inside.set({"training.trackers": []})
    said = subprocess.run([sys.executable, "-c", "import stages.console.trackers"], capture_output=True)
    assert said.returncode == 0
