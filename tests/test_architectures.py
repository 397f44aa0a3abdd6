"""The architectures that `base` lets in, each as a random tiny model: packs, and the whole way from data to
an export. How they are scored: test_scoring.py.
"""

import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages import base
from stages.settings.errors import Problem
from tests.conftest import ROOT, Workspace
from tests.test_scoring import KINDS, model

SMALL = {
    "weights": {"path": "models/tiny", "dtype": "float32"},
    "sft": {"accumulation": 1, "gradient_checkpointing": False},
    "preference": {"batch_size": 8, "accumulation": 1, "gradient_checkpointing": False},
}


def test_every_architecture_that_is_let_in_is_tested():
    assert set(base.TESTED) == set(KINDS)


@pytest.mark.parametrize("kind", ["qwen3_5", "mixtral", None])
def test_another_is_refused_in_one_line(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    names = ["config.json", "tokenizer.json", "model.safetensors"]
    with pytest.raises(
        Problem, match=(f"its architecture is {kind}: take a model of one of qwen2, qwen3, llama")
    ):
        base.check("models.x.weights", tmp_path, names)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [4, 64])
def test_packed_documents_do_not_see_each_other(kind, window):
    own = model(kind, **({"sliding_window": window, "num_hidden_layers": 7} if kind == "gemma3_text" else {}))
    first, second = torch.arange(5, 30), torch.arange(40, 52)
    places = torch.cat([torch.arange(len(first)), torch.arange(len(second))])
    with torch.inference_mode():
        packed = own(torch.cat([first, second])[None], position_ids=places[None], use_cache=False).logits[0]
        apart = [own(one[None], use_cache=False).logits[0] for one in (first, second)]
    torch.testing.assert_close(packed, torch.cat(apart), atol=2e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_way(kind, tmp_path):
    project = Workspace(tmp_path)
    model(kind, max_position_embeddings=1024).save_pretrained(tmp_path / "models/tiny")
    AutoTokenizer.from_pretrained(ROOT / "models/nano").save_pretrained(tmp_path / "models/tiny")
    project.set({"models.tiny": SMALL, "model": "tiny", "allow_builtin": True})
    for command in (
        ["check", "params"], ["fetch", "instructions"], ["fetch", "preferences"], ["fetch", "benchmarks"],
        ["base"],
        ["format", "instructions"], ["format", "preferences"], ["sft"], ["dpo"], ["evaluate", "dpo"],
    ):  # fmt: skip
        project.run(sys.executable, "-m", f"stages.{command[0]}", *command[1:])
    facts = json.loads((tmp_path / "metrics/train_dpo.json").read_text())
    assert facts["start_loss"] == pytest.approx(0.6931, abs=1e-3)
    said = project.run(sys.executable, "-m", "tools.export", "models/dpo").stdout
    assert "0.000000 nats per token between merged model and checkpoint" in said
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "exports/dpo").config.model_type == kind
