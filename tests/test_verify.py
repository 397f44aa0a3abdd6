"""What tools.verify holds against a commit, and what it leaves out; stale passes in the table of scores."""

import hashlib
import json
import subprocess

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT
from tools import scores, verify

PIPELINE = {
    "stages": {
        "fetch": {"foreach": {"own": {}}, "do": {"cmd": "x"}},
        "format": {"foreach": ["own", "sampled-${sample.refine}"], "do": {"cmd": "x"}},
        "sft": {"cmd": "x"},
        "refine": {"foreach": "${refine}", "do": {"cmd": "x"}},
    }
}


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def commit(tmp_path, monkeypatch):
    """A function that commits what a pipeline recorded of a folder with an Arabic name."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    folder = tmp_path / "data/بيانات"
    folder.mkdir(parents=True)
    (folder / "أسئلة.jsonl").write_text("{}\n", encoding="utf-8")
    listed = [{"md5": md5(b"{}\n"), "relpath": "أسئلة.jsonl"}]
    whole = md5(json.dumps(listed, sort_keys=True).encode()) + ".dir"

    def made(refine: list[str], recorded: str = whole) -> None:
        stage = {"deps": [{"path": "data/بيانات", "md5": recorded}]}
        stale = {"deps": [{"path": "data/بيانات", "md5": "0" * 32 + ".dir"}]}
        lock = {
            "stages": {"fetch@own": stage, "format@sampled-sft": stage, "sft": stage, "refine@ipo": stale}
        }
        parts = (
            ("params.yaml", {"refine": refine, "sample": {"refine": "sft"}}),
            ("dvc.yaml", PIPELINE),
            ("dvc.lock", lock),
        )
        for name, value in parts:
            with (tmp_path / name).open("w", encoding="utf-8") as file:
                YAML().dump(value, file)
        subprocess.run(["git", "add", "-A"], check=True)
        author = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run(["git", *author, "commit", "-qm", "x"], check=True)

    return made


def test_files_with_arabic_names_are_checked(commit):
    commit([], recorded="1" * 32 + ".dir")
    with pytest.raises(SystemExit, match=r"3 of \d+ recorded values"):
        verify.main("HEAD")


def test_what_a_pipeline_no_longer_has_is_left_out_and_named(commit, capsys):
    commit([])
    verify.main("HEAD")
    said = capsys.readouterr().out
    assert said.startswith("left out, as HEAD has no such stages any more: refine@ipo\nHEAD: ")
    commit(["ipo"])
    with pytest.raises(SystemExit):
        verify.main("HEAD")


def test_scores_name_a_method_and_have_no_column_for_a_stale_pass(tmp_path, monkeypatch, capsys):
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(params, encoding="utf-8")
    (tmp_path / "metrics/tables").mkdir(parents=True)
    measures = [{"measure": "chrf", "value": 1.0}]
    for name, called in {"dpo": "kto", "refine-ipo": "refine-ipo"}.items():
        table = json.dumps({"called": [{"name": called}], "scores": [], "slices": [], "measures": measures})
        for path in (f"metrics/{name}.json", f"metrics/tables/{name}.json"):
            (tmp_path / path).write_text(table, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    scores.main([])
    said = capsys.readouterr().out
    assert said.splitlines()[0].split() == ["kto"]
    assert "note: metrics/refine-ipo.json is of a pass that `refine` names no more: left out" in said
    (tmp_path / "params.yaml").write_text(params.replace("refine: []", "refine: [ipo]"), encoding="utf-8")
    scores.main([])
    assert capsys.readouterr().out.splitlines()[0].split() == ["kto", "refine-ipo"]
