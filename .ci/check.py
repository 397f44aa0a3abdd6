"""What must hold after `dvc repro` on the default: the claims that the README makes of every machine."""

import json
import math
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML


def load(name: str) -> dict:
    return json.loads(Path(f"metrics/{name}.json").read_text(encoding="utf-8"))


def main() -> None:
    base, sft, dpo = (load(f"tables/{name}")["scores"][0] for name in ("base", "sft", "dpo"))  # of skills
    gain, error = sft["value"] - base["value"], math.hypot(sft["stderr"], base["stderr"])
    check(
        gain > 2 * error,
        f"sft answers better than base by more than two standard errors: {gain:.3f} > 2 x {error:.3f}",
    )
    check(sft["value"] > sft["chance"], f"sft is above guessing: {sft['value']:.3f} > {sft['chance']:.3f}")

    beta = YAML(typ="safe").load(Path("params.yaml").read_text(encoding="utf-8"))["methods"]["dpo"]["beta"]
    train = load("train_dpo")
    check(
        abs(train["start_loss"] - math.log(2)) < 1e-3,
        f"dpo starts at ln 2, where policy and reference are one: {train['start_loss']}",
    )
    check(
        train["final_margin"] > 0.1 * beta,
        f"dpo raises its own training margin: {train['final_margin']} > {0.1 * beta}",
    )
    print(f"dpo exact match, not a gate: {dpo['value']:.3f} (sft {sft['value']:.3f})")

    again = subprocess.run([Path(sys.executable).parent / "dvc", "repro"], capture_output=True, text=True)
    check(
        "up to date" in again.stdout and "Running stage" not in again.stdout,
        "a second dvc repro runs nothing",
    )
    changed = subprocess.run(
        ["git", "diff", "--stat", "--", "metrics/[bsd]*.json", "metrics/tables"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    print(f"against the committed metrics: {changed or 'byte-equal'}")


def check(holds: bool, claim: str) -> None:
    print(f"{'ok  ' if holds else 'FAIL'} {claim}")
    if not holds:
        sys.exit(1)


if __name__ == "__main__":
    main()
