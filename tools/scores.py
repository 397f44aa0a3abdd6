"""The scores of every evaluated checkpoint in one table.

python -m tools.scores [--parts]        --parts: by subject, group, level and country, too
python -m tools.scores --leaderboard    as the Open Arabic LLM Leaderboard (v2) adds them up, with what is
                                        missing
"""

import argparse
import sys
from pathlib import Path
from statistics import fmean

from stages.settings.errors import one_line_errors
from stages.settings.files import read_json
from stages.settings.reader import read

METRICS = Path("metrics")
LEADERBOARD = {  # its columns, and our names
    "AlGhafa": "alghafa", "ArabicMMLU": "arabicmmlu", "EXAMS": "arabic-exams", "MadinahQA": "madinahqa",
    "AraTrust": "aratrust", "ALRAGE": "alrage", "ArbMMLU-HT": "mmlu-ht",
}  # fmt: skip
# How it asks: each setting of a benchmark's protocol that another value makes another score.
ASKED = {"style": "oall", "shots": 0, "chat": False}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m tools.scores", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--parts", action="store_true", help="by subject, group, level and country, too")
    kind.add_argument("--leaderboard", action="store_true")
    asked = parser.parse_args(arguments)
    passes = [f"refine-{method}" for method in read().refine]
    stale = sorted({path.stem for path in METRICS.glob("refine-*.json")} - set(passes))
    merged = sorted(path.stem for path in METRICS.glob("merged-*.json"))
    names = ["base", "sft", "dpo", *passes, *merged]
    there = [read_json(path) for name in names if (path := METRICS / f"tables/{name}.json").exists()]
    tables = {own["called"][0]["name"]: own for own in there}
    if not tables:
        sys.exit("error: no metrics/tables/<checkpoint>.json yet: run `dvc repro`")
    if asked.leaderboard:
        print("\n".join(leaderboard(tables)))
        return
    found = {name: table(own) for name, own in tables.items()}
    titles = list(dict.fromkeys(title for cells in found.values() for title in cells))
    shown = [title for title in titles if asked.parts or not title.startswith(" ")]
    width = max(map(len, shown))
    print(f"{'':{width}}" + "".join(f"{name:>18}" for name in found))
    for title in shown:
        print(f"{title:{width}}" + "".join(f"{cells.get(title, ''):>18}" for cells in found.values()))
    print("± is one standard error; [ ] what blind guessing reaches")
    for name in stale:
        print(f"note: metrics/{name}.json is of a pass that `refine` names no more: left out")


# --- the leaderboard ----------------------------------------------------------------------------------------


def leaderboard(tables: dict[str, dict]) -> list[str]:
    """A line per checkpoint, in %, and what keeps each cell from being there. The average is of all seven."""
    rows, missing = {}, {}
    for name, own in tables.items():
        cells = {}
        for title, benchmark in LEADERBOARD.items():
            reason = unlike(own, benchmark)
            if reason:
                missing.setdefault(f"{title} ({benchmark}): {reason}", []).append(name)
            else:
                cells[title] = 100 * task_average(own, benchmark)
        rows[name] = cells
    width = max(map(len, [*rows, "checkpoint"]))
    titles = ["Average", *LEADERBOARD]
    lines = [f"{'checkpoint':{width}}" + "".join(f"{title:>12}" for title in titles)]
    for name, cells in rows.items():
        average = {"Average": fmean(cells.values())} if len(cells) == len(LEADERBOARD) else {}
        shown = average | cells
        lines.append(
            f"{name:{width}}"
            + "".join(f"{shown[title]:12.2f}" if title in shown else f"{'–':>12}" for title in titles)
        )
    lines += [f"- {reason}: {', '.join(names)}" for reason, names in missing.items()]
    lines.append(
        "%, the mean over a benchmark's tasks; faulty items, which the leaderboard counts, are left out"
    )
    return lines


def unlike(tables: dict, benchmark: str) -> str:
    """Why a benchmark's score is not the leaderboard's; "" where it is."""
    if not any(entry["benchmark"] == benchmark for entry in tables["scores"]):
        asked = any(protocol["benchmark"] == benchmark for protocol in tables["protocol"])
        return "no score: name a judge in evaluate.judge" if asked else "not among the mixture's benchmarks"
    (protocol,) = (one for one in tables["protocol"] if one["benchmark"] == benchmark)
    if "judge" in protocol:
        return (
            "" if protocol["judge"]["kind"] == "chat" else f"judged by {protocol['judge']['kind']}, not chat"
        )
    other = [f"evaluate.{key} is {protocol[key]}" for key, value in ASKED.items() if protocol[key] != value]
    return ", ".join(other)


def task_average(tables: dict, benchmark: str) -> float:
    """Over what the harness has for tasks: subjects, of ArabicMMLU by level; the plain score where all are of
    one size.
    """
    own = [entry for entry in tables["scores"] + tables["slices"] if entry["benchmark"] == benchmark]
    found = {entry["name"]: entry["value"] for entry in own if entry["slice"] in ("all", "macro")}
    return found.get("subject and level", found.get("subject", found.get("")))


def table(tables: dict) -> dict[str, str]:
    """A checkpoint's numbers by title; those of a benchmark's parts are indented below it."""
    cells = {}
    benchmarks = [entry["benchmark"] for entry in tables["scores"]]
    entries = sorted(
        tables["scores"] + tables["slices"], key=lambda entry: benchmarks.index(entry["benchmark"])
    )
    for entry in entries:
        chance = f" [{entry['chance']:.2f}]" if entry.get("chance") else ""
        titles = {
            "all": f"{entry['benchmark']}{chance}",
            "macro": f"{entry['benchmark']}, mean over {entry['name']}{chance}",
        }
        title = titles.get(
            entry["slice"], f"  {entry['benchmark']}, {entry['slice']}: {entry['name']}{chance}"
        )
        cells[title] = f"{entry['value']:.3f}" + (
            "" if entry["stderr"] is None else f" ± {entry['stderr']:.3f}"
        )
    others = {row["measure"]: row["value"] for row in tables["measures"]}
    return cells | {title: f"{value:.3f}" for title, value in others.items() if title not in benchmarks}


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
