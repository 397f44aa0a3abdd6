"""What a stage says of the machine before it loads anything: one line with the cure, on GPUs that are not
there.
"""

import sys
import types

import pytest
import torch

from stages.model import device
from stages.settings.errors import Problem
from tests.conftest import Workspace

GB = device.GB


@pytest.fixture
def real(tmp_path, monkeypatch) -> Workspace:
    """A project with a model of the hub in its params.yaml."""
    project = Workspace(tmp_path)
    project.set({"model": "qwen3-1_7b", "data": "cidar", "prompt.max_length": 1024})
    monkeypatch.chdir(tmp_path)
    return project


@pytest.fixture
def gpu(real, monkeypatch, tmp_path_factory) -> dict:
    """A GPU of 12 GB that is free, on a machine that can compile."""
    facts = {"free": 11.5, "total": 11.75, "count": 1}
    headers = tmp_path_factory.mktemp("include")
    (headers / "Python.h").touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: facts["count"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (facts["free"] * GB, facts["total"] * GB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA GeForce RTX 3060")
    monkeypatch.setattr(device.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(device.sysconfig, "get_path", lambda _: str(headers))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return facts


def problem(name: str = "sft") -> str:
    with pytest.raises(Problem) as raised:
        device.require(name)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_a_model_of_the_hub_is_not_trained_on_a_cpu_unless_asked(real):
    for stage in ("sft", "evaluate"):
        assert problem(stage).startswith("qwen3-1_7b needs a GPU, and ")
        assert problem(stage).endswith("hardware.cpu: true runs it on the CPU all the same")
    real.set({"hardware.cpu": True})
    device.require("sft")
    real.set({"hardware.cpu": False, "model": "nano", "data": "demo"})
    device.require("sft")


def test_why_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert "is one for CPUs" in device.no_gpu()
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: (_ for _ in ()).throw(RuntimeError("driver\ntoo old")))
    assert device.no_gpu() == "PyTorch says: driver too old"
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert "CUDA_VISIBLE_DEVICES" in device.no_gpu()


def test_a_good_machine_is_well(gpu):
    device.require("sft")
    device.require("dpo")
    device.require("evaluate")


def test_two_gpus_in_one_process_are_refused_before_the_trainer_fails(gpu, monkeypatch):
    gpu["count"] = 2
    assert "CUDA_VISIBLE_DEVICES=0, or use all by `launch`" in problem()
    device.require("evaluate")
    monkeypatch.setenv("WORLD_SIZE", "2")
    device.require("sft")


def test_what_triton_needs_is_named(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(device.sysconfig, "get_path", lambda _: str(tmp_path / "nowhere"))
    assert problem().endswith("apt install python3-dev")
    monkeypatch.setattr(device.shutil, "which", lambda _: None)
    assert problem().endswith("apt install build-essential")
    device.require("evaluate")


def test_memory_that_others_have_taken_is_seen(gpu):
    gpu["free"] = 4.0
    line = problem("dpo")
    assert (
        "dpo needs 5.5 GB, and 4.6 are free on this GPU (nvidia-smi); quantization nf4 needs 3.3 GB" in line
    )
    device.require("evaluate")


def test_a_stage_says_where_it_computes(gpu):
    weight = types.SimpleNamespace(dtype=torch.bfloat16)
    config = types.SimpleNamespace(_attn_implementation="sdpa")
    model = types.SimpleNamespace(
        parameters=lambda: iter([weight]), config=config, device=torch.device("cuda:0")
    )
    assert device.described(model) == (
        "on NVIDIA GeForce RTX 3060, 11.5 of 11.8 GB free, bfloat16 weights, attention by sdpa"
    )
    model.device = torch.device("cpu")
    assert device.described(model).startswith("on the CPU (")


def test_the_stage_itself_ends_in_that_line(real):
    (real.path / "models").mkdir(exist_ok=True)
    if torch.cuda.is_available():
        pytest.skip("of machines without a GPU")
    result = real.run(sys.executable, "-m", "stages.sft", check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: qwen3-1_7b needs a GPU, and ")
    assert result.stderr.count("\n") == 1
