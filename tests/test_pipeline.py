"""The real pipeline on a temporary copy with tiny settings: what runs again when what changes. In order; each
test goes on from where the one before it stopped."""

import json
import math
import re

import pytest

from tests.conftest import TINY, Workspace
from tests.test_workflows import own

CHECKS = {"check@params", "check@preferences"}  # of every change in params.yaml, in a second
EVERY_STAGE = {
    *CHECKS,
    "fetch@instructions", "fetch@preferences", "fetch@continued", "fetch@benchmarks", "base",
    "format@instructions", "format@preferences", "format@continued", "report",
    "sample@sft", "format@sampled-sft",
    "sft", "dpo", "evaluate@base", "evaluate@sft", "evaluate@dpo", "figures",
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Workspace:
    """A git and DVC repository of its own, as a fresh clone would be, with tiny settings."""
    project = Workspace(tmp_path_factory.mktemp("project"))
    project.under_git(tmp_path_factory.mktemp("remote"))
    return project


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"Running stage '(.+?)'", output))


def metrics_diff(project: Workspace) -> dict:
    return json.loads(project.run("dvc", "metrics", "diff", "--json").stdout)


def test_repro_runs_everything_once(project):
    assert stages_run(project.run("dvc", "repro").stdout) == EVERY_STAGE
    project.commit("first results")
    again = project.run("dvc", "repro").stdout
    assert not stages_run(again)
    assert "up to date" in again


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("method=koto", "method is 'koto': it must be one of dpo, ipo, kto, cpo, simpo, orpo, dno"),
        ("+methd=kto", "methd is not a known key: did you mean method?"),
        ("sft.epochs=three", "sft.epochs is 'three': input should be a valid number"),
    ],
)
def test_a_mistake_stops_the_run_before_anything_is_lost(project, change, said):
    """Where DVC by itself would say that parameters are missing, or train nothing, or delete models/sft."""
    result = project.run("dvc", "exp", "run", "-S", change, check=False)
    project.run("git", "checkout", "-q", ".")
    assert result.returncode != 0
    assert [line for line in result.stderr.splitlines() if line.startswith("error: params.yaml: " + said)]
    assert "Traceback" not in result.stdout + result.stderr
    assert stages_run(result.stdout) == {"check@params"}
    assert (project.path / "models/sft/adapter_model.safetensors").exists()


def test_the_metrics_are_complete_and_free_of_noise(project):
    for checkpoint in ("base", "sft", "dpo"):
        text = (project.path / f"metrics/{checkpoint}.json").read_text(encoding="utf-8")
        metrics = json.loads(text)
        assert all(math.isfinite(value) for value in metrics.values())
        assert {"skills", "preference", "validation_loss", "stop_rate"} <= set(metrics)
        tables = json.loads((project.path / f"metrics/tables/{checkpoint}.json").read_text(encoding="utf-8"))
        measures = {row["measure"]: row["value"] for row in tables["measures"]}
        assert metrics.items() <= measures.items()
        assert {"skills_choice", "byte_perplexity", "arabic_share"} <= set(measures)
        assert tables["scores"][0]["benchmark"] == "skills"
        assert tables["scores"][0]["n"] == 12 * TINY["mixtures.demo.benchmarks.skills"]
        assert len([one for one in tables["slices"] if one["benchmark"] == "skills"]) == 12
        assert not re.search(r"20\d\d-\d\d|/tmp|[0-9a-f]{40}", text)
    account = json.loads((project.path / "data/reports/account.json").read_text(encoding="utf-8"))
    counts = json.loads((project.path / "metrics/data.json").read_text(encoding="utf-8"))
    for name in ("instructions", "preferences"):
        role, lost = account[name], sum(account[name]["dropped"].values())
        assert role["rows"] == role["train"] + role["validation"] + lost
        assert counts[name] == {"used": role["train"] + role["validation"], "dropped": lost}
    assert account["benchmarks"]["skills"]["rows"] == counts["benchmarks"]["skills"]["used"]
    assert "<h2>Instructions</h2>" in (project.path / "data/reports/index.html").read_text(encoding="utf-8")
    assert "margin" in (project.path / "metrics/curves/dpo.tsv").read_text().splitlines()[0].split("\t")


def test_an_edit_of_what_only_shows_runs_no_training_again(project):
    for name in ("console/progress.py", "sources/hub.py", "settings/memory.py"):
        with (project.path / "stages" / name).open("a", encoding="utf-8") as file:
            file.write("# a comment\n")
    changed = set(json.loads(project.run("dvc", "status", "--json").stdout))
    project.run("git", "checkout", "-q", "stages")
    assert changed == {
        *CHECKS,
        *(name for name in EVERY_STAGE if name.startswith("fetch")),
        "base",
    }  # by the hub


def test_the_chain_of_checkpoints_is_recorded(project):
    provenance = json.loads((project.path / "models/dpo/provenance.json").read_text(encoding="utf-8"))
    assert provenance["base"]["model"] == "nano"
    assert [link["checkpoint"] for link in provenance["chain"]] == ["models/sft"]
    assert list(provenance["params"]["methods"]) == ["dpo"]  # only what was declared, so only what was used


def test_the_commit_verifies_itself_and_a_forged_metric_does_not(project):
    assert "agree with the commit" in project.run("python", "-m", "tools.verify").stdout
    path = project.path / "metrics/dpo.json"
    honest = path.read_text(encoding="utf-8")
    path.write_text(honest.replace('"skills": ', '"skills": 1', 1), encoding="utf-8")
    project.commit("a better number")
    result = project.run("python", "-m", "tools.verify", check=False)
    assert result.returncode == 1
    assert "metrics/dpo.json, in git and as evaluate@dpo saw it" in result.stdout
    path.write_text(honest, encoding="utf-8")
    project.commit("the honest number")
    assert "skills, subject: plural" in project.run("python", "-m", "tools.scores", "--parts").stdout


def test_another_method_runs_the_preference_stage_and_its_evaluation_alone(project):
    assert stages_run(project.run("dvc", "exp", "run", "-S", "method=kto").stdout) == {
        *CHECKS,
        "dpo",
        "evaluate@dpo",
        "figures",
    }
    diff = metrics_diff(project)
    assert set(diff) == {"metrics/dpo.json", "metrics/train_dpo.json"}
    assert diff["metrics/train_dpo.json"]["start_loss"]["new"] == 0.5
    assert len(project.run("dvc", "metrics", "diff").stdout.strip().splitlines()) <= 25
    shown = {name for changes in diff.values() for name in changes}
    assert not shown & {"seconds", "tokens_per_second", "peak_memory_gb"}


def test_a_method_already_run_comes_back_from_the_run_cache(project):
    result = project.run("dvc", "exp", "run", "-S", "method=dpo").stdout
    assert not stages_run(result)
    assert result.count("is cached - skipping run") == 3 + len(CHECKS)
    assert not metrics_diff(project)


@pytest.mark.slow
def test_more_epochs_run_sft_and_what_follows(project):
    assert stages_run(project.run("dvc", "exp", "run", "-S", "sft.epochs=2").stdout) == {
        *CHECKS,
        "sft",
        "sample@sft",  # in a second: no prompts are asked for
        "dpo",
        "evaluate@sft",
        "evaluate@dpo",
        "figures",
    }
    project.run("git", "checkout", "-q", ".")


@pytest.mark.long
def test_the_text_policy_runs_format_onward(project):
    ran = stages_run(project.run("dvc", "exp", "run", "-S", "text.tashkeel=strip").stdout)
    assert {"format@instructions", "format@preferences"} <= ran
    assert not ran & {"fetch@instructions", "fetch@preferences", "fetch@benchmarks", "base"}
    project.run("git", "checkout", "-q", ".")


@pytest.mark.slow
def test_a_refinement_is_one_more_pass_with_its_own_evaluation(project):
    project.run("dvc", "checkout")
    ran = stages_run(project.run("dvc", "exp", "run", "-S", "refine=[ipo,continued]").stdout)
    assert ran == {
        *CHECKS,
        "refine@ipo",
        "evaluate_refined@ipo",
        "refine@continued",
        "evaluate_refined@continued",
        "figures",
    }
    for item in ("ipo", "continued"):
        provenance = json.loads(
            (project.path / f"models/refine-{item}/provenance.json").read_text(encoding="utf-8")
        )
        assert [link["checkpoint"] for link in provenance["chain"]] == ["models/sft", "models/dpo"]
        assert provenance["method"] == item
        assert json.loads((project.path / f"metrics/refine-{item}.json").read_text())["skills"] >= 0
    # β is 0.1 x 2, and the reference the policy of models/dpo: at the start 1 / 4β²
    facts = json.loads((project.path / "metrics/train_refine-ipo.json").read_text(encoding="utf-8"))
    assert facts["start_loss"] == pytest.approx(6.25, rel=1e-3)


@pytest.mark.slow
def test_another_data_set_is_a_short_diff(project):
    project.run("git", "checkout", "-q", ".")
    own(project, 80)
    project.commit("my own rows")
    project.run("dvc", "exp", "run", "-S", "data=mine")
    assert len(project.run("dvc", "metrics", "diff").stdout.strip().splitlines()) <= 40
