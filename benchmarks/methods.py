"""Every preference method beside the SFT policy it starts from, over several seeds, as a Markdown table.

    python -m benchmarks.methods [--seeds 1 2 3] [--methods dpo kto] [--split validation] [-S key=value …]

Works in a temporary clone of HEAD with `dvc exp run`, so it measures what is committed and leaves this
checkout alone. Content (exact match) and form (full sentence) stand side by side: each can be bought with the
other.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from stages.settings.errors import one_line_errors
from stages.settings.files import read_json
from stages.settings.methods import METHODS

PREFERENCE = [name for name, method in METHODS.items() if method.trainer != "sft"]
COLUMNS = {
    "exact match": "skills",
    "full sentence": "skills_sentence",
    "right full sentence": "skills_right_sentence",
    "multiple choice": "skills_choice",
    "worked examples": "skills_worked_examples",
    "pair accuracy": "preference",
    "near misses": "preference: skills/near_miss",
    "margin": "preference_margin",
    "stops": "stop_rate",
}


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", str(Path.cwd()), str(clone)], check=True)
        found: dict[str, list[dict]] = {}
        for seed in arguments.seeds:
            for method in arguments.methods:
                run(
                    clone,
                    [f"seed={seed}", f"method={method}", f"evaluate.split={arguments.split}", *arguments.set],
                )
                found.setdefault(method, []).append(metrics(clone, "dpo"))
                print(f"seed {seed}, {method}: {summary(found[method][-1])}", file=sys.stderr, flush=True)
            for checkpoint in ("base", "sft"):
                found.setdefault(checkpoint, []).append(metrics(clone, checkpoint))
    order = ["base", "sft", *arguments.methods]
    print(
        table(
            {name: found[name] for name in order},
            f"{arguments.split} split, seeds {', '.join(map(str, arguments.seeds))}",
        )
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", default=PREFERENCE, choices=PREFERENCE)
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument(
        "-S", dest="set", action="append", default=[], metavar="key=value", help="as in dvc exp run"
    )
    return parser.parse_args()


def run(clone: Path, overrides: list[str]) -> None:
    command = ["dvc", "exp", "run", "-q", *(part for override in overrides for part in ("-S", override))]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"error: {' '.join(command)}\n{result.stdout}{result.stderr}")


def metrics(clone: Path, checkpoint: str) -> dict[str, float]:
    tables = read_json(clone / f"metrics/tables/{checkpoint}.json")
    found = {row["measure"]: row["value"] for row in tables["measures"]} | {
        f"{row['benchmark']}: {row['name']}": row["value"] for row in tables["slices"]
    }
    return {title: found[key] for title, key in COLUMNS.items()}


def summary(values: dict[str, float]) -> str:
    return ", ".join(f"{title} {value:.3f}" for title, value in values.items())


def table(found: dict[str, list[dict]], caption: str) -> str:
    lines = [f"| {caption} | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, runs in found.items():
        cells = [cell([run[title] for run in runs]) for title in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(values: list[float]) -> str:
    """Mean over seeds and its standard error."""
    error = f" ± {stdev(values) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{error}"


if __name__ == "__main__":
    with one_line_errors():
        main()
