"""No file that is read can run code, and no token is kept: what the sources say, ours and those of the
libraries that read our files.
"""

import ast
import pickle
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

LISTED = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
)
FILES = LISTED.stdout.splitlines()
SOURCES = [
    name
    for name in FILES
    if name.endswith(".py") and not name.startswith("tests/") and (ROOT / name).is_file()
]
RUN_CODE = {
    "pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
}  # yaml: ruamel is what reads ours
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "torch.hub.load",
    "pd.read_pickle",
    "os.system",
    "os.popen",
}
ARGUMENTS = {"allow_pickle", "shell", "weights_only"}
IN_MODELS = {".json", ".safetensors"}
TOKENIZERS = {"merges.txt", "vocab.txt", "chat_template.jinja"}  # where a tokenizer has them


def calls(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Every call of a module: the name called, and its named arguments as they are written."""
    nodes = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    ]
    return [
        (ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords if one.arg})
        for node in nodes
    ]


@pytest.mark.parametrize("name", SOURCES)
def test_no_module_reads_what_could_run_code(name):
    path = ROOT / name
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imports |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {one.split(".")[0] for one in imports} & RUN_CODE
    for called, arguments in calls(path):
        assert called not in CALLS
        assert not set(arguments) & ARGUMENTS
        assert arguments.get("trust_remote_code", "False") == "False"
        assert arguments.get("typ", "'safe'") == "'safe'"
        if called == "AutoModelForCausalLM.from_pretrained" and name.startswith("stages/"):
            assert arguments["use_safetensors"] == "True"


@pytest.mark.parametrize("module", ["transformers.trainer", "accelerate.utils.fsdp_utils"])
def test_a_checkpoint_that_training_goes_on_from_is_read_as_data(module):
    """The trainer keeps optimizer, scheduler and random state as torch files, which are pickles: it must read
    nothing but tensors of them. Models and adapters are safetensors.
    """
    found = [
        arguments for called, arguments in calls(Path(find_spec(module).origin)) if called == "torch.load"
    ]
    assert found
    assert all(arguments.get("weights_only") == "True" for arguments in found)


def test_torch_refuses_a_pickle_that_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    torch.save({"state": Evil()}, tmp_path / "optimizer.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert not (tmp_path / "run").exists()


def test_a_model_folder_holds_weights_and_texts_alone():
    folders = [
        path.parent for path in ROOT.glob("models/*/provenance.json")
    ]  # nano, and what has been trained here
    assert folders
    for file in (file for folder in folders for file in folder.rglob("*")):
        assert file.suffix in IN_MODELS or file.name in TOKENIZERS, file


def test_no_token_stands_in_a_file_and_one_module_alone_reads_it():
    token = re.compile(
        rb"\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|-----BEGIN [A-Z ]*PRIVATE KEY"
    )
    texts = [
        ROOT / name
        for name in FILES
        if (ROOT / name).is_file() and not name.endswith((".safetensors", ".parquet", ".png"))
    ]
    assert not [path for path in texts if token.search(path.read_bytes())]
    readers = [
        name
        for name in SOURCES
        if re.search(r"[\"']HF_TOKEN[\"']", (ROOT / name).read_text(encoding="utf-8"))
    ]
    assert readers == ["stages/sources/hub.py"]
