"""A bad value anywhere in params.yaml is one line that names the key, the value and the cure."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.settings import reader, stage
from stages.settings.errors import Problem
from stages.settings.methods import METHODS

ROOT = Path(__file__).parents[1]
GOOD = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def changed(tmp_path, values):
    """params.yaml with some keys changed (or removed, for ...)."""
    table = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for key, value in values.items():
        *parents, last = key.split(".")
        section = table
        for parent in parents:
            section = section[parent]
        if value is ...:
            del section[last]
        else:
            section[last] = value
    path = tmp_path / "params.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(table, file)
    return path


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model", "qwen9", "model is 'qwen9': it must be one of nano, qwen3-0_6b, qwen3-1_7b"),
        ("method", "ppo", "method is 'ppo': it must be one of dpo, ipo, kto, cpo, simpo"),
        (
            "method",
            "continued",
            "method is 'continued', which learns from no preferences: write refine: [continued]",
        ),
        ("data", "dmo", "data is 'dmo': it must be one of demo, chatbot"),
        (
            "mixtures.demo.instructions",
            {},
            "mixtures.demo.instructions is {}: dictionary should have at least",
        ),
        ("mixtures.mine.max_new_tokens", 8, "mixtures.mine.max_new_tokens is not a known key"),
        ("launch", "", "launch is ''"),
        (
            "training.optimizer",
            "sgd",
            "training.optimizer is 'sgd': input should be 'adamw', 'adamw_8bit' or 'paged_adamw_8bit'",
        ),
        ("refine", ["ppo"], "refine is 'ppo': it must be one of"),
        ("refine", ["ipo", "ipo"], "each pass can stand in it once"),
        ("seed", "seven", "seed is 'seven'"),
        (
            "mixtures.demo.instructions",
            {"cidarr": 10},
            "mixtures.demo.instructions is 'cidarr': it must be one of skills, cidar",
        ),
        (
            "mixtures.demo.instructions.skills",
            0,
            "mixtures.demo.instructions.skills.rows: must be a number of rows or `all`, not 0",
        ),
        ("text.tashkeel", "remove", "text.tashkeel is 'remove': input should be 'keep' or 'strip'"),
        ("prompt.template", "alpaca", "prompt.template is 'alpaca': input should be 'chatml' or 'arabic'"),
        ("prompt.max_length", 1024.5, "prompt.max_length is 1024.5"),
        ("format.validation", 1.5, "format.validation is 1.5"),
        ("sft.epochs", -1, "sft.epochs is -1"),
        ("sft.epochs", True, "sft.epochs is True"),
        ("sft.packing", "yes", "sft.packing is 'yes'"),
        ("sft.pakcing", True, "sft.pakcing is not a known key: did you mean packing?"),
        ("sft.warmup", ..., "sft.warmup is missing"),
        ("evaluate.split", "train", "evaluate.split is 'train'"),
        ("models.nano.sft.lora.targets", "some", "models.nano.sft.lora.targets is 'some'"),
        ("models.nano.sft.lora.rank", 8, "models.nano.sft.lora.rank is not a known key"),
        ("models.nano.weights.path", None, "needs either `repo`"),
        ("models.qwen2_5-7b.weights.repo", "Qwen/Qwen2.5-7B", "needs a `revision`"),
        ("models.qwen2_5-7b.sft", ..., "models.qwen2_5-7b.sft is missing: add `sft: {}`"),
        ("model_defaults.sft.lora.r", 0, "model_defaults.sft.lora.r is 0: input should be greater"),
        ("model_defaults.weights", ..., "model_defaults.weights is missing"),
        ("method_defaults.epochs", "one", "method_defaults.epochs is 'one'"),
        ("models.qwen2_5-7b.sft", {"lora": None}, "4-bit weights cannot be trained in full"),
        ("methods.dpo.sft_weight", 0.5, "methods.dpo.sft_weight is not used by dpo"),
        ("methods.kto.desirable_weight", None, "methods.kto.desirable_weight is required by kto"),
        ("methods.dpo.beta", ..., "methods.dpo.beta is required by dpo"),
        ("methods.continued.beta", 0.1, "methods.continued.beta is not used by continued"),
        ("methods.exo.label_smoothing", 0.0, "methods.exo.label_smoothing is 0.0"),
        (
            "methods.ppo",
            {"beta": 0.1},
            "methods is 'ppo': it must be one of",
        ),
        ("datasets.instructions.cidar", {"path": "a.csv"}, "datasets.instructions.cidar: needs `columns`"),
        ("datasets.instructions.cidar", "arbml/CIDAR", "datasets.instructions.cidar: needs a `revision`"),
        (
            "datasets.instructions.skills.path",
            "cidar.jsonl",
            "datasets.instructions.skills: needs exactly one of",
        ),
        (
            "datasets.preferences.cidar",
            {"repo": "x/y", "adapter": "z"},
            "datasets.preferences.cidar: needs a `revision`",
        ),
        (
            "mixtures.demo.instructions.skills",
            {"rows": "many"},
            "mixtures.demo.instructions.skills.rows: must be a number",
        ),
        (
            "mixtures.demo.instructions.mine",
            {"path": "a.csv"},
            "mixtures.demo.instructions.mine: needs `columns`",
        ),
        (
            "mixtures.demo.instructions.mine",
            {"path": "a.csv", "colums": {}},
            "mixtures.demo.instructions.mine.colums is not a known key",
        ),
        (
            "mixtures.demo.benchmarks",
            {"cidar": "all"},
            "mixtures.demo.benchmarks is 'cidar': it must be one of skills, arabicmmlu",
        ),
        ("format.near_duplicates", 0.3, "format.near_duplicates is 0.3"),
        ("format.leaks", "keep", "format.leaks is 'keep': input should be 'drop' or 'flag'"),
    ],
)
def test_a_bad_value_is_named(tmp_path, key, value, named):
    with pytest.raises(Problem) as raised:
        reader.read(changed(tmp_path, {key: value}))
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


NOT_FINITE, HUGE = (math.inf, -math.inf, math.nan), 1e9


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("sft.epochs", (*NOT_FINITE, HUGE, 1e-9)),
        ("sft.warmup", (*NOT_FINITE, 0.9999)),
        ("model_defaults.sft.learning_rate", (*NOT_FINITE, 10.0, 0.0)),
        ("model_defaults.sft.accumulation", (10**9,)),
        ("model_defaults.preference.batch_size", (10**9,)),
        ("model_defaults.sft.lora.r", (10**9,)),
        ("method_defaults.epochs", (*NOT_FINITE, HUGE)),
        ("methods.dpo.beta", (*NOT_FINITE, HUGE)),
        ("methods.simpo.simpo_gamma", (math.inf, HUGE)),
        ("methods.rpo.sft_weight", (math.nan, HUGE)),
        ("refinement.beta_factor", (math.inf, HUGE)),
        ("prompt.max_length", (10**9,)),
        ("training.max_grad_norm", NOT_FINITE),
        ("training.weight_decay", (math.nan, HUGE)),
        ("hardware.vram_gb", (*NOT_FINITE, HUGE)),
        ("evaluate.max_new_tokens", (10**9,)),
        ("evaluate.require.skills", (*NOT_FINITE, 1.5, -0.1)),
        ("evaluate.require.validation_loss", NOT_FINITE),
        ("sample.temperature", (math.inf, 0.0)),
        ("sample.margin", NOT_FINITE),
        ("format.min_arabic", NOT_FINITE),
        ("models.nano.sft.lora.targets", ([], ["lm_head"], ["q_proj", "w_qs"], ["embed_tokens"])),
    ],
)
def test_a_value_that_no_run_can_want_is_one_line(tmp_path, key, values):
    for value in values:
        with pytest.raises(Problem) as raised:
            reader.read(changed(tmp_path, {key: value}))
        assert key in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["preference", "stop_rate", "longer_wins", "skills_f1"])
def test_a_benchmark_is_not_called_like_a_measure(tmp_path, name):
    own = {"path": "data/own/a.jsonl", "columns": {"question": "q", "answer": "a"}}
    with pytest.raises(Problem, match=f"benchmarks.{name}: {name} is what a measure of"):
        reader.read(changed(tmp_path, {f"mixtures.demo.benchmarks.{name}": own}))


def test_a_method_that_compares_rows_needs_a_batch(tmp_path):
    path = changed(tmp_path, {"method": "dno", "models.nano.preference.batch_size": 2})
    with pytest.raises(Problem, match=r"models.nano.preference.batch_size is 2: dno .* needs at least 4"):
        reader.read(path)


OWN = {"path": "data/own/a.jsonl", "columns": {"prompt": "p", "completion": "c"}}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "qwen3-1_7b"}, "mixtures.demo.instructions.skills is built-in toy data, and model is"),
        ({"mixtures.demo.instructions.own": OWN}, "toy data, beside mixtures.demo.instructions.own: choose"),
        (
            {"mixtures.demo.instructions": {"own": OWN}},
            "mixtures.demo.preferences.skills is built-in toy data",
        ),
        ({"mixtures.demo.benchmarks.acva": "all"}, "toy data, beside mixtures.demo.benchmarks.acva"),
        (
            {"model": "qwen3-1_7b", "data": "chatbot", "mixtures.chatbot.continued": {"skills": 9}},
            "continued",
        ),
    ],
)
def test_toy_data_in_a_real_run_must_be_asked_for(tmp_path, changes, named):
    with pytest.raises(Problem) as raised:
        reader.read(changed(tmp_path, changes))
    assert named in str(raised.value)
    assert "allow_builtin: true" in str(raised.value)
    assert reader.read(changed(tmp_path, changes | {"allow_builtin": True}))


def test_a_model_says_only_what_differs_from_the_defaults(tmp_path):
    path = changed(
        tmp_path,
        {
            "model_defaults.sft.lora.r": 8,
            "models.small": {
                "weights": {"path": "models/small"},
                "sft": {"lora": {"alpha": 1}},
                "preference": {},
            },
            "models.whole": {
                "weights": {"path": "models/whole", "dtype": "float32"},
                "sft": {"lora": None},
                "preference": {},
            },
            "method_defaults.epochs": 3,
        },
    )
    params = reader.read(path)
    small, whole, nano = (params.models[name] for name in ("small", "whole", "nano"))
    assert (small.sft.lora.r, small.sft.lora.alpha, small.weights.dtype) == (8, 1, "bfloat16")
    assert (whole.sft.lora, whole.weights.dtype, whole.sft.batch_size) == (None, "float32", 1)
    assert nano.sft.lora.r == 32
    assert params.methods["cpo"].learning_rate_factor == 20
    assert {method.epochs for method in params.methods.values()} == {3}


def test_a_dataset_of_the_hub_is_read_by_the_adapter_of_its_name():
    cidar = reader.read(ROOT / "params.yaml").datasets.instructions["cidar"]
    assert (cidar.repo, cidar.revision, cidar.adapter) == ("arbml/CIDAR", "main", "cidar")
    weights = reader.read(ROOT / "params.yaml").models["qwen3-4b"].weights
    assert (weights.repo, weights.revision) == ("Qwen/Qwen3-4B-Base", "main")


def test_broken_yaml_is_one_line(tmp_path):
    (tmp_path / "params.yaml").write_text("model: [nano\n", encoding="utf-8")
    with pytest.raises(Problem, match="not valid YAML"):
        reader.read(tmp_path / "params.yaml")


def test_every_model_and_method_is_accepted(tmp_path):
    for model in GOOD["models"]:
        assert reader.read(changed(tmp_path, {"model": model, "data": "cidar"})).chosen_model.weights
    for method in set(GOOD["methods"]) - {"continued"}:
        assert reader.read(changed(tmp_path, {"method": method})).method == method


def test_a_stage_ends_in_one_line_without_a_traceback(tmp_path):
    path = changed(tmp_path, {"method": "ppo"})
    (path.parent / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    result = subprocess.run(
        [sys.executable, "-m", "stages.sft"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert (
        result.stderr == "error: params.yaml: method is 'ppo': it must be one of " + ", ".join(METHODS) + "\n"
    )


def test_reading_what_dvc_yaml_does_not_declare_fails():
    whole = reader.read(ROOT / "params.yaml")
    view = stage.only(whole, ["model", "models.nano.sft", "prompt.template"])
    assert view.chosen_model.sft.learning_rate == whole.models["nano"].sft.learning_rate
    assert view.prompt.template == whole.prompt.template
    for read in (lambda: view.seed, lambda: view.prompt.max_length, lambda: view.chosen_model.weights):
        with pytest.raises(Problem, match=r"dvc.yaml declares no parameter"):
            read()
    assert list(view.models) == ["nano"]


def test_an_edit_while_a_stage_runs_is_noticed(tmp_path, monkeypatch, capsys):
    path = changed(tmp_path, {"seed": 7})
    for name in ("dvc.yaml", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="seed changed while stage sft was running"), stage.stage("sft"):
        path.write_text(path.read_text(encoding="utf-8").replace("seed: 7", "seed: 8"), encoding="utf-8")
    with stage.stage("sft"):
        path.write_text(
            path.read_text(encoding="utf-8").replace("tashkeel: keep", "tashkeel: strip"), encoding="utf-8"
        )
