"""The benchmark of GPUs, end to end on a CPU, and what of its kernels a CPU can show."""

import json
import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import gpu
from stages.settings.errors import Problem
from tests.conftest import ROOT


@pytest.mark.slow
def test_everything_is_measured_and_a_second_run_has_nothing_left(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--json", str(tmp_path / "found.json")]
    subprocess.run(command, cwd=ROOT, check=True)
    results = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["results"]
    assert list(results) == [one.name for one in gpu.measurements(tiny=True)]
    assert not [name for name, value in results.items() if "error" in value]
    for name in ("peak/qwen3-1_7b", "peak/qwen2_5-7b", "peak/markers"):
        assert results[name]["sft"]["planned_gb"] > 0
        assert results[name]["dpo"]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert all(value["tokens_per_second"] > 0 for name, value in results.items() if "speed" in name)
    assert results["packed/sdpa"]["largest_nats"] < 1e-4 < results["packed/sdpa"]["largest_nats_if_seen"]
    assert results["resume"] | {"took_s": 0} == {
        "steps": 12, "went_on": True, "largest_loss_difference": 0, "same_bytes": True, "took_s": 0,
    }  # fmt: skip
    again = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert again.stdout == ""
    printed = subprocess.run(
        [*command, "--table"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert "| qwen3-1_7b | dpo |" in printed
    assert "| resume | steps 12, went_on True" in printed


def by_document(query, key, value, ends, longest, scale):
    """What torch's varlen attention promises, on a CPU; [tokens, heads, width]."""
    found = []
    for start, end in pairwise(ends):
        states = (states[start:end].transpose(0, 1)[None] for states in (query, key, value))
        own = scaled_dot_product_attention(*states, is_causal=True, scale=scale, enable_gqa=True)
        assert end - start <= longest
        found.append(own[0].transpose(0, 1))
    return torch.cat(found)


def test_varlen_attention_gets_the_documents_of_a_pack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "unavailable", lambda *_, **__: "")
    monkeypatch.setattr(gpu, "attend_varlen", by_document)
    found = gpu.packed("varlen", tiny=True)
    assert found["largest_nats"] < 1e-4 < found["largest_nats_if_seen"]


def test_a_run_takes_up_what_is_missing_and_time_is_kept(tmp_path, monkeypatch, capsys):
    done = []

    def fails():
        raise RuntimeError("no\nkernel")

    found = [
        gpu.Measurement("one", 1, lambda: done.append("one") or {"value": 1.0}),
        gpu.Measurement("two", 1, fails),
        gpu.Measurement("three", 1000, lambda: done.append("three") or {}),
    ]
    monkeypatch.setattr(gpu, "measurements", lambda tiny: found)
    asked = gpu.argparse.Namespace(minutes=1, only=[], tiny=False, vram=12.0)
    path = tmp_path / "found.json"
    gpu.measure(asked, gpu.Results(path, {"device": "x"}))
    results = json.loads(path.read_text())["results"]
    assert results["one"]["value"] == 1.0
    assert results["two"]["error"] == "RuntimeError: no kernel"
    assert "no time left for three" in capsys.readouterr().out
    gpu.measure(asked, gpu.Results(path, {"device": "x"}))
    assert done == ["one"]
    asked.only = ["one"]
    gpu.measure(asked, gpu.Results(path, {"device": "x"}))
    assert done == ["one", "one"]
    with pytest.raises(Problem, match="results of another machine"):
        gpu.Results(path, {"device": "y"})
