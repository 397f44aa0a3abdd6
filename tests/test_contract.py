"""dvc.yaml says the truth: every parameter and output of a stage is declared, and in the right cache mode
(its code: test_house.py).
"""

import importlib
import shutil
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from stages.settings import reader, stage
from stages.settings.params import Section
from tests.conftest import Workspace

ROOT = Path(__file__).parents[1]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
ENTRIES = {name: entry.get("do", entry) for name, entry in STAGES.items()}


def test_small_results_are_in_git_and_large_ones_in_the_cache():
    for name, entry in ENTRIES.items():
        for out in entry.get("outs", []):
            # `cache: false` under outs would switch the stage's run cache off
            assert isinstance(out, str), f"{name}: {out} must be cached"
        for kind in ("metrics", "plots"):
            for out in entry.get(kind, []):
                ((path, options),) = out.items()
                assert path.startswith("metrics/"), path
                assert options["cache"] is False, path


def test_revisions_are_text_so_that_dvc_cannot_rewrite_them():
    """`-S` rewrites the file with ruamel, which turned an unquoted commit 0e12345, a number, into 0e00000."""
    table = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    repos = [model["weights"].get("repo", "x@y") for model in table["models"].values()]
    assert all("@" in repo for repo in repos)
    sources = [source for role in table["datasets"].values() for source in role.values()]
    assert all("revision" not in source for source in sources if isinstance(source, dict))


def test_an_override_changes_one_line_of_params_yaml(tmp_path):
    """DVC rewrites the file: what it would write otherwise (null as nothing, flow lists as blocks) must not
    stand in it.
    """
    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    apply_overrides(path, ["method=kto"])
    before, after = (
        (folder / "params.yaml").read_text(encoding="utf-8").splitlines() for folder in (ROOT, tmp_path)
    )
    assert len(before) == len(after)
    assert [(old, new) for old, new in zip(before, after) if old != new] == [
        ("method: dpo        # one of `methods`: how the preference stage learns",
         "method: kto        # one of `methods`: how the preference stage learns"),
    ]  # fmt: skip


def test_metrics_folders_are_not_hidden_from_git():
    ignored = (ROOT / ".gitignore").read_text().split()
    assert not {"metrics", "metrics/", "dvc.lock"} & set(ignored)


@pytest.fixture(scope="module")
def project(workspace, tmp_path_factory) -> Workspace:
    """A copy, as whole stages run in it."""
    return workspace.copy(tmp_path_factory.mktemp("contract") / "project")


@pytest.mark.parametrize(
    ("name", "items"),
    [("fetch", ["instructions"]), ("base", [""]), ("format", ["preferences"]), ("sft", [""]),
     ("evaluate", ["sft"]), pytest.param("dpo", [""], marks=pytest.mark.long),
     pytest.param("refine", ["ipo", "continued"], marks=pytest.mark.long)],
)  # fmt: skip
def test_every_declared_parameter_is_read(project, monkeypatch, name, items):
    """The other half, that none is read undeclared, is enforced while a stage runs: see stage.only. Defaults
    are read as parts of the entries that have them from there.
    """
    monkeypatch.chdir(project.path)
    read = set()

    def record(self, attribute):
        read.add((type(self), attribute))
        return object.__getattribute__(self, attribute)

    whole = reader.read()
    declared = {key for item in items for key in stage.declared_keys(name, whole, item)}
    if name == "refine":
        importlib.import_module("stages.dpo").main()
    monkeypatch.setattr(Section, "__getattribute__", record)
    for item in items:
        importlib.import_module(f"stages.{name}").main(*[item] if item else [])
    monkeypatch.undo()
    entries = {
        "model_defaults": f"models.{whole.model}",
        "method_defaults": f"methods.{items[0] or whole.method}",
    }
    for defaults, entry in entries.items():
        declared = {key.replace(defaults, entry) for key in declared}
    for key in declared:
        *parents, last = key.split(".")
        owner = whole
        for parent in parents:
            owner = owner[parent] if isinstance(owner, dict) else getattr(owner, parent)
        value = owner[last] if isinstance(owner, dict) else getattr(owner, last)
        expected = (
            {(type(value), field) for field in type(value).model_fields}
            if isinstance(value, Section)
            else {(type(owner), last)}
        )
        assert read & expected, f"{name} declares {key} but never reads it"


@pytest.mark.parametrize("name", ENTRIES)
def test_what_an_entry_leaves_out_is_declared_too(name):
    """A default that changes must run again what an entry has from there."""
    params = ENTRIES[name].get("params", [])
    for part, defaults in (("models.${model}", "model_defaults"), ("methods.", "method_defaults")):
        own = {key.partition("}")[2] for key in params if key.startswith(part)}
        assert own == {key.removeprefix(defaults) for key in params if key.startswith(defaults)}
