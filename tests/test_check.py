"""What stages/check.py says before anything is fetched or trained, and the run that a mixture without pairs
still has.
"""

import shutil
import sys

import pytest
from ruamel.yaml import YAML

from tests.conftest import Workspace
from tests.test_workflows import own


@pytest.fixture
def project(tmp_path) -> Workspace:
    project = Workspace(tmp_path)
    project.set({"data": "mine", "format.validation": 0.2})
    return project


def check(project: Workspace, item: str) -> str:
    """Its one line of error; nothing where all is well."""
    result = project.run(sys.executable, "-m", "stages.check", item, check=False)
    assert bool(result.returncode) == bool(result.stderr)
    return result.stderr


def test_files_that_are_not_there_are_named_up_front(project):
    line = "error: mixtures.mine.instructions.own: data/own/instructions.jsonl is not there: put it there"
    assert check(project, "params").startswith(line)
    own(project)
    assert check(project, "params") == ""
    assert check(project, "preferences") == ""
    (project.path / "data/own/preferences.jsonl").unlink()
    assert check(project, "params") == ""
    error = check(project, "preferences")
    assert error.startswith("error: mixtures.mine.preferences.own: data/own/preferences.jsonl is not there")
    assert "`dvc repro evaluate@sft`" in error


def test_files_that_a_temporary_copy_lacks_are_named(project, tmp_path_factory):
    """`dvc exp run --temp` and a queue copy what git or DVC tracks, and give the workspace as DVC_ROOT."""
    own(project)
    (project.path / "data/own/more.csv").write_text("q,a\n", encoding="utf-8")
    copy = project.copy(tmp_path_factory.mktemp("temp") / "copy")
    copy.environment["DVC_ROOT"] = str(project.path)
    assert check(copy, "params") == ""
    (copy.path / "data/own/more.csv").unlink()
    assert check(copy, "params") == ""  # nothing reads it
    for each in (project, copy):
        each.set({"mixtures.mine.instructions.own.path": "data/own"})
    error = check(copy, "params")
    assert error.startswith(
        "error: mixtures.mine.instructions.own: data/own/more.csv of the workspace is not in"
    )
    assert "`git add` or `dvc add` it" in error
    (copy.path / "data/own/preferences.jsonl").unlink()
    assert "data/own/preferences.jsonl of the workspace is not in" in check(copy, "preferences")


def test_a_base_of_ones_own_is_watched_by_dvc_and_not_by_git(project, tmp_path_factory):
    project.set({"data": "demo", "allow_builtin": True, "models.nano.weights.path": "models/own/mine"})
    assert check(project, "params").startswith(
        "error: models.nano.weights.path: models/own/mine is no folder"
    )
    own_base = project.path / "models/own/mine"
    shutil.copytree(project.path / "models/nano", own_base)
    assert check(project, "params") == ""
    copy = project.copy(tmp_path_factory.mktemp("temp") / "copy")
    copy.environment["DVC_ROOT"] = str(project.path)
    shutil.rmtree(copy.path / "models/own/mine")
    assert "of the workspace is not in this copy" in check(copy, "params")

    project.run("git", "init", "-q")
    project.run("git", "add", "-A")
    assert project.run("git", "ls-files", "models/own").stdout == "models/own/README.md\n"
    stages = YAML(typ="safe").load(project.path / "dvc.yaml")["stages"]
    assert "models/own" in stages["base"]["deps"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"mixtures.mine.instructions.own.columns": {"question": "prompt"}},
            "mixtures.mine.instructions.own.columns names question: instructions need completion, prompt",
        ),
        (
            {"mixtures.mine.preferences.own": {"path": "data/own/preferences.jsonl", "adapter": "cidar"}},
            "mixtures.mine.preferences.own.adapter is 'cidar': for preferences it must be one of",
        ),
        (
            {"datasets.preferences.mine": "me/mine@main", "mixtures.mine.preferences.mine": "all"},
            "datasets.preferences.mine.adapter is 'mine': for preferences it must be one of preference-rlhf",
        ),
    ],
)
def test_columns_and_adapters_are_checked_before_anything_is_fetched(project, changes, said):
    own(project)
    project.set(changes)
    assert check(project, "params").startswith(f"error: {said}")


def test_a_mixture_without_pairs_names_the_run_to_make(project):
    own(project)
    project.set({"mixtures.mine.preferences": {}})
    error = check(project, "preferences")
    assert error.startswith(
        "error: mixtures.mine.preferences is empty: name pairs there; `dvc repro evaluate@sft`"
    )


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_instructions_alone_are_trained_and_evaluated(project, tmp_path_factory, named):
    own(project)
    (project.path / "data/own/preferences.jsonl").unlink()
    if not named:
        project.set({"mixtures.mine.preferences": {}})
    project.under_git(tmp_path_factory.mktemp("remote"))
    whole = project.run("dvc", "repro", check=False)
    assert whole.returncode != 0
    assert "sft" not in whole.stdout.replace("evaluate@sft", "")  # trains nothing first
    project.run("dvc", "repro", "evaluate@sft")
    assert (project.path / "metrics/sft.json").exists()
    assert not (project.path / "models/dpo").exists()


def test_an_engine_that_is_not_installed_is_said_before_training(project):
    own(project)
    project.set({"sample.engine": "vllm"})
    assert check(project, "params") == ""  # nothing is sampled
    project.set({"sample.prompts": 8, "mixtures.mine.preferences": {"sampled": "all"}})
    assert check(project, "params").startswith("error: sample.engine is 'vllm', which is not installed")
