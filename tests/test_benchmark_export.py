"""The benchmark of exports, end to end on a tiny model."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_both_ways_merge_the_same_weights(tmp_path, quantization):
    command = f"-m benchmarks.export --size tiny --quantization {quantization} --json {tmp_path}/found.json"
    subprocess.run([sys.executable, *command.split()], cwd=ROOT, check=True)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["largest_difference"] < 1e-3  # peft rounds twice
    assert all(
        found[variant]["seconds"] > 0 and found[variant]["peak_gb"] > 0.1
        for variant in ("peft", "ours", "gguf q4_k_m")
    )
