"""A base model that is not what it seems: replaced, with a tokenizer other than its file says, with capped
logits, without its sizes or some of its weights, with code of its own.
"""

import json
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from stages import base
from stages.settings import manifest, memory
from stages.settings.errors import Problem
from stages.settings.files import read_json, sha256, write_json
from stages.settings.reader import read
from tests.conftest import ROOT


@pytest.fixture
def local(tmp_path, monkeypatch) -> Path:
    """A folder with a local base, and models/base.json that names it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    folder = tmp_path / "models/local"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "models/nano" / name, folder)
    files = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in folder.glob("*")}
    write_json(manifest.MANIFEST, {"model": "local", "path": "models/local", "files": files})
    return folder


def test_a_base_that_was_replaced_by_one_of_the_same_size_is_noticed(local, monkeypatch):
    assert manifest.base_folder() == Path("models/local")
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "sha256", lambda path: pytest.fail("hashed again"))
        manifest.base_folder()
    text = (local / "config.json").read_text(encoding="utf-8")
    time.sleep(0.01)  # a file system's time has steps
    (local / "config.json").write_text(text.replace("0.02", "0.03"), encoding="utf-8")
    with pytest.raises(
        Problem, match=r"names config\.json by its hash, and models/local has another file now"
    ):
        manifest.base_folder()
    (local / "config.json").write_text(text, encoding="utf-8")
    assert manifest.base_folder() == Path("models/local")


def test_a_tokenizer_that_transformers_reads_otherwise_is_refused(local):
    prompt = read(ROOT / "params.yaml").prompt
    whole = json.loads((local / "tokenizer.json").read_text(encoding="utf-8"))
    whole["normalizer"] = {"type": "Lowercase"}  # of which Qwen's class of tokenizers knows nothing
    (local / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    config = read_json(local / "tokenizer_config.json") | {"tokenizer_class": "Qwen2Tokenizer"}
    write_json(local / "tokenizer_config.json", config)
    assert Tokenizer.from_file(str(local / "tokenizer.json")).encode("ABC").ids
    with pytest.raises(Problem, match="transformers makes other tokens of a text than its tokenizer"):
        base.describe("models.x.weights", local, prompt)


def test_capped_logits_are_refused(local):
    config = {"model_type": "gemma3_text", "final_logit_softcapping": 30.0}
    write_json(local / "config.json", config)
    with pytest.raises(Problem, match=r"caps logits \(final_logit_softcapping: 30.0\)"):
        base.check("models.x.weights", local, ["config.json", "tokenizer.json", "model.safetensors"])


@pytest.fixture
def nano(local) -> Path:
    """A whole copy of nano."""
    shutil.copytree(ROOT / "models/nano", local, dirs_exist_ok=True)
    return local


def refused(folder: Path) -> str:
    with pytest.raises(Problem) as problem:
        base.check("models.x.weights", folder, [path.name for path in folder.glob("*")])
    return str(problem.value)


WRONG = [(key, value) for key in (*memory.SIZES, "head_dim") for value in (None, "128", 0, 1.5, 96)]
WRONG.remove(("head_dim", None))  # which may be left out


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_size_that_is_missing_or_none_is_one_line(nano, key, value):
    """In base; and no other stage, which may plan the memory before it, ends in a traceback."""
    config = read_json(nano / "config.json")
    config[key] = value
    write_json(nano / "config.json", config)
    said = refused(nano)
    assert said.startswith("models.x.weights: ")
    weights = read(ROOT / "params.yaml").models["nano"].weights.model_copy(update={"path": str(nano)})
    if value == 96:
        assert "by config.json model." in said or "can make no model" in said
    else:
        assert f"config.json has {key}: {value!r}" in said
        assert f"config.json has {key}" in memory.unplanned(weights)


def test_weights_of_another_model_or_not_whole_are_refused(nano):
    names = [path.name for path in nano.glob("*")]
    base.check("models.x.weights", nano, names)
    weights = load_file(nano / "model.safetensors")
    layer = "model.layers.1.mlp.down_proj.weight"
    save_file({name: value for name, value in weights.items() if name != layer}, nano / "model.safetensors")
    assert f"by config.json {layer} is" in refused(nano)
    assert "has none" in refused(nano)
    bare = {name.removeprefix("model."): value for name, value in weights.items()}
    save_file(bare, nano / "model.safetensors")  # of a model saved without its head
    base.check("models.x.weights", nano, names)
    (nano / "model.safetensors").write_bytes((nano / "model.safetensors").read_bytes()[:5000])
    assert "cannot be read" in refused(nano)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_settings_that_are_none_are_refused(nano, text):
    (nano / "config.json").write_text(text, encoding="utf-8")
    assert "its config.json is not JSON with settings" in refused(nano)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_that_asks_to_run_code_is_refused(nano, name):
    write_json(nano / name, read_json(nano / name) | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}})
    assert f"its {name} asks to run code of its own (auto_map)" in refused(nano)
