"""The ready experiments of workflows/: their settings are allowed, what they say of memory is the plan's, and
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

# Each with the comment above it: what it is, and the memory it needs.
LINES = re.findall(
    r"^# (.+)\n(dvc exp run -n .+)$",
    (ROOT / "workflows/README.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)
COMMANDS = {said.split(":")[0]: (said, shlex.split(command)) for said, command in LINES}
TOURNAMENT = (ROOT / "workflows/tournament.sh").read_text(encoding="utf-8")


def overrides(command: list[str]) -> list[str]:
    return [value for flag, value in pairwise(command) if flag == "-S"]


def sweep() -> list[list[str]]:
    """The overrides of each experiment of the tournament."""
    (given,) = [
        shlex.split(line) for line in TOURNAMENT.splitlines() if line.startswith("dvc exp run --queue")
    ]
    return [one["params.yaml"] for one in get_hydra_sweeps({"params.yaml": overrides(given)})]


def test_every_mixture_has_a_line_and_every_line_its_own_name():
    assert len(COMMANDS) == len(LINES) >= 6
    assert all(command[:5] == ["dvc", "exp", "run", "-n", name] for name, (_, command) in COMMANDS.items())
    used = {one.removeprefix("data=") for _, command in COMMANDS.values() for one in overrides(command)}
    assert set(reader.read(ROOT / "params.yaml").mixtures) - {"demo"} <= used


def test_the_script_stops_at_an_error_and_runs_from_anywhere():
    assert os.access(ROOT / "workflows/tournament.sh", os.X_OK)
    assert [line for line in TOURNAMENT.splitlines() if not line.startswith("#")][:2] == [
        "set -euo pipefail",
        'cd "$(dirname "$0")/.."',
    ]


@pytest.mark.parametrize("name", [*COMMANDS, "tournament"])
def test_its_settings_are_allowed_and_need_the_memory_it_names(name, tmp_path, monkeypatch):
    """As DVC writes them. reader.read checks every name (of a dataset, too), every range, and that training
    fits.
    """
    monkeypatch.chdir(tmp_path)
    said, command = COMMANDS.get(name, ("", []))
    for changes in [overrides(command)] if command else sweep():
        shutil.copy(ROOT / "params.yaml", tmp_path)
        apply_overrides("params.yaml", changes)
        planned = [(run.stage, f"{memory.predicted(run):.1f}") for run in memory.runs(reader.read())]
        assert not command or re.findall(r"([\w-]+) (\d+\.\d) GB", said) == planned


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Workspace:
    """A clone with files of its own, beside a hub that holds every repository the lines name, shrunken."""
    project = Workspace(tmp_path_factory.mktemp("project"))
    project.set({"format.validation": 0.2, "hardware.cpu": True})
    own(project)
    project.under_git(tmp_path_factory.mktemp("remote"))
    with tiny_hub((ROOT / "models/nano/tokenizer.json").read_bytes()) as hub:
        project.environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
            "HF_HUB_OFFLINE": "0",
        }
        yield project


def own(project: Workspace, count: int = 40) -> None:
    """What a person would put into data/own."""
    asked = [f"ما ترتيب العدد {i} في القائمة؟" for i in range(count)]
    rows = {
        "instructions": [{"prompt": one, "completion": f"ترتيبه {i}."} for i, one in enumerate(asked)],
        "preferences": [
            {"prompt": one, "chosen": f"ترتيبه {i}.", "rejected": "لا أعرف."} for i, one in enumerate(asked)
        ],
    }
    for name, table in rows.items():
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in table)
        (project.path / f"data/own/{name}.jsonl").write_text(text, encoding="utf-8")


def read(project: Workspace, name: str) -> dict:
    return json.loads((project.path / name).read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"low-memory"}))  # it: test_real_models.py
def test_it_runs_to_its_end(project, name):
    project.run("git", "checkout", "-q", ".")
    project.run(*COMMANDS[name][1])
    assert name in project.run("dvc", "exp", "list", "--name-only").stdout.split()
    chosen = reader.read(project.path / "params.yaml")
    for role, report in read(project, "data/reports/account.json").items():
        assert role == "benchmarks" or set(report["sources"]) == set(chosen.sources(role))
    for checkpoint in ("base", "sft", "dpo", *(f"refine-{item}" for item in chosen.refine)):
        metrics = read(project, f"metrics/{checkpoint}.json")
        assert set(chosen.mixture.benchmarks) <= set(metrics)
        assert math.isfinite(metrics["validation_loss"])


@pytest.mark.slow
def test_a_tournament_ends_in_a_table_of_all_methods(project):
    project.run("git", "checkout", "-q", ".")
    table = project.run("bash", "workflows/tournament.sh").stdout.partition("| experiment |")[2]
    for place, changes in enumerate(sweep(), 1):
        (line,) = [line for line in table.splitlines() if line.startswith(f"| tournament-{place} |")]
        assert changes[0] in line or changes == ["method=dpo"]
