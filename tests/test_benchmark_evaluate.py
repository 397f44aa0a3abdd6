"""The benchmark of scoring, end to end on a tiny model."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_both_ways_score_the_same_items_alike(tmp_path):
    command = (
        f"-m benchmarks.evaluate --size tiny --items 12 --tokens 512 --threads 1 --json {tmp_path}/found.json"
    )
    subprocess.run([sys.executable, *command.split()], cwd=ROOT, check=True)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    for kind in ("letters", "texts"):
        ways = [found[kind][way] for way in ("lm-eval", "ours")]
        assert [values["items"] for values in ways] == [12, 12]
        assert all(
            values["cpu_seconds"] > 0 and values["peak_memory_gb"] > values["scoring_memory_gb"] > 0
            for values in ways
        )
        assert found[kind]["agreement"]["same_choice"] == 1
        assert found[kind]["agreement"]["largest_difference"] < 1e-3
    theirs, ours = (found["texts"][way]["tokens_per_item"] for way in ("lm-eval", "ours"))
    assert (
        theirs > 4 * found["texts"]["ours"]["prompt_tokens"] > 2 * ours
    )  # prompts four times there, once here
