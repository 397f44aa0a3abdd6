"""A training can be killed at any moment; the next run goes on from the last whole checkpoint and ends in the
same bytes.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from stages import sft
from stages.model import modeling
from stages.settings.reader import read
from stages.training import checkpoints, supervised
from stages.training import run as training
from tests.conftest import Workspace

KILLS = 7
TIMING = {"cost"}  # seconds and memory
# Processes are forked from one that has imported the libraries: seconds less each.
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["stages.training.run", "stages.preference.trainers", "trl.trainer.sft_trainer"]
)


@pytest.fixture
def project(workspace, tmp_path) -> Workspace:
    """A copy of the workspace whose sft is still to be done."""
    return workspace.copy(tmp_path / "project")


def work(folder: str, stage: str, log: str) -> None:
    """The body of a process: a stage in a folder, its output in a file."""
    os.chdir(folder)
    os.environ.pop("DVC_ROOT", None)
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        module = __import__(f"stages.{stage}", fromlist=["main"])
        module.main()
        sys.stdout.flush()


def start(project: Workspace, stage: str):
    process = CONTEXT.Process(target=work, args=(str(project.path), stage, str(project.path / "log.txt")))
    process.start()
    return process


def result(project: Workspace, name: str) -> dict:
    """All that a run leaves, but for its timing."""
    files = [
        project.path / f"models/{name}/{file}"
        for file in ("adapter_model.safetensors", "adapter_config.json", "provenance.json")
    ]
    facts = json.loads((project.path / f"metrics/train_{name}.json").read_text(encoding="utf-8"))
    found = {file.name: file.read_bytes() for file in [*files, project.path / f"metrics/curves/{name}.tsv"]}
    return found | {key: value for key, value in facts.items() if key not in TIMING}


def being_written(root: Path, since: float) -> bool:
    """Whether a checkpoint is (or was, when its process was killed) being written."""
    folders = [path for path in root.glob("*/checkpoint-*") if not (path / "trainer_state.json").exists()]
    return any(folder.stat().st_mtime > since for folder in folders)


def wait_until(condition, process, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.is_alive() and time.monotonic() < end:
        time.sleep(0.001)


def finish(project: Workspace, stage: str) -> None:
    process = start(project, stage)
    process.join()
    assert process.exitcode == 0, (project.path / "log.txt").read_text(encoding="utf-8")


SLOW = [pytest.param("dpo", quantization, marks=pytest.mark.slow) for quantization in ("none", "nf4")]


@pytest.mark.long
@pytest.mark.parametrize(("stage", "quantization"), [("sft", "none"), *SLOW])
def test_a_run_killed_again_and_again_ends_in_the_same_bytes(project, stage, quantization):
    if quantization == "nf4":
        project.set({"models.nano.weights.quantization": "nf4", "models.nano.weights.dtype": "bfloat16"})
        finish(project, "sft")
    finish(project, stage)
    whole = result(project, stage)
    shutil.rmtree(project.path / f"models/{stage}")

    root, log, rng, halves = (
        project.path / ".cache/checkpoints",
        project.path / "log.txt",
        random.Random(3),
        0,
    )
    for kill in range(KILLS):
        began, resumed = time.time(), log.read_text(encoding="utf-8").count("going on")
        process = start(project, stage)
        if kill == 0:
            wait_until(lambda: list(root.glob("*/checkpoint-*")), process)
        else:
            wait_until(lambda n=resumed: log.read_text(encoding="utf-8").count("going on") > n, process)
        if kill % 2:
            wait_until(lambda t=began: being_written(root, t), process)
        else:
            process.join(rng.uniform(0, 1))
        process.kill()
        process.join()
        halves += being_written(root, began)
    assert halves  # some checkpoint was cut while it was being written
    finish(project, stage)
    assert log.read_text(encoding="utf-8").count("going on from checkpoint-") >= KILLS - 2
    assert result(project, stage) == whole
    assert not list(root.glob("*/"))  # nothing is left of it


@pytest.mark.slow
def test_dvc_goes_on_after_a_kill_and_a_person_can_interrupt(project, tmp_path):
    project.under_git(tmp_path / "remote")
    command = [sys.executable, "-m", "dvc", "repro", "sft"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    root = project.path / ".cache/checkpoints"
    process = subprocess.Popen(
        command, cwd=project.path, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None and not [
        folder for folder in root.glob("sft-*/") if checkpoints.last_whole(folder)
    ]:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    module = subprocess.Popen(
        [sys.executable, "-m", "stages.sft"],
        cwd=project.path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = [module.stdout.readline() for _ in range(2)]  # where it computes, and from where it goes on
    assert "going on from checkpoint-" in said[1]
    module.send_signal(signal.SIGINT)
    assert module.communicate()[1].endswith(
        "error: sft was interrupted: the same command goes on from its last checkpoint\n"
    )
    assert module.returncode == 1

    assert "going on from checkpoint-" in project.run("dvc", "repro", "sft").stdout
    assert (project.path / "models/sft/adapter_model.safetensors").exists()


@pytest.mark.long
def test_a_full_disk_costs_no_more_than_a_checkpoint(project):
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    root = project.path / ".cache/checkpoints"
    root.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=14m", "tmpfs", str(root)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine mounts nothing")
    try:
        process = start(project, "sft")
        process.join()
        log = (project.path / "log.txt").read_text(encoding="utf-8")
        assert process.exitcode == 1
        assert log.rstrip().endswith(
            "error: sft: the disk is full: free some space; the same command goes on from its last checkpoint"
        )
        assert "Traceback" not in log
        subprocess.run(["mount", "-o", "remount,size=100m", str(root)], check=True)
        finish(project, "sft")
        assert "going on from checkpoint-" in (project.path / "log.txt").read_text(encoding="utf-8")
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_a_kill_after_the_last_step_costs_nothing(inside, monkeypatch):
    """The checkpoint before the last one is taken, and its few steps are trained again."""
    params = read()
    params = params.model_copy(update={"sft": params.sft.model_copy(update={"epochs": 0.2})})

    def run():
        trainer = supervised.build(
            params, sft.start(params), sft.DATA, params.sft.epochs, params.chosen_model.sft.learning_rate
        )
        return training.train(trainer, "test-end", params, params.sft, {"chain": []})

    whole = run()
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(modeling, "save_checkpoint", lambda *_: 1 / 0)
        run()
    again = run()
    assert {key: whole[key] for key in whole.keys() - TIMING} == {
        key: again[key] for key in again.keys() - TIMING
    }


@pytest.mark.long
def test_two_processes_do_not_train_the_same_run_at_once(project):
    first, second = start(project, "sft"), start(project, "sft")
    first.join()
    second.join()
    assert (first.exitcode, second.exitcode) == (0, 0)
    assert "the same training is still running in another process, waiting for it" in (
        project.path / "log.txt"
    ).read_text(encoding="utf-8")


def checkpoint(folder: Path, step: int, sealed: bool = True, **state) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir()
    state = {"global_step": step, "max_steps": 15, "log_history": []} | state
    (made / "trainer_state.json").write_text(json.dumps(state))
    (made / "optimizer.pt").write_bytes(bytes(range(99)))
    if sealed:
        checkpoints.seal(made)
    return made


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("trainer_state.json", b'{"global_step": 9'),
        ("optimizer.pt", None),
        ("optimizer.pt", b""),
        ("optimizer.pt", bytes(99)),
        ("sealed.json", None),
        ("sealed.json", b'{"optimizer.pt": [99, '),
        ("sealed.json", b"[]"),
    ],
)
def test_a_run_goes_on_from_the_last_checkpoint_that_is_as_it_was_written(tmp_path, capsys, file, content):
    """After a power cut any file may be lost, or a part of it. Nor from the last step."""
    for step in (3, 6, 9, 15):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 12, sealed=False)  # cut while it was written
    damaged = tmp_path / "checkpoint-9" / file
    damaged.unlink() if content is None else damaged.write_bytes(content)
    assert checkpoints.last_whole(tmp_path).name == "checkpoint-6"
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == [
        "checkpoint-12 cannot be gone on from",
        "checkpoint-9 cannot be gone on from",
    ]


def test_a_checkpoint_whose_best_one_is_lost_is_not_gone_on_from(tmp_path):
    checkpoint(tmp_path, 3)
    lost = checkpoint(tmp_path, 6)
    checkpoint(tmp_path, 9, best_model_checkpoint=str(lost))
    checkpoint(tmp_path, 12, best_model_checkpoint="elsewhere/checkpoint-9")
    assert checkpoints.last_whole(tmp_path).name == "checkpoint-12"
    (lost / "optimizer.pt").unlink()
    shutil.rmtree(tmp_path / "checkpoint-12")
    assert checkpoints.last_whole(tmp_path).name == "checkpoint-3"
    assert checkpoints.last_whole(tmp_path / "checkpoint-3") is None


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.long
def test_an_edit_while_it_trains_loses_nothing(project):
    """Of a param it reads: the training is kept and recorded once the edit is undone, in seconds, in the same
    bytes. What the stage does not read may be wrong all the while.
    """
    params, log = project.path / "params.yaml", project.path / "log.txt"
    whole = result(project, "sft")
    shutil.rmtree(project.path / "models/sft")
    process = start(project, "sft")
    wait_until(lambda: list((project.path / ".cache/checkpoints").glob("*/checkpoint-*")), process)
    edited(params, "seed: 7", "seed: 8")
    edited(params, "digits: keep", "digits: eastern")  # which is none, and sft does not read it
    process.join()
    said = log.read_text(encoding="utf-8").splitlines()[-1]
    assert said.startswith("error: seed changed while stage sft was running, so its result is not recorded")
    assert "`dvc commit sft`" in said
    assert not (project.path / "models/sft").exists()

    edited(params, "seed: 8", "seed: 7")
    edited(params, "digits: eastern", "digits: keep")
    finish(project, "sft")
    assert "trained to its end before" in log.read_text(encoding="utf-8")
    assert log.read_text(encoding="utf-8").count("going on") == 0
    assert result(project, "sft") == whole
    assert not list((project.path / ".cache/checkpoints").glob("*/"))


def test_a_run_has_a_folder_of_its_own(tmp_path, monkeypatch):
    """Another value, another library, another number of processes, another line of code: another run."""
    monkeypatch.setattr(checkpoints.sys, "modules", {"stages.training.checkpoints": checkpoints})
    known = checkpoints.digest({"seed": 7, "versions": {"torch": "2"}})
    assert known == checkpoints.digest({"versions": {"torch": "2"}, "seed": 7})
    assert known != checkpoints.digest({"seed": 8, "versions": {"torch": "2"}})
    copy = tmp_path / "checkpoints.py"
    copy.write_text(Path(checkpoints.__file__).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    monkeypatch.setattr(checkpoints, "__file__", str(copy))
    assert known != checkpoints.digest({"seed": 7, "versions": {"torch": "2"}})
