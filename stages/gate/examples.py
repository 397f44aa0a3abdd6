"""Rows for people to look at: some of each reason, spread over the datasets, a repeated row beside the one it
repeats, and some that are kept, before and after their text was cleaned.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Protocol

import numpy as np
import pyarrow as pa
from pyarrow import parquet

PER_DATASET, MOST = 3, 6  # of each reason
TEXT_LIMIT = 10_000  # characters of a turn
KEPT, UNCHANGED, SHORTENED, FLAGGED = "kept", "", "shortened", "leak_kept"


class Batch(Protocol):
    """A row group of a raw file, and the place of its first row among all rows."""

    path: object
    group: int
    start: int


class Examples:
    """The places of rows worth showing, by reason and dataset."""

    def __init__(self):
        self.places: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        self.details: dict[int, str] = {}
        self.cut: dict[int, int] = {}

    def add(self, rows: pa.Table, start: int) -> None:
        """Look through examined rows of one dataset."""
        names = ("reason", "detail", "leak", "cut", "saved")
        reasons, details, leaks, cut, saved = (np.array(rows[name].to_pylist(), object) for name in names)
        kinds = (reasons != "", cut > 0, leaks != "", saved > 0)
        outcomes = np.select(kinds, (reasons, SHORTENED, FLAGGED, KEPT), UNCHANGED)
        dataset, order = rows["dataset"][0].as_py(), np.argsort(-saved.astype(int), kind="stable")
        for outcome in set(outcomes.tolist()):
            own, found = self.places[outcome][dataset], order[outcomes[order] == outcome]
            for i in found[: PER_DATASET - len(own)].tolist():
                own.append(start + i)
                self.cut[start + i] = cut[i]
                self.details[start + i] = leaks[i].replace("\t", " ") if outcome == FLAGGED else details[i]

    def chosen(self) -> dict[str, list[int]]:
        """Of each reason at most MOST, in turn of every dataset; of the kept rows those first that cleaning
        changed.
        """
        found = {reason: spread(own.values()) for reason, own in sorted(self.places.items())}
        kept = found.pop(KEPT, []) + found.pop(UNCHANGED, [])
        return found | {KEPT: kept[:MOST]}

    def written(
        self, batches: Sequence[Batch], twins: np.ndarray, clean: Callable[[str], str]
    ) -> dict[str, list[dict]]:
        """The rows themselves, by reason. `twins`: for each row the one that it repeats, or -1; `clean`: what
        is done to a text.
        """
        chosen = self.chosen()
        wanted = {place for places in chosen.values() for place in places}
        wanted |= {int(twins[place]) for place in wanted if twins[place] >= 0}
        raw = raw_rows(batches, wanted)

        def shown(place: int, reason: str) -> dict:
            row = {"id": raw[place]["id"], "dataset": raw[place]["source"], "detail": self.details[place]}
            if raw[place]["fault"]:
                return row | {"text": raw[place]["original"] or ""}
            if reason == KEPT:
                row["before"] = turns(raw[place])
            if reason == SHORTENED:
                row["cut"] = self.cut[place]
            if twins[place] >= 0:
                twin = raw[int(twins[place])]
                row["twin"] = {"id": twin["id"], "turns": turns(twin, clean)}
            return row | {"turns": turns(raw[place], clean)}

        return {reason: [shown(place, reason) for place in places] for reason, places in chosen.items()}


def most_repeated(
    batches: Sequence[Batch], twins: np.ndarray, clean: Callable[[str], str], count: int = 10
) -> list[dict]:
    """The rows repeated most often, more than once, with how often and what they say."""
    places, times = np.unique(twins[twins >= 0], return_counts=True)
    order = np.argsort(-times, kind="stable")[:count]
    order = order[times[order] > 1]
    raw = raw_rows(batches, set(places[order].tolist()))
    return [
        {"id": raw[place]["id"], "times": number, "turns": turns(raw[place], clean)}
        for place, number in zip(places[order].tolist(), times[order].tolist())
    ]


def spread(groups: Iterable[list]) -> list:
    """At most MOST things, in turn of every group."""
    return [one for turn in zip_longest(*groups) for one in turn if one is not None][:MOST]


def raw_rows(batches: Sequence[Batch], places: set[int]) -> dict[int, dict]:
    """Raw rows by their places among all; each row group is read once."""
    starts, by_batch, found = [batch.start for batch in batches], defaultdict(list), {}
    for place in sorted(places):
        by_batch[bisect_right(starts, place) - 1].append(place)
    for number, own in by_batch.items():
        batch = batches[number]
        with parquet.ParquetFile(batch.path) as file:
            rows = file.read_row_group(batch.group).take([place - batch.start for place in own])
        found |= dict(zip(own, rows.to_pylist()))
    return found


def turns(row: dict, clean: Callable[[str], str] = str) -> list[dict[str, str]]:
    """What a raw row says, in order: {role, content}. Answers of a pair are chosen and rejected."""
    said = [*row["prompt"], *(row.get("completion") or ())]
    pair = (name for name in ("chosen", "rejected") if row.get(name))
    said += [{"role": name, "content": row[name][-1]["content"]} for name in pair]
    return [{"role": one["role"], "content": clean(one["content"])[:TEXT_LIMIT]} for one in said]
