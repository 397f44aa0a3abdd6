"""The leak guard: training rows that contain a question of a configured benchmark.

Words are compared without tashkeel, punctuation and spelling variants. A question of at least SPAN words is
found by the share of its SPAN-word runs that a row contains, a shorter one as a whole, up to the end of a
line (else "write the number 900" would be found in "write the number 900 and 8"). A question that says little
by itself (very short, or asked of several items, as "which of these is right?") counts together with its
right answer.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyarrow import parquet

from stages.text.arabic import LINE_END, words
from stages.text.shingles import hash_words, ngrams

SPAN, SHORTEST = 8, 4  # words
PREFILTER_BITS = 24


@dataclass(frozen=True)
class Index:
    """The word runs of every item. `runs[n]` holds sorted hashes of n-word runs and, beside each, the item it
    stands in.
    """

    runs: dict[int, tuple[np.ndarray, np.ndarray]]
    needed: np.ndarray  # distinct runs of an item that a row must contain
    names: list[str]  # benchmark and id of an item, divided by a tab
    items: dict[str, int]  # a benchmark's items
    unchecked: dict[str, int]  # those too short to be told from chance


def build(folder: Path, overlap: float) -> Index:
    """The index of every item in data/raw/benchmarks."""
    runs, needed, names, items, unchecked = defaultdict(list), [], [], {}, Counter()
    for path in sorted(folder.glob("*.parquet")):
        # Worked examples (dev) are shown to the model anyway.
        rows = [
            row
            for row in parquet.read_table(path).to_pylist()
            if row["fault"] is None and row["split"] != "dev"
        ]
        items[path.stem] = len(rows)
        for row, text in zip(rows, item_words(rows)):
            if spoken(text) < SHORTEST:
                unchecked[path.stem] += 1
                continue
            n = min(len(text), SPAN)  # a short text's run holds its line end too
            found = np.unique(ngrams(*hash_words([text]), n)[0])
            runs[n] += [(run, len(names)) for run in found]
            needed.append(math.ceil(overlap * len(found)))
            names.append(f"{path.stem}\t{row['id']}")
    return Index(
        {n: sorted_runs(found) for n, found in sorted(runs.items())},
        np.array(needed),
        names,
        items,
        dict(unchecked),
    )


def item_words(rows: list[dict]) -> list[list[str]]:
    """The words that identify each item: its question, and the right answer where the question alone does
    not.
    """
    asked = [words(row["question"]) for row in rows]
    often = Counter(map(tuple, asked))
    found = []
    for row, text in zip(rows, asked):
        vague = spoken(text) < SHORTEST or often[tuple(text)] > 1
        found.append(
            text + words(row["choices"][row["answer"]]) if vague and row["answer"] is not None else text
        )
    return found


def spoken(text: list[str]) -> int:
    return len(text) - text.count(LINE_END)


def sorted_runs(found: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    runs, items = np.array([run for run, _ in found], np.uint64), np.array([item for _, item in found])
    order = np.argsort(runs, kind="stable")
    return runs[order], items[order]


class Guard:
    """Finds leaks in batches of texts."""

    def __init__(self, index: Index):
        self.index = index
        self.prefilters = {n: prefilter(runs) for n, (runs, _) in index.runs.items()}

    def find(self, hashes: np.ndarray, owners: np.ndarray) -> dict[int, str]:
        """The first leaked item (as in Index.names) of each text that has one. Words as of
        shingles.hash_words.
        """
        found = defaultdict(set)
        for n, (runs, items) in self.index.runs.items():
            grams, texts = ngrams(hashes, owners, n)
            likely = self.prefilters[n][slot(grams)]  # one look-up spares the search for nearly all
            grams, texts = grams[likely], texts[likely]
            starts, ends = np.searchsorted(runs, grams, "left"), np.searchsorted(runs, grams, "right")
            for gram, text, start, end in zip(grams, texts, starts, ends):
                for item in items[start:end]:
                    found[int(text), int(item)].add(int(gram))
        leaks = sorted(pair for pair, grams in found.items() if len(grams) >= self.index.needed[pair[1]])
        return {text: self.index.names[item] for text, item in reversed(leaks)}


def prefilter(runs: np.ndarray) -> np.ndarray:
    table = np.zeros(1 << PREFILTER_BITS, bool)
    table[slot(runs)] = True
    return table


def slot(runs: np.ndarray) -> np.ndarray:
    return (runs >> np.uint64(64 - PREFILTER_BITS)).astype(np.int64)
