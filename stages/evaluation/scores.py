"""Scores with their error bars, from rows of predictions: over all items of a benchmark and by its parts."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from pyarrow import parquet

from stages.evaluation import statistics

PARTS = ("subject", "group", "level", "country")


def scores(rows: list[dict]) -> list[dict]:
    """One entry per benchmark and part: benchmark, slice, name, value, stderr, ci_low, ci_high, n and, where
    known, chance.

    Leaked items and those whose question is faulty count in entries of their own alone.
    """
    by_benchmark = defaultdict(list)
    for row in rows:
        if row["score"] is not None:
            by_benchmark[row["benchmark"]].append(row)
    return [entry for name, own in by_benchmark.items() for entry in of_benchmark(name, own)]


def of_benchmark(name: str, rows: list[dict]) -> Iterable[dict]:
    first = [row for row in rows if row["rotation"] == 0]
    clean = [row for row in first if not row["leaked"] and row["fault"] is None]
    leaked = [row for row in first if row["leaked"] and row["fault"] is None]
    if clean:
        yield entry(name, "all", "", clean)
    if leaked:
        yield entry(name, "leaked", "in the training data", leaked)
    if len(first) > len(clean) + len(leaked):
        yield entry(name, "with faulty", "questions with a fault, too", first)
    for part in PARTS:
        groups = defaultdict(list)
        for row in clean:
            groups[row.get(part) or ""].append(row)
        if len(groups) > 1:
            yield from (entry(name, part, label, own) for label, own in groups.items() if label)
    yield from macro_averages(name, clean)
    if clean and len(rows) > len(first):
        yield from of_rotations(name, rows)


def macro_averages(name: str, rows: list[dict]) -> Iterable[dict]:
    """The mean over subjects, and over what harnesses take for tasks (of ArabicMMLU subject and level), where
    it is another number than that over items: where the groups differ in size.
    """
    seen = []
    for columns in (("subject",), ("subject", "level")):
        groups = defaultdict(list)
        for row in rows:
            groups[tuple(row.get(column) or "" for column in columns)].append(row)
        sizes = sorted(map(len, groups.values()))
        if len(set(sizes)) > 1 and sizes not in seen:
            seen.append(sizes)
            means = [entry(name, "", "", own) for own in groups.values()]
            chances = [mean["chance"] for mean in means if "chance" in mean]
            chance = {"chance": round(fmean(chances), 4)} if len(chances) == len(means) else {}
            yield {"benchmark": name, "slice": "macro", "name": " and ".join(columns),
                   **statistics.macro(means), "groups": len(groups), **chance}  # fmt: skip


def of_rotations(name: str, rows: list[dict]) -> Iterable[dict]:
    """Every question asked once per rotation of its choices: mean accuracy, how often the same choice was
    picked each time, and how often each place was."""
    clean = [row for row in rows if not row["leaked"] and row["fault"] is None]
    yield entry(name, "rotated", "mean over rotations", clean)
    picks = defaultdict(set)
    for row in clean:
        picks[row["id"]].add(row["answer"])
    yield {"benchmark": name, "slice": "consistent", "name": "same choice in every rotation",
           **statistics.proportion([len(own) == 1 for own in picks.values()])}  # fmt: skip
    for place in range(max(row["choices"] for row in clean)):
        able = [row for row in clean if row["choices"] > place]
        yield {"benchmark": name, "slice": "place", "name": "ABCDEFGHIJ"[place],
               **statistics.proportion([row["picked"] == place for row in able])}  # fmt: skip


def entry(benchmark: str, part: str, name: str, rows: list[dict]) -> dict:
    clusters = [row.get("cluster") or (row["benchmark"], row["id"]) for row in rows]
    found = statistics.summary([row["score"] for row in rows], clusters)
    chances = [row["chance"] for row in rows if row.get("chance") is not None]
    chance = {"chance": round(fmean(chances), 4)} if chances else {}
    return {"benchmark": benchmark, "slice": part, "name": name, **found, **chance}


def place_bias(rows: list[dict]) -> dict[str, float]:
    """How far the places of the picked choices are from those of the right ones: half the sum of the
    differences of their shares (total variation). 0: every letter as often as it is right; 0.75 for always
    the same of four.
    """
    asked = [
        row for row in rows if row["picked"] is not None and row["rotation"] == 0 and row["fault"] is None
    ]
    picked, right = (Counter(row[kind] for row in asked) for kind in ("picked", "gold"))
    distance = sum(abs(picked[place] - right[place]) for place in picked | right) / 2
    return {"place_bias": round(distance / len(asked), 4)} if asked else {}


def overall(entries: list[dict]) -> dict[str, float]:
    """The score of each benchmark over all its items."""
    return {entry["benchmark"]: entry["value"] for entry in entries if entry["slice"] == "all"}


def leaked_items(reports: Iterable[Path]) -> set[tuple[str, str]]:
    """Benchmark and id of the items that stand in a training row which `format.leaks: flag` has kept."""
    found = set()
    for path in reports:
        flagged = parquet.read_table(path, columns=["detail"], filters=[("reason", "=", "leak_kept")])
        found.update(tuple(detail.split("\t")) for detail in flagged["detail"].to_pylist())
    return found
