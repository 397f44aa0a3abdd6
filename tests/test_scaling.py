"""Several processes give what one gives; the configurations for several GPUs are read as they are meant."""

import csv
import json
import shutil
import time

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from stages.model import device
from stages.settings.errors import Problem
from stages.settings.reader import read
from stages.training.run import shared
from tests.conftest import ROOT, Workspace

CONFIGURATIONS = sorted((ROOT / "workflows/accelerate").glob("*.yaml"))


@pytest.fixture(scope="module")
def project(workspace, tmp_path_factory) -> Workspace:
    """Steps of two micro-batches."""
    project = workspace.copy(tmp_path_factory.mktemp("project") / "project")
    preference = {"models.nano.preference.batch_size": 8, "models.nano.preference.accumulation": 2}
    project.set({"models.nano.sft.accumulation": 2, **preference})
    return project


def curve(project: Workspace, name: str) -> list[float]:
    with (project.path / f"metrics/curves/{name}.tsv").open(encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [float(row["loss"]) for row in rows if row["loss"]]  # looks at held-out rows have their own


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_two_processes_give_the_losses_of_one(project, stage):
    project.run("python", "-m", f"stages.{stage}")
    alone = curve(project, stage)
    facts = json.loads((project.path / f"metrics/train_{stage}.json").read_text())
    weights = load_file(project.path / f"models/{stage}/adapter_model.safetensors")
    shutil.rmtree(project.path / ".cache")
    result = project.run("torchrun", "--nproc_per_node", "2", "-m", f"stages.{stage}")
    assert (
        result.stdout.count(f"{stage}: {facts['steps']} steps") == 1
    )  # the first process alone speaks and writes
    whole = -1 if stage == "sft" else None  # the last step of sft is not full, and two processes fill it up
    assert curve(project, stage)[:whole] == pytest.approx(alone[:whole], rel=2e-3)
    together = load_file(project.path / f"models/{stage}/adapter_model.safetensors")
    assert together.keys() == weights.keys()
    assert json.loads((project.path / f"metrics/train_{stage}.json").read_text())["steps"] == facts["steps"]
    assert not list((project.path / ".cache/checkpoints").glob("*/"))


def test_accumulation_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.chdir(ROOT)
    params = read()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert shared(params, params.models["qwen2_5-3b"].sft) == 4
    with pytest.raises(
        Problem, match="accumulation is 1 for nano, which 4 processes cannot share: make it a multiple of 4"
    ):
        shared(params, params.chosen_model.sft)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_a_configuration_is_accepted_by_accelerate(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == {"single": 1}.get(path.stem, 2)
    assert config.distributed_type.value == {"single": "NO"}.get(path.stem, "MULTI_GPU")


def test_a_launch_with_fsdp_is_refused_in_one_line(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as accelerate launch sets it
    for name in ("sft", "dpo"):
        with pytest.raises(Problem, match=r"launched with FSDP, which no stage is made for.*ddp\.yaml"):
            device.require(name)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    device.require("sft")


@pytest.mark.slow
def test_a_queue_runs_methods_side_by_side(tmp_path_factory):
    project = Workspace(tmp_path_factory.mktemp("queue"))
    project.under_git(tmp_path_factory.mktemp("remote"))
    project.run("dvc", "repro", "-q", "sft")
    project.commit("sft")
    for method in ("ipo", "kto"):
        project.run("dvc", "exp", "run", "--queue", "-n", method, "-S", f"method={method}", "dpo")
    project.environment = {"CUDA_VISIBLE_DEVICES": "0"}
    project.run("dvc", "queue", "start", "-j", "1")
    project.environment = {"CUDA_VISIBLE_DEVICES": "1"}
    project.run("dvc", "queue", "start", "-j", "2")
    end = time.monotonic() + 240
    while time.monotonic() < end and project.run("dvc", "queue", "status").stdout.count("Success") < 2:
        time.sleep(3)
    status = project.run("dvc", "queue", "status").stdout
    assert status.count("Success") == 2, status
    baseline = json.loads(project.run("dvc", "exp", "show", "--json").stdout)[1]
    assert {experiment["name"] for experiment in baseline["experiments"]} == {"ipo", "kto"}
