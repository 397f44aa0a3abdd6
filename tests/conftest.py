import os

# Set before torch is imported. One thread: on a loaded machine two are slower, and results must not depend on
# it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from filelock import FileLock
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
# Small enough for seconds, large enough that every step of every stage happens.
TINY = {
    "mixtures.demo.instructions.skills": 330,
    "mixtures.demo.preferences.skills": 220,
    "mixtures.demo.continued.skills": 110,
    "mixtures.demo.benchmarks.skills": 2,
    "prompt.max_length": 128,
    "evaluate.health_prompts": 8,
    "evaluate.max_new_tokens": 48,
}
LONGEST = (
    "test_training", "test_pipeline", "test_docs", "test_resume", "test_remotes", "test_scaling",
    "test_contract", "test_evaluation",
    "test_export", "test_web", "test_progress",
)  # fmt: skip


class Workspace:
    """A temporary copy of the project with settings of its own."""

    def __init__(self, path: Path):
        self.path = path
        self.environment: dict[str, str] = {}
        tracked = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in tracked.stdout.splitlines():
            if (ROOT / name).is_file() and not name.startswith(("metrics/", "dvc.lock")):
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, path / name)
        self.set(TINY)

    def copy(self, path: Path) -> "Workspace":
        """The same as it stands now, without what tests have trained in it."""
        shutil.copytree(self.path, path, ignore=shutil.ignore_patterns("test-*", ".cache"))
        return self.at(path)

    def at(self, path: Path) -> "Workspace":
        """Another folder, with the same environment."""
        return self.standing(path, self.environment)

    @classmethod
    def standing(cls, path: Path, environment: Mapping[str, str] = {}) -> "Workspace":
        """A project that stands in a folder already."""
        found = object.__new__(cls)
        found.path, found.environment = path, dict(environment)
        return found

    def set(self, values: dict) -> None:
        yaml = YAML()
        file = self.path / "params.yaml"
        table = yaml.load(file.read_text(encoding="utf-8"))
        for key, value in values.items():
            *parents, last = key.split(".")
            section = table
            for parent in parents:
                section = section[parent]
            section[last] = value
        with file.open("w", encoding="utf-8") as out:
            yaml.dump(table, out)

    def under_git(self, remote: Path) -> None:
        """Make it a git and DVC repository of its own, as a fresh clone would be."""
        self.run("git", "init", "-q")
        self.run("git", "config", "user.email", "test@example.com")
        self.run("git", "config", "user.name", "test")
        self.run("dvc", "remote", "modify", "local", "url", str(remote))
        self.commit("start")

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        """Run a command in the workspace, with this Python's tools first on the path."""
        environment = (
            os.environ
            | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": ""}
            | self.environment
        )
        result = subprocess.run(command, cwd=self.path, env=environment, capture_output=True, text=True)
        if check and result.returncode:
            pytest.fail(f"{' '.join(command)}\n{result.stdout}\n{result.stderr}")
        return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no worker is left with one at the end."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def workspace(tmp_path_factory, worker_id) -> Workspace:
    """A tiny project whose data is fetched and formatted and whose sft is done, for tests that call the code
    directly.

    Of several workers one makes it, and each has a copy.
    """
    folder = tmp_path_factory.mktemp("workspace")
    if worker_id == "master":
        return trained(folder)
    made = tmp_path_factory.getbasetemp().parent / "workspace"
    with FileLock(f"{made}.lock"):
        if not made.exists():
            made.mkdir()
            trained(made)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return Workspace.standing(folder)


def trained(folder: Path) -> Workspace:
    workspace = Workspace(folder)
    for command in (
        ["check", "params"], ["check", "preferences"],
        ["fetch", "instructions"], ["fetch", "preferences"], ["fetch", "continued"], ["fetch", "benchmarks"],
        ["base"],
        ["format", "instructions"], ["format", "preferences"], ["format", "continued"], ["sft"],
        ["sample", "sft"], ["format", "sampled-sft"],
    ):  # fmt: skip
        workspace.run(sys.executable, "-m", f"stages.{command[0]}", *command[1:])
    return workspace


@pytest.fixture
def inside(workspace, monkeypatch) -> Workspace:
    monkeypatch.chdir(workspace.path)
    return workspace


@pytest.fixture
def port(parrot):
    """Of a server of the test's own `parrot`."""
    from tests.fake_models import served  # which imports what serves: not for every test

    with served(parrot) as port:
        yield port


@pytest.fixture(scope="module")
def shared_port():
    """Of a server for tests that leave nothing behind."""
    from tests.fake_models import Parrot, served

    with served(Parrot()) as port:
        yield port
