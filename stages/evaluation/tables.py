"""The tables of one checkpoint → metrics/tables/<checkpoint>.json: how it was asked, every score, and what
the plots show.

A choice or answer counts where the item is asked in its published order (rotation 0) and has no fault. The
tables are lists, which `dvc metrics diff` passes over.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from string import ascii_uppercase

from stages.settings.files import replace_file

TABLES = Path("metrics/tables")
BINS = 10  # of confidence, equally wide: 0–0.1, 0.1–0.2, …


def write(
    checkpoint: str,
    called: str,
    protocol: list[dict],
    rows: list[dict],
    scores: list[dict],
    measures: dict[str, float],
    health: dict[str, float | None],
) -> None:
    """The tables of one checkpoint → metrics/tables/<checkpoint>.json, a line per row.

    `called`: what people call it, kto for a dpo that was trained by kto. `protocol`: how each benchmark was
    asked. `rows`: its predictions. `scores`: dicts of benchmark, slice ("all", "subject", "group", "level",
    "country", …), name, value, ci_low, ci_high, n. `measures`: all that was measured, by name. `health`:
    shares 0..1 by name; None where there is no answer to measure.
    """
    whole = {
        "called": [{"name": called}],
        "protocol": protocol,
        "measures": [{"measure": name, "value": value} for name, value in measures.items()],
        **tables(rows, scores, health),
    }
    found = {figure: ",\n".join(map(_line, own)) for figure, own in whole.items()}
    text = ",\n".join(f'"{figure}": [\n{lines}\n]' for figure, lines in found.items())
    with replace_file(TABLES / f"{checkpoint}.json") as temporary:
        temporary.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


def tables(rows: list[dict], scores: list[dict], health: dict[str, float | None]) -> dict[str, list[dict]]:
    """Every figure's rows, with the columns of COLUMNS and more; shares are rounded to 4 digits. See `write`
    for the arguments.
    """
    asked = [row for row in rows if row["rotation"] == 0 and row["fault"] is None]
    return {
        "scores": [row for row in scores if row["slice"] == "all"],
        "slices": [row for row in scores if row["slice"] != "all"],
        "confusion": _by_benchmark(asked, ("picked", "gold"), confusion),
        "reliability": _by_benchmark(asked, ("picked", "gold", "confidence"), reliability),
        "lengths": _by_benchmark(asked, ("tokens", "stopped"), lengths),
        "health": [
            {"measure": name.replace("_", " "), "value": round(value, 4)}
            for name, value in health.items()
            if value is not None
        ],
    }


def confusion(rows: list[dict]) -> list[dict]:
    """How often the choice in each place was picked, for each place of the right one; `share` is of the items
    with that right place.

    A model that only likes a letter fills one column, whatever the right answer.
    """
    counts = Counter((row["gold"], row["picked"]) for row in rows)
    golds = Counter(row["gold"] for row in rows)
    places = 1 + max(max(pair) for pair in counts)
    pairs = [(gold, picked) for gold in sorted(golds) for picked in range(places)]
    return [
        {"gold": ascii_uppercase[gold], "picked": ascii_uppercase[picked], "n": counts[gold, picked],
         "share": round(counts[gold, picked] / golds[gold], 4)}
        for gold, picked in pairs
    ]  # fmt: skip


def reliability(rows: list[dict]) -> list[dict]:
    """Mean confidence and accuracy in each bin of confidence, and the expected calibration error over them.

    ECE = Σ n_b/n · |accuracy_b − confidence_b| (Guo et al. 2017, arXiv 1706.04599, equation 3); it stands in
    every row.
    """
    bins = defaultdict(list)
    for row in rows:
        bins[min(int(row["confidence"] * BINS), BINS - 1)].append(
            (row["confidence"], row["picked"] == row["gold"])
        )
    means = {place: [fmean(column) for column in zip(*pairs)] for place, pairs in sorted(bins.items())}
    ece = sum(
        len(bins[place]) * abs(accuracy - confidence) for place, (confidence, accuracy) in means.items()
    ) / len(rows)
    return [
        {"bin": place / BINS, "confidence": round(confidence, 4), "accuracy": round(accuracy, 4),
            "n": len(bins[place]),
         "ece": round(ece, 4)}
        for place, (confidence, accuracy) in means.items()
    ]  # fmt: skip


def lengths(rows: list[dict]) -> list[dict]:
    """How many of the answers of each length stopped by themselves; lengths in tokens, up to 1, 2, 4, 8, …
    .
    """
    bins = defaultdict(list)
    for row in rows:
        bins[max(row["tokens"] - 1, 0).bit_length()].append(row["stopped"])
    return [
        {
            "tokens": _span(power),
            "n": len(stopped),
            "stopped": sum(stopped),
            "stop_rate": round(fmean(stopped), 4),
        }
        for power, stopped in sorted(bins.items())
    ]


def _by_benchmark(
    rows: list[dict], needed: tuple[str, ...], figure: Callable[[list[dict]], list[dict]]
) -> list[dict]:
    """The rows of a figure for each benchmark that has items with every one of the columns `needed`."""
    groups = defaultdict(list)
    for row in rows:
        if all(row[column] is not None for column in needed):
            groups[row["benchmark"]].append(row)
    return [{"benchmark": benchmark, **row} for benchmark, own in groups.items() for row in figure(own)]


def _span(power: int) -> str:
    """The lengths that share a bin: 0–1, 2, 3–4, 5–8, 9–16, …"""
    return {0: "0–1", 1: "2"}.get(power, f"{2 ** (power - 1) + 1}–{2**power}")


def _line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False)
