"""The real models and datasets, by their real names and layouts, from a hub on 127.0.0.1 with shrunken
contents.
"""

import json
from pathlib import Path

import pytest
from pyarrow import parquet

from tests.conftest import ROOT, Workspace
from tests.fake_hub import ARABICMMLU, WORDS, cidar, table, tiny_hub
from tests.test_pipeline import stages_run
from tests.test_workflows import COMMANDS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub():
    with tiny_hub((ROOT / "models/nano/tokenizer.json").read_bytes()) as hub:
        hub.push(
            "dataset",
            "me/mine",
            {"train.parquet": table([{"q": f"عرف كلمة {word}", "a": f"كلمة {word} اسم."} for word in WORDS])},
        )
        yield hub


@pytest.fixture(scope="module")
def project(tmp_path_factory, hub) -> Workspace:
    project = Workspace(tmp_path_factory.mktemp("project"))
    project.environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "HF_HUB_OFFLINE": "0",
    }
    project.set({"format.validation": 0.2, "hardware.cpu": True})
    project.under_git(tmp_path_factory.mktemp("remote"))
    return project


def read(project: Workspace, name: str) -> dict:
    return json.loads((project.path / name).read_text(encoding="utf-8"))


def test_a_workflow_runs_to_its_end_with_a_4_bit_model_and_data_from_the_hub(project, hub):
    result = project.run(*COMMANDS["low-memory"][1])
    assert {"base", "sft", "dpo", "evaluate@dpo"} <= stages_run(result.stdout)
    assert "licence cc-by-nc-4.0: NON-COMMERCIAL USE ONLY" in result.stdout
    base = read(project, "models/base.json")
    assert (base["model"], base["repo"], base["licence"]) == (
        "qwen3-1_7b",
        "Qwen/Qwen3-1.7B-Base",
        "apache-2.0",
    )
    assert len(base["commit"]) == 40
    assert {"model-00001-of-00002.safetensors", "tokenizer.json", "generation_config.json"} <= set(
        base["files"]
    )
    assert not hub.asked("pytorch_model.bin") + hub.asked(".py")
    sources = read(project, "data/raw/benchmarks/sources.json")
    assert sources["arabicmmlu"]["commit"] == ARABICMMLU
    data = read(project, "data/reports/account.json")
    assert data["instructions"]["sources"]["cidar"]["tokens_saved_share"] > 0
    assert data["instructions"]["rows"] == 60
    assert data["preferences"]["rows"] == 60
    assert data["instructions"]["leaks"]["arabicmmlu"]["items"] == 20
    assert "\u200b" not in "".join(
        parquet.read_table(project.path / "data/formatted/instructions/train.parquet")[
            "completion"
        ].to_pylist()
    )
    assert (
        read(project, "models/sft/adapter_config.json")["base_model_name_or_path"] == "Qwen/Qwen3-1.7B-Base"
    )
    provenance = read(project, "models/dpo/provenance.json")
    assert provenance["base"]["commit"] == base["commit"]
    assert provenance["params"]["models"]["qwen3-1_7b"]["weights"]["quantization"] == "nf4"
    assert read(project, "metrics/tables/dpo.json")["scores"][0]["n"] == 20
    assert project.run("dvc", "exp", "list", "--name-only").stdout.split() == ["low-memory"]
    assert read(project, "metrics/train_dpo.json")["start_loss"] == pytest.approx(0.6931, abs=0.01)
    project.commit("qwen3")


def test_a_second_dataset_fetches_nothing_that_is_there(project, hub):
    hub.log.clear()
    hub.push("dataset", "arbml/CIDAR", cidar(30))  # main moves; what was fetched stays
    mine = {"repo": "me/mine", "revision": "main", "columns": {"prompt": "q", "completion": "a"}}
    own = {"mixtures.cidar.instructions.skills": 110, "mixtures.cidar.instructions.mine": mine}
    project.set({"allow_builtin": True} | own)
    ran = stages_run(project.run("dvc", "repro", "report").stdout)
    assert ran == {"check@params", "fetch@instructions", "format@instructions", "report"}
    assert len(hub.log) == len(hub.asked("me/mine")) == 2  # what there is, and its one file
    sources = read(project, "data/reports/account.json")["instructions"]["sources"]
    assert {name: source["rows"] for name, source in sources.items()} == {
        "cidar": 60,
        "skills": 110,
        "mine": len(WORDS),
    }
    changed = set(json.loads(project.run("dvc", "status", "--json").stdout))
    assert {"sft", "evaluate@base"} <= changed  # what is trained or validated on it
    assert not changed & {"base", "fetch@preferences", "fetch@benchmarks", "format@preferences"}
    project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout", "-q")


def test_a_research_licence_is_said_loudly_and_a_lost_shard_is_noticed(project, hub):
    project.set({"model": "qwen2_5-3b", "hardware.vram_gb": 12})
    assert (
        "licence qwen-research: RESEARCH, NON-COMMERCIAL USE ONLY"
        in project.run("python", "-m", "stages.base").stdout
    )
    repository = Path(project.environment["HF_HOME"]) / "hub/models--Qwen--Qwen2.5-3B"
    next(repository.rglob("model-00001-of-00002.safetensors")).unlink()
    error = project.run("python", "-m", "stages.format", "instructions", check=False).stderr
    assert "models/base.json names model-00001-of-00002.safetensors" in error
    assert error.endswith("run `dvc repro -f base`\n")
    hub.log.clear()
    project.run("python", "-m", "stages.base")
    assert not hub.asked("safetensors")  # its bytes were there still
