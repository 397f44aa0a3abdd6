"""The benchmark of training, end to end on a tiny model."""

import json
import math
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_all_variants_train_on_the_same_tokens_and_learn(tmp_path):
    command = f"-m benchmarks.train --size tiny --rows 24 --pairs 16 --threads 1 --json {tmp_path}/found.json"
    subprocess.run([sys.executable, *command.split()], cwd=ROOT, check=True)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    for stage in ("sft", "preference"):
        assert len({values["tokens"] for values in found[stage].values()}) == 1
        assert all(0 <= values["padding"] < 1 for values in found[stage].values())
    for values in found["sft"].values():
        assert math.isfinite(values["loss_after"])
        assert values["loss_after"] < values["loss_before"]
    for values in found["preference"].values():
        assert values["start_loss"] == pytest.approx(math.log(2), rel=1e-3)
        assert values["margin"] > 0
    asked = {variant: values["reference_answers"] for variant, values in found["preference"].items()}
    assert (asked["trl"], asked["ours-second"]) == (32, 0)
    assert asked["ours-first"] > 32  # those of pairs held out, too
