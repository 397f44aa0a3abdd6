"""Computed times: operations as they are counted on a real model, and a table from the rows at hand."""

from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from stages.settings import memory, reader
from tests import memory_probe
from tests.conftest import ROOT, Workspace
from tests.test_memory import GEMMA3, LLAMA, QWEN2, QWEN3, RUN, lora
from tools import duration

SHAPES = {"qwen2": QWEN2, "qwen3": QWEN3, "llama": LLAMA, "gemma3": GEMMA3}


@pytest.mark.parametrize("name", SHAPES)
def test_operations_of_a_forward_pass_are_those_that_torch_counts(name):
    shape = SHAPES[name]
    model = AutoModelForCausalLM.from_config(memory_probe.config_of(shape)).eval()
    model.set_attn_implementation("eager")  # whose products are counted as such
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 96, dtype=torch.long), use_cache=False, logits_to_keep=32)
    assert counter.get_total_flops() == pytest.approx(duration.forward(shape, 96, 96, 32), rel=0.01)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("trained", [lora(dropout=0.0), None])
def test_operations_of_a_step_are_those_that_torch_counts(trained, checkpointing):
    run = replace(RUN, lora=trained, checkpointing=checkpointing, batch_size=1, dtype="float32", length=64)
    model = memory_probe.model_of(run)
    model.set_attn_implementation("eager")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if trained:
            model.enable_input_require_grads()
    layers = (model.get_base_model() if trained else model).model  # TRL's head is not counted by torch
    with FlopCounterMode(display=False) as counter:
        layers(torch.zeros(1, 64, dtype=torch.long), use_cache=False).last_hidden_state.sum().backward()
    # A frozen layer's attention takes gradients of both of its factors.
    assert counter.get_total_flops() == pytest.approx(duration.training(run, 64, 64, 0), rel=0.1)


def test_times_come_from_the_rows_at_hand_and_grow_with_the_model(workspace, monkeypatch):
    monkeypatch.chdir(workspace.path)
    params = reader.read(ROOT / "params.yaml")
    small, large = (list(duration.works(params, name)) for name in ("qwen3-1_7b", "qwen2_5-7b"))
    assert [work.stage for work in small] == [
        "sft", "dpo (dpo)", "evaluate@base", "evaluate@sft", "evaluate@dpo",
    ]  # fmt: skip
    for one, other in zip(small, large):
        assert one.basis == other.basis
        (fast, slow), answers = duration.seconds(one, params, "qwen3-1_7b", duration.CARDS["RTX 3060"])
        (_, slower), _ = duration.seconds(other, params, "qwen2_5-7b", duration.CARDS["RTX 3060"])
        assert 0 < fast < slow < slower
        assert duration.seconds(one, params, "qwen3-1_7b", duration.CARDS["H100"])[0][0] < fast
        assert (answers[1] > 0) == one.stage.startswith("evaluate")
        assert answers[1] < slow
    assert memory.passes(params) == {"sft": None, "dpo": "dpo"}


def test_every_answer_of_a_chat_counts_as_trained(tmp_path):
    rows = pa.table({"trained": [[3, 5, 7, 10], [2, 6]], "tokens": [10, 6]})
    parquet.write_table(rows, tmp_path / "chats.parquet")
    found = duration.rows_of(tmp_path / "chats.parquet", "prompt", "completion")
    assert found == duration.Rows(2, 16, 9 / 16)


def test_the_command_says_that_times_are_computed(workspace, tmp_path):
    said = workspace.run("python", "-m", "tools.plan", "--card", "RTX 3060", "--model", "qwen3-4b").stdout
    assert said.startswith("Computed, not measured, from the rows that were formatted for nano.")
    assert "qwen3-4b  all of them" in said
    empty = Workspace(tmp_path)
    result = empty.run("python", "-m", "tools.plan", "--card", "RTX 3060", check=False)
    assert result.returncode == 1
    assert "instructions/train.parquet is not there" in result.stderr


def test_a_model_that_is_not_planned_is_said(workspace, tmp_path):
    project = workspace.copy(tmp_path / "project")
    (project.path / "models/other").mkdir()
    (project.path / "models/other/config.json").write_text('{"model_type": "mixtral"}')
    project.set({"models.other": {"weights": {"path": "models/other"}, "sft": {}, "preference": {}}})
    said = project.run("python", "-m", "tools.plan", "--model", "other", "nano", "--length", "128").stdout
    assert said.startswith("other: not planned: its architecture is mixtral, and the plan knows qwen2, qwen3")
    assert "nano   float32  sft" in said
