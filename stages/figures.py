"""What the plots show: the tables of all checkpoints, side by side → metrics/plots/<figure>.tsv.

`dvc plots show` (templates in .dvc/plots) compares them. The stage depends on the folder of tables, which git
holds: a clone has it whole before anything is pulled.
"""

import csv
from collections import Counter
from pathlib import Path

from stages.evaluation.tables import TABLES
from stages.settings.errors import Problem, one_line_errors
from stages.settings.files import read_json, replace_folder
from stages.settings.stage import stage

PLOTS = Path("metrics/plots")
COLUMNS = {
    "scores": ["benchmark", "value", "ci_low", "ci_high", "n"],
    "slices": ["benchmark", "slice", "name", "value", "ci_low", "ci_high", "n"],
    "confusion": ["benchmark", "gold", "picked", "n", "share"],
    "reliability": ["benchmark", "bin", "confidence", "accuracy", "n", "ece"],
    "lengths": ["benchmark", "tokens", "n", "stopped", "stop_rate"],
    "health": ["measure", "value"],
}


def main() -> None:
    with stage("figures") as params:
        checkpoints = ["base", "sft", "dpo", *(f"refine-{item}" for item in params.refine)]
        tables = [read_json(path) for name in checkpoints if (path := TABLES / f"{name}.json").exists()]
        found = {own["called"][0]["name"]: own for own in tables}
        if not found:
            raise Problem(f"{TABLES} holds the tables of none of {checkpoints}: run `dvc repro`")
        with replace_folder(PLOTS) as folder:
            for figure, rows in side_by_side(found).items():
                write_tsv(folder / f"{figure}.tsv", ["checkpoint", *COLUMNS[figure]], rows)


def side_by_side(found: dict[str, dict[str, list[dict]]]) -> dict[str, list[dict]]:
    """The rows of every figure over all checkpoints, in the order given, which is the order that the plots
    keep.

    Slices stand by benchmark and kind, those of few names first, and in each the best of the last checkpoint
    first.
    """
    joined = {
        figure: [{"checkpoint": name, **row} for name, own in found.items() for row in own[figure]]
        for figure in COLUMNS
    }
    last = {_name(row): row["value"] for row in joined["slices"]}  # of a key that repeats, the last one stays
    sizes = Counter(name[:2] for name in last)
    joined["slices"].sort(
        key=lambda row: (
            sizes[_name(row)[:2]],
            row["benchmark"],
            row["slice"],
            -last[_name(row)],
            row["name"],
        )
    )
    return joined


def write_tsv(path: Path, columns: list[str], rows: list[dict]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({key: unmarked(value) for key, value in row.items()} for row in rows)


def unmarked(value: object) -> object:
    """A cell that ends no script: DVC writes what it plots into one, as it stands."""
    return value.replace("<", "‹").replace(">", "›") if isinstance(value, str) else value


def _name(row: dict) -> tuple[str, str, str]:
    return row["benchmark"], row["slice"], row["name"]


if __name__ == "__main__":
    with one_line_errors():
        main()
