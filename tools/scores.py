"""The metrics of every evaluated checkpoint in one table.

python -m tools.scores [--families]
"""

import json
import sys
from pathlib import Path

ROWS = {
    "exact match": "exact_match",
    "full sentence": "sentence_rate",
    "right full sentence": "right_sentence",
    "exact match, worked examples": "few_shot_exact_match",
    "multiple choice": "multiple_choice",
    "preference accuracy": "preference.accuracy",
    "preference margin (nats)": "preference.margin",
    "validation loss (nats/token)": "validation_loss",
    "stops by itself": "health.stop_rate",
    "Arabic script": "health.arabic_share",
    "repetition": "health.repetition",
}


def main(families: bool) -> None:
    names = ["base", "sft", "dpo", *sorted(path.stem for path in Path("metrics").glob("refine-*.json"))]
    found = {name: json.loads(path.read_text(encoding="utf-8")) for name in names if (path := Path(f"metrics/{name}.json")).exists()}
    if not found:
        sys.exit("error: no metrics/<checkpoint>.json yet: run `dvc repro`")
    rows = ROWS | ({f"  {name}": f"families.{name}" for name in next(iter(found.values()))["families"]} if families else {})
    width = max(map(len, rows))
    print(f"{'':{width}}" + "".join(f"{name:>18}" for name in found))
    for title, key in rows.items():
        print(f"{title:{width}}" + "".join(f"{cell(metrics, key):>18}" for metrics in found.values()))
    n, chance = (next(iter(found.values()))["exact_match"][key] for key in ("n", "chance"))
    print(f"{n} held-out questions; ± is one standard error; exact match by guessing {chance:.3f}")


def lookup(metrics: dict, key: str) -> dict | float:
    """The value of a dotted key; KeyError where it does not exist."""
    value = metrics
    for part in key.split("."):
        value = value[part]
    return value


def cell(metrics: dict, key: str) -> str:
    value = lookup(metrics, key)
    return f"{value['value']:.3f} ± {value['stderr']:.3f}" if isinstance(value, dict) else f"{value:.3f}"


if __name__ == "__main__":
    main(families="--families" in sys.argv[1:])
