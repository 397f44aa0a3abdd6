"""Averaged checkpoints: the average of what each adds to the base, a checkpoint like any other."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from stages.model import modeling
from stages.settings.errors import Problem
from stages.settings.files import read_json, write_json
from stages.settings.reader import read
from tests.conftest import Workspace
from tools.chat.models import Models
from tools.export import card
from tools.merge import average

QUESTION = [{"role": "user", "content": "ما جمع معلم مثابر؟"}]


def base() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained("models/nano", dtype=torch.float32)


@pytest.fixture(scope="module")
def trained(workspace, tmp_path_factory) -> Workspace:
    return workspace.copy(tmp_path_factory.mktemp("merge") / "project")


@pytest.fixture
def project(trained, monkeypatch):
    """A project with sft alone, where each test adds its own."""
    monkeypatch.chdir(trained.path)
    yield trained
    for folder in Path("models").iterdir():
        if folder.name == "dpo" or folder.name.startswith(("refine-", "merged-")):
            shutil.rmtree(folder)


def adapter(name: str, seed: int, **settings) -> Path:
    """A random adapter in models/, with the provenance of sft."""
    torch.manual_seed(seed)
    folder = Path("models", name)
    shutil.copytree("models/sft", folder)
    model = get_peft_model(
        base(), LoraConfig(**({"r": 8, "lora_alpha": 16, "target_modules": "all-linear"} | settings))
    )
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.05)
        if "trainable_tokens" in key:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


def changes(folder: Path) -> dict[str, torch.Tensor]:
    """ΔW of every weight, by PEFT's own merging."""
    before = base().state_dict()
    loaded = PeftModel.from_pretrained(base(), folder)
    return {name: after - before[name] for name, after in loaded.merge_and_unload().state_dict().items()}


def merged(*names: str, weights: tuple[float, ...] = (0.5, 0.5), method: str = "linear") -> Path:
    return average.merge(list(names), list(weights), method, "test", read())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], atol=2e-6) for name in one
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({"use_rslora": True}, {"lora_alpha": 3}),
        ({"r": 4, "target_modules": ["q_proj", "up_proj"]}, {"target_modules": ["up_proj", "o_proj"]}),
        ({"trainable_token_indices": {"embed_tokens": [3, 5]}},) * 2,
    ],
    ids=["lora", "rslora", "ranks and targets", "rows of tokens"],
)  # fmt: skip
def test_the_change_of_the_weights_is_the_average_of_the_changes(project, first, second):
    one, other = adapter("dpo", 1, **first), adapter("refine-ipo", 2, **second)
    weights = (0.3, 0.7)
    expected, another = changes(one), changes(other)
    wanted = {name: 0.3 * expected[name] + 0.7 * another[name] for name in expected}
    assert max(change.abs().max() for change in wanted.values()) > 0.01
    assert same(changes(merged("dpo", "models/refine-ipo", weights=weights)), wanted)


def test_slerp_goes_along_the_arc_of_each_layer(project):
    one, other = adapter("dpo", 1), adapter("refine-ipo", 2)
    first, second, found = changes(one), changes(other), changes(merged("dpo", "refine-ipo", method="slerp"))
    name = "model.layers.0.self_attn.q_proj.weight"
    a, b = first[name].double().flatten(), second[name].double().flatten()
    angle = torch.acos(a @ b / (a.norm() * b.norm()))
    wanted = (torch.sin(angle / 2) / torch.sin(angle) * (a + b)).float().reshape(found[name].shape)
    assert torch.allclose(found[name], wanted, atol=2e-6)
    assert not torch.allclose(found[name], (first[name] + second[name]) / 2, atol=1e-3)


@pytest.mark.parametrize(("weights", "end"), [((1, 0), "dpo"), ((0, 1), "refine-ipo")])
def test_the_ends_of_slerp_are_what_it_goes_between(project, weights, end):
    for seed, name in enumerate(("dpo", "refine-ipo")):
        adapter(name, seed)
    assert same(
        changes(merged("dpo", "refine-ipo", weights=weights, method="slerp")), changes(Path("models", end))
    )


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_a_checkpoint_averaged_with_itself_answers_as_it_does(project, method):
    folder = merged("sft", "sft", method=method)
    models = Models(read())
    assert models.names == ["base", "sft", "merged-test"]
    replies = {name: models.reply(name, QUESTION) for name in models.names}
    said = {name: "".join(reply) for name, reply in replies.items()}
    assert said["merged-test"] == said["sft"] != said["base"]
    modeling.load_checkpoint(read().chosen_model.weights, folder)
    assert read_json(folder / "provenance.json")["merged"]["parents"][0]["weights_sha256"] == (
        modeling.weights_sha256(Path("models/sft"))
    )


def test_whole_models_are_averaged_tensor_by_tensor(project):
    whole, tensors = {}, load_file("models/nano/model.safetensors")
    for factor, name in ((1, "dpo"), (3, "refine-ipo")):
        shutil.copytree("models/nano", Path("models", name))
        shutil.copy("models/sft/provenance.json", Path("models", name))
        whole[name] = {key: factor * value for key, value in tensors.items()}
        save_file(whole[name], Path("models", name, "model.safetensors"), metadata={"format": "pt"})
    found = load_file(merged("dpo", "refine-ipo") / "model.safetensors")
    assert same(found, {key: 2 * value for key, value in tensors.items()})
    shutil.rmtree("models/merged-test")
    with pytest.raises(Problem, match="slerp is of adapters"):
        merged("dpo", "refine-ipo", method="slerp")
    with pytest.raises(Problem, match="adapters and whole models cannot be averaged"):
        merged("sft", "dpo")


def test_whole_models_may_be_in_other_shards(project):
    for factor, name, size in ((2, "dpo", "1MB"), (3, "refine-ipo", "2MB")):
        model = base()
        for parameter in model.parameters():
            parameter.data *= factor
        shutil.copytree("models/sft", Path("models", name), ignore=shutil.ignore_patterns("adapter*"))
        model.save_pretrained(Path("models", name), max_shard_size=size)
    shards = [len(list(Path("models", name).glob("*.safetensors"))) for name in ("dpo", "refine-ipo")]
    assert shards[0] > shards[1] > 1
    found = AutoModelForCausalLM.from_pretrained(merged("dpo", "refine-ipo", weights=(0.25, 0.75)))
    wanted = base().state_dict()
    assert same(found.state_dict(), {key: 2.75 * value for key, value in wanted.items()})


def test_what_was_merged_can_be_merged(project):
    one, other = changes(adapter("dpo", 1)), changes(adapter("refine-ipo", 2))
    merged("dpo", "refine-ipo", method="slerp").rename("models/merged-first")
    first = changes(Path("models/merged-first"))
    found = changes(merged("merged-first", "dpo", weights=(0.5, 0.5)))
    assert same(found, {name: (first[name] + one[name]) / 2 for name in one})
    assert not same(found, {name: (other[name] + one[name]) / 2 for name in one})


def test_the_card_says_what_was_merged_and_what_trained_it(project):
    folder = adapter("dpo", 1)
    link = {"checkpoint": "models/sft", "weights_sha256": modeling.weights_sha256(Path("models/sft"))}
    own = read_json(folder / "provenance.json") | {"method": "kto", "chain": [link]}
    write_json(folder / "provenance.json", own)
    out = merged("sft", "kto", weights=(0.25, 0.75))
    text = card.card(out, {"merged": dict.fromkeys(("divergence", "same_answers", "prompts", "stopped",
                                                    "checkpoint_stopped"), 1)}, "")  # fmt: skip
    assert "an average of the weights (linear) of `sft` (0.25), `kto` (0.75)." in text
    assert "`sft`, step 1" in text and "`kto`, step 2" in text
    assert f"- kto: sha256 `{modeling.weights_sha256(folder)}`" in text
    assert "متوسط أوزان" in text and "Not measured" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"names": ["sft"], "weights": [1.0]}, "linear of 1 checkpoints: give 2 or more"),
        ({"names": ["sft"] * 3, "weights": [1 / 3] * 3, "method": "slerp"}, "slerp of 3 checkpoints: give 2"),
        ({"weights": [0.5]}, "--weights has 1 numbers for 2 checkpoints"),
        ({"weights": [0.5, 0.6]}, "--weights add up to 1.1: an average's add up to 1"),
        ({"weights": [float("nan"), 0.5]}, "--weights add up to nan"),
        ({"name": "../x"}, "--name '../x': letters, digits and _"),
        ({"names": ["sft", "none"]}, "none is no checkpoint: there is sft"),
    ],
)
def test_what_cannot_be_averaged_is_refused(project, arguments, said):
    asked = {"names": ["sft", "sft"], "weights": [0.5, 0.5], "method": "linear", "name": "test"} | arguments
    with pytest.raises(Problem) as problem:
        average.merge(**asked, params=read())
    assert said in str(problem.value)
    assert not list(Path("models").glob("*merged-*"))


@pytest.mark.parametrize(
    ("settings", "facts", "said"),
    [
        ({"use_dora": True}, {}, "models/dpo is weight-decomposed"),
        ({"target_modules": ["embed_tokens"]}, {}, "only adapters of linear layers"),
        ({"trainable_token_indices": {"embed_tokens": [3]}}, {}, "trained the rows of other tokens"),
        ({}, {"base": {"model": "other", "manifest_sha256": "0", "quantization": "nf4"}}, "other (0, nf4)"),
        ({}, {"template_sha256": "0"}, "template as it was then"),
    ],
)  # fmt: skip
def test_checkpoints_that_do_not_fit_together_are_refused(project, settings, facts, said):
    folder = adapter("dpo", 1, **settings)
    write_json(folder / "provenance.json", read_json(folder / "provenance.json") | facts)
    with pytest.raises(Problem) as problem:
        merged("sft", "dpo")
    assert said in str(problem.value)
    assert not list(Path("models").glob("*merged-*"))
