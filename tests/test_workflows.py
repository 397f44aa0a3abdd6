"""The ready experiments in workflows/: their settings are allowed, what they say of memory is the plan's, and
each runs to its end.
"""

import json
import math
import os
import re
import shlex
import shutil
from itertools import pairwise

import pytest
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps

from stages.settings import memory, reader
from tests.conftest import ROOT, Workspace
from tests.fake_hub import tiny_hub

SCRIPTS = {path.stem: path for path in sorted(ROOT.glob("workflows/*.sh"))}


def commands(name: str) -> list[list[str]]:
    """The commands of a script, as a shell splits them."""
    text = SCRIPTS[name].read_text(encoding="utf-8").replace("\\\n", "")
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]


def experiment(name: str) -> tuple[str, list[list[str]]]:
    """What a script calls its experiment, and the overrides of it; of a sweep, those of each of its
    experiments.
    """
    (given,) = [
        command for command in commands(name) if command[:3] == ["dvc", "exp", "run"] and "-n" in command
    ]
    overrides = [value for flag, value in pairwise(given) if flag == "-S"]
    return given[given.index("-n") + 1], [
        sweep["params.yaml"] for sweep in get_hydra_sweeps({"params.yaml": overrides})
    ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_stops_at_an_error_runs_from_anywhere_and_names_its_experiment(name):
    assert os.access(SCRIPTS[name], os.X_OK)
    assert commands(name)[:2] == [["set", "-euo", "pipefail"], ["cd", "$(dirname $0)/.."]]
    assert experiment(name)[0] == name


@pytest.mark.parametrize("name", SCRIPTS)
def test_its_settings_are_allowed_and_need_the_memory_it_names(name, tmp_path, monkeypatch):
    """As DVC writes them. params.read checks every name (of a dataset, too), every range, and that training
    fits.
    """
    monkeypatch.chdir(tmp_path)
    named = re.findall(
        r"([\w-]+) (\d+\.\d) GB",
        re.search("^# GPU.*", SCRIPTS[name].read_text(encoding="utf-8"), re.MULTILINE)[0],
    )
    for overrides in experiment(name)[1]:
        shutil.copy(ROOT / "params.yaml", tmp_path)
        apply_overrides("params.yaml", overrides)
        planned = [(run.stage, f"{memory.predicted(run):.1f}") for run in memory.runs(reader.read())]
        assert not named or named == planned


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Workspace:
    """A clone beside a hub that holds every repository the scripts name, shrunken."""
    project = Workspace(tmp_path_factory.mktemp("project"))
    project.set({"format.validation": 0.2})
    project.under_git(tmp_path_factory.mktemp("remote"))
    with tiny_hub((ROOT / "models/nano/tokenizer.json").read_bytes()) as hub:
        project.environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
            "HF_HUB_OFFLINE": "0",
        }
        yield project


def read(project: Workspace, name: str) -> dict:
    return json.loads((project.path / name).read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(set(SCRIPTS) - {"low-memory", "tournament"})
)  # low-memory: test_real_models.py
def test_it_runs_to_its_end(project, name):
    project.run("git", "checkout", "-q", ".")
    project.run("bash", f"workflows/{name}.sh")
    assert name in project.run("dvc", "exp", "list", "--name-only").stdout.split()
    chosen = reader.read(project.path / "params.yaml")
    for role, sources in read(project, "metrics/data.json").items():
        assert role == "benchmarks" or set(sources["sources"]) == set(chosen.mixture(role))
    for checkpoint in ("base", "sft", "dpo", *(f"refine-{item}" for item in chosen.refine)):
        metrics = read(project, f"metrics/{checkpoint}.json")
        assert "arabicmmlu" in metrics
        assert math.isfinite(metrics["validation_loss"])


@pytest.mark.slow
def test_a_tournament_ends_in_a_table_of_all_methods(project):
    project.run("git", "checkout", "-q", ".")
    table = project.run("bash", "workflows/tournament.sh").stdout.partition("| experiment |")[2]
    for place, overrides in enumerate(experiment("tournament")[1], 1):
        (line,) = [line for line in table.splitlines() if line.startswith(f"| tournament-{place} |")]
        assert overrides[0] in line or overrides == ["method=dpo"]
