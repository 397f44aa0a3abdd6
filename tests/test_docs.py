"""What the documentation says is so: its commands run as they stand, its settings are valid, and what it
names is there.
"""

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.model import modeling
from stages.settings import memory, params, reader
from tests.conftest import ROOT, Workspace
from tests.test_compare import binary, rows, write

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "workflows/**/*.md", "data/*/README.md")
    for path in ROOT.glob(pattern)
)
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
# Commands by what they begin with, and why no test below runs them as they stand. Everything else is run.
NOT_RUN = {
    "pytest": "runs these tests",
    "make": "installs into .venv; what it calls is run here and by the other tests",
    "dvc exp run": "trains; below where it needs no hub, else in test_real_models.py and test_workflows.py",
    "for method in": "trains for each method: test_scaling.py",
    "CUDA_VISIBLE_DEVICES=": "starts workers on several GPUs: test_scaling.py",
    "dvc queue": "of workers that were not started: test_scaling.py",
    "python -m tools.harness": "asks a published benchmark: test_protocols.py",
    "python -m tools.chat --web": "serves until it is stopped: test_web.py",
    "python -m tools.serve": "the same: test_serve.py",
    "SERVE_API_KEY=": "the same",
    "docker run": "another project's server",
    "lm_eval": "asks a server for a published benchmark",
    "python -m tools.export models/dpo --push": "uploads: test_export.py",
    "dvc remote": "of a bucket that is not there: test_remotes.py",
    "git add .dvc/config": "of that bucket: test_remotes.py",
    "dvc push": "the same",
    "dvc pull": "the same",
    "dvc exp push": "to a server that is not there: test_remotes.py",
    "dvc exp pull": "the same",
    "dvc exp apply": "of what was pulled: test_remotes.py",
    "dvc exp branch": "the same",
    "git add -A && git commit": "the experiments of the commit before would not be compared any more",
    "dvc gc": "asks before it deletes",
    "vllm": "another project's server",
    "ollama": "another project's server",
    "workflows/": "a real model, from a hub: test_workflows.py",
}
SLOW = ("python -m tools.chat", "python -m tools.export")
# Files of the reader, and what stages make on other settings.
NAMED_ONLY = {
    "data/own/my.jsonl", "data/own/big.jsonl", "data/own/exam.jsonl", "data/own/facts.jsonl",
    "data/feedback/preferences.jsonl", "models/refine-<item>", "models/own/my-base",
}  # fmt: skip


# --- commands -----------------------------------------------------------------------------------------------


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@cache
def commands(page: Path) -> list[str]:
    """The commands of a page's bash blocks, each with all its lines."""
    found = []
    for block in blocks(page, "bash"):
        begun = ""
        for line in block.splitlines():
            begun += line
            if line.endswith("\\") or subprocess.run(["bash", "-nc", begun], capture_output=True).returncode:
                begun += "\n"
            elif begun.strip() and not begun.startswith("#"):
                found.append(begun)
                begun = ""
            else:
                begun = ""
        assert not begun, f"{page.name}: bash does not understand {begun!r}"
    return found


@cache
def mentioned(page: Path) -> list[str]:
    """The commands inside a page's text, but for those with a gap to fill in."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = [
        code
        for code in re.findall(r"`([^`\n]+)`", text)
        if re.match(r"(dvc|python -m|make|accelerate|torchrun) ", code)
    ]
    return [code for code in found if not re.search(r"[<…]|[=[][A-Z]{2,}", code)]


@cache
def calls(command: str) -> list[list[str]]:
    """The programs that bash would call for it, with their arguments."""
    note = r"""command_not_found_handle() { printf '%s\x1f' "$@"; printf '\x1e'; };"""
    shell = shutil.which("bash")
    noted = subprocess.run(
        [shell, "-c", f"{note}\n{command}"], env={"PATH": "/nowhere"}, capture_output=True, text=True
    ).stdout
    return [call.removesuffix("\x1f").split("\x1f") for call in noted.split("\x1e") if call]


def not_run(command: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if command.startswith(start)), None)


def listed() -> list:
    """Every command that is run, as parameters of a test; one that stands in several places is run once."""
    found = {}
    for page in PAGES:
        for command in commands(page):
            title = f"{page.relative_to(ROOT)}: {' '.join(word for call in calls(command) for word in call)}"
            marks = [pytest.mark.slow] if command.startswith(SLOW) else []
            if not not_run(command):
                found.setdefault(str(calls(command)), pytest.param(command, id=title, marks=marks))
    return list(found.values())


@pytest.fixture(scope="module")
def project(workspace, tmp_path_factory) -> Workspace:
    """A repository whose pipeline has run, but cheaply: dpo's adapter is that of sft, and the answers are
    made up.

    There are two commits with different answers of dpo, and an experiment, so that all can be compared.
    """
    project = workspace.copy(tmp_path_factory.mktemp("docs") / "project")
    project.environment = {"BROWSER": "true"}  # what `--open` opens a page with
    shutil.copytree(ROOT / "metrics", project.path / "metrics", dirs_exist_ok=True)
    link = {
        "checkpoint": "models/sft",
        "weights_sha256": modeling.weights_sha256(project.path / "models/sft"),
    }
    shutil.copytree(project.path / "models/sft", project.path / "models/dpo", dirs_exist_ok=True)
    provenance = json.loads((project.path / "models/sft/provenance.json").read_text(encoding="utf-8"))
    (project.path / "models/dpo/provenance.json").write_text(
        json.dumps(provenance | {"chain": [link]}), encoding="utf-8"
    )
    project.run(sys.executable, "-m", "stages.report")
    for checkpoint in ("base", "sft", "dpo"):
        answer(project, checkpoint, won=10)
    project.under_git(tmp_path_factory.mktemp("remote"))
    project.run("dvc", "commit", "-q", "-f")
    project.commit("first")
    answer(project, "dpo", won=20)
    project.run("dvc", "commit", "-q", "-f", "evaluate@dpo")
    project.commit("second")
    answer(project, "dpo", won=30)
    project.run("dvc", "exp", "save", "-q", "-n", "third")
    return project


def answer(project: Workspace, checkpoint: str, won: int) -> None:
    """Write predictions in which `won` answers are right that would be wrong in others."""
    items = [
        *rows("skills", binary(won, 8, 100)[1]),
        *rows("held-out", [None] * 3),
        *rows("cidar-eval", [None] * 3),
    ]
    write(project.path / f"data/predictions/{checkpoint}.parquet", items)


@pytest.mark.long
@pytest.mark.parametrize("command", listed())
def test_a_command_runs_as_it_stands(project, command):
    project.run("bash", "-c", f"exec < /dev/null\nset -e\n{command}")


def test_the_list_of_what_is_not_run_has_nothing_to_spare():
    known = {command for page in PAGES for command in commands(page)}
    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in known)] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_call_is_one_that_exists(page, tmp_path):
    for command in [*commands(page), *mentioned(page)]:
        for program, *arguments in calls(command):
            if program == "dvc":
                check_dvc(arguments, tmp_path)
            elif program == "make":
                assert set(arguments) <= set(
                    re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
                ), command
            elif program == "python":
                check_module(arguments, command)


def check_dvc(arguments: list[str], folder: Path) -> None:
    """DVC's own parser takes it, its stages exist, and params.yaml is valid with its overrides: names,
    values, what fits on the GPU.
    """
    from dvc.cli.parser import get_main_parser
    from dvc.utils.hydra import apply_overrides, get_hydra_sweeps

    parsed = get_main_parser().parse_args(arguments)
    assert all(
        "/" in target or target.split("@")[0] in pipeline()
        for target in getattr(parsed, "targets", None) or []
    ), arguments
    path, overrides = folder / "params.yaml", getattr(parsed, "set_param", [])
    for sweep in get_hydra_sweeps({"params.yaml": overrides}) if overrides else []:
        shutil.copy(ROOT / "params.yaml", path)
        apply_overrides(path, sweep["params.yaml"])
        reader.read(path)


@cache
def pipeline() -> dict:
    return YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def check_module(arguments: list[str], command: str) -> None:
    """`python -m module` is there and takes the options: those of ours must stand in its code, or in its own
    words.
    """
    assert arguments[0] == "-m", command
    spec = importlib.util.find_spec(arguments[1])
    assert spec, command
    if not arguments[1].startswith(("tools.", "stages.", "benchmarks.")):
        return
    files = [
        file for folder in spec.submodule_search_locations or [] for file in Path(folder).glob("*.py")
    ] or [Path(spec.origin)]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    texts = {
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for option in (word.split("=")[0] for word in arguments[2:] if word.startswith("--")):
        assert option in texts, f"{arguments[1]} knows no {option}: {command}"


@pytest.mark.slow
def test_every_experiment_that_needs_no_hub_runs(tmp_path_factory):
    project = Workspace(tmp_path_factory.mktemp("experiments"))
    project.under_git(tmp_path_factory.mktemp("remote"))
    project.run("dvc", "repro", "-q")
    project.commit("results")
    known = dict.fromkeys(command for page in PAGES for command in [*commands(page), *mentioned(page)])
    local = [
        command
        for command in known
        if command.startswith("dvc exp run")
        and not re.search(r"model=|data=|feedback|accelerate|--queue", command)
    ]
    assert len(local) > 2
    for command in local:
        project.run("bash", "-c", command)
        project.run("git", "checkout", "-q", ".")
        project.run("dvc", "checkout", "-q")


# --- settings -----------------------------------------------------------------------------------------------


def merged(table: dict, changes: dict) -> dict:
    both = {
        key: merged(table[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(table.get(key), dict)
    }
    return table | changes | both


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_part_of_params_yaml_is_valid(page, tmp_path):
    whole = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for block in blocks(page, "yaml"):
        part = YAML(typ="safe", pure=True).load(block)
        if part.keys() & whole.keys():
            with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
                YAML().dump(merged(whole, part), file)
            reader.read(tmp_path / "params.yaml")


def test_every_key_that_is_named_exists():
    """A dotted name in backticks that begins as a section of params.yaml does."""
    whole = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for role, layout in params.ROLES.items():
        for mixture in whole["mixtures"].values():
            mixture[role] |= whole["datasets"][layout]  # any of them can be named
    unknown = defaultdict(list)
    for page in PAGES:
        for key in re.findall(r"`([a-z_]+(?:\.[\w-]+)+)(?:: [^`]+)?`", page.read_text(encoding="utf-8")):
            if key.split(".")[0] in whole and not key.endswith(".py") and reader.value_of(whole, key) is None:
                unknown[page.relative_to(ROOT)].append(key)
    assert not unknown


def test_the_memory_in_the_comparison_of_models_is_the_plans():
    text = (ROOT / "docs/model-selection.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `([\w-]+)` (.+)$", text.partition("## By goal")[0], re.M)
    table = {name: re.findall(r"\d+\.\d(?= \|)", line)[-5:] for name, line in lines}
    settings = reader.read()
    assert set(table) == set(settings.models) - {"nano"}
    for name, numbers in table.items():
        weights = settings.models[name].weights
        shape = memory.shape_of(weights)
        held = [memory.weights_bytes(shape, kind, 2) for kind in (weights.quantization, "none")]
        runs = [
            memory.run_of(settings, name, stage, method) for stage, method in (("sft", None), ("dpo", "dpo"))
        ]
        answer = memory.inference(shape, weights.quantization, weights.dtype, 1024)
        expected = [one / memory.GB for one in held] + [memory.predicted(run) for run in runs]
        assert numbers == [f"{one:.1f}" for one in [*expected, sum(answer.values()) / memory.GB]], name


# --- files --------------------------------------------------------------------------------------------------


def heading(text: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page):
    for target, anchor in re.findall(
        r"\]\((?!https?://)([^)#\s]*)#?([^)\s]*)\)", page.read_text(encoding="utf-8")
    ):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in map(heading, re.findall(r"^#+ (.+)", file.read_text(encoding="utf-8"), re.M)), (
                f"{target}#{anchor}"
            )


def test_every_file_that_is_named_exists(project):
    """In git, or after the stages have run. `<…>` and `*` stand for any name."""
    top = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")} - {
        "exports"
    }
    unknown = defaultdict(list)
    for page in PAGES:
        words = [
            word
            for command in [*commands(page), *mentioned(page)]
            for call in calls(command)
            for part in call
            for word in part.split()
        ]
        for name in {*words, *re.findall(r"`((?:[\w.-]+/)*[\w.*<>-]+/?)`", page.read_text(encoding="utf-8"))}:
            if name.split("/")[0] in top and "/" in name:
                pattern = re.sub(r"<\w+>", "*", name.rstrip("/"))
                if name not in NAMED_ONLY and not any(project.path.glob(pattern)):
                    unknown[page.relative_to(ROOT)].append(name)
            elif name.endswith(".py") and not any(ROOT.glob(f"*/{name}")):
                unknown[page.relative_to(ROOT)].append(name)
    assert not unknown
