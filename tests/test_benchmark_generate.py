"""The benchmark of answers, end to end on a tiny model."""

import json
import sys

from benchmarks import generate


def test_both_ways_give_the_same_tokens(tmp_path, monkeypatch, capsys):
    command = f"generate --size tiny --rows 12 --limit 16 --json {tmp_path}/found.json"
    monkeypatch.setattr(sys, "argv", command.split())
    generate.main()
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["equal"] == 12
    assert found["ours"] > 0 and found["transformers"] > 0
    assert "12 of 12 answers are the same tokens" in capsys.readouterr().out
