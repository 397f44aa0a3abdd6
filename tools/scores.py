"""The scores of every evaluated checkpoint in one table.

python -m tools.scores [--parts]        --parts: by subject, group, level and country, too
"""

import sys
from pathlib import Path

from stages.settings.files import read_json

METRICS = Path("metrics")


def main(parts: bool) -> None:
    names = ["base", "sft", "dpo", *sorted(path.stem for path in METRICS.glob("refine-*.json"))]
    found = {name: table(name) for name in names if (METRICS / f"tables/{name}.json").exists()}
    if not found:
        sys.exit("error: no metrics/tables/<checkpoint>.json yet: run `dvc repro`")
    titles = list(dict.fromkeys(title for cells in found.values() for title in cells))
    shown = [title for title in titles if parts or not title.startswith(" ")]
    width = max(map(len, shown))
    print(f"{'':{width}}" + "".join(f"{name:>18}" for name in found))
    for title in shown:
        print(f"{title:{width}}" + "".join(f"{cells.get(title, ''):>18}" for cells in found.values()))
    print("± is one standard error; [ ] what blind guessing reaches")


def table(name: str) -> dict[str, str]:
    """A checkpoint's numbers by title; those of a benchmark's parts are indented below it."""
    cells = {}
    tables = read_json(METRICS / f"tables/{name}.json")
    benchmarks = [entry["benchmark"] for entry in tables["scores"]]
    entries = sorted(
        tables["scores"] + tables["slices"], key=lambda entry: benchmarks.index(entry["benchmark"])
    )
    for entry in entries:
        chance = f" [{entry['chance']:.2f}]" if entry.get("chance") else ""
        whole = entry["slice"] == "all"
        title = (
            f"{entry['benchmark']}{chance}"
            if whole
            else f"  {entry['benchmark']}, {entry['slice']}: {entry['name']}{chance}"
        )
        cells[title] = f"{entry['value']:.3f}" + (
            "" if entry["stderr"] is None else f" ± {entry['stderr']:.3f}"
        )
    others = {row["measure"]: row["value"] for row in tables["measures"]}
    return cells | {title: f"{value:.3f}" for title, value in others.items() if title not in benchmarks}


if __name__ == "__main__":
    main(parts="--parts" in sys.argv[1:])
