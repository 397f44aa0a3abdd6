"""A base model that is not what it seems: replaced, with a tokenizer other than its file says, with capped
logits.
"""

import json
import shutil
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from stages import base
from stages.settings import manifest
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
