"""The leak guard: training rows that contain a question of a configured benchmark.

Words are compared without tashkeel, punctuation and spelling variants. A question of at least SPAN words is
found by the share of its SPAN-word runs that a row contains, a shorter one as a whole, up to the end of a
line (else "write the number 900" would be found in "write the number 900 and 8"). A question that says little
by itself (very short, or asked of several items, as "which of these is right?") counts together with its
right answer. Such a one and every BRIEF one are also found with the choices, in any order, which stand
between question and answer, or on the question's line, where an exam was copied.
"""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from pyarrow import parquet

from stages.text.arabic import LINE_END, words
from stages.text.shingles import hash_words, ngrams

SPAN, SHORTEST = 8, 4  # words
PREFILTER_BITS = 22  # 4 MB a table: larger ones fall out of the cache


# Of a choice in a list, as A. أ) (ب) 1- stand before it, or the dash or dot of a line.
LABEL = re.compile(
    r"(?m)(?:^|(?<=\s))[(\[]?(?:[A-Fa-f]|[أابجده]ـ?|[1-6١-٦])\s?[.)\]:–-](?=\s|\w)|^\s*[-–*•]\s"
)
LISTED = 6  # words at least of a question and its choices together
# words: of a shorter question nearly every run must be found, the one up to its line end, too
BRIEF = SPAN + 3


@dataclass(frozen=True)
class Runs:
    """The word runs of texts. `found[n]` holds sorted hashes of n-word runs and, beside each, the number of
    the text it stands in.
    """

    found: dict[int, tuple[np.ndarray, np.ndarray]]
    needed: np.ndarray  # distinct runs of a text that a row must contain
    names: list[str]  # benchmark and id of the text's item, divided by a tab

    @classmethod
    def of(cls, texts: list[tuple[str, list[str]]], overlap: float) -> "Runs":
        """Of named texts, given as words."""
        runs, needed = defaultdict(list), []
        for number, (_, text) in enumerate(texts):
            n = min(len(text), SPAN)  # a short text's run holds its line end too
            own = np.unique(ngrams(*hash_words([text]), n)[0])
            runs[n] += [(run, number) for run in own]
            needed.append(math.ceil(overlap * len(own)))
        found = {n: sorted_runs(own) for n, own in sorted(runs.items())}
        return cls(found, np.array(needed), [name for name, _ in texts])


@dataclass(frozen=True)
class Index:
    """What every item is found by."""

    asked: Runs  # the question, with its right answer where it says little by itself
    listed: Runs  # of those that say little or are brief: the question and its choices, in any order
    items: dict[str, int]  # a benchmark's items
    unchecked: dict[str, int]  # those too short to be told from chance


def build(folder: Path, overlap: float) -> Index:
    """The index of every item in data/raw/benchmarks."""
    asked, listed, items, unchecked = [], [], {}, Counter()
    for path in sorted(folder.glob("*.parquet")):
        # Worked examples (dev) are shown to the model anyway.
        rows = [
            row
            for row in parquet.read_table(path).to_pylist()
            if row["fault"] is None and row["split"] != "dev"
        ]
        items[path.stem] = len(rows)
        for row, text in zip(rows, item_words(rows)):
            name = f"{path.stem}\t{row['id']}"
            if text != words(row["question"]) or spoken(text) < BRIEF:
                listed += [(name, printed) for printed in printings(row) if len(printed) >= LISTED]
            if spoken(text) >= SHORTEST:
                asked.append((name, text))
            else:
                unchecked[path.stem] += 1
    return Index(Runs.of(asked, overlap), Runs.of(listed, overlap), items, dict(unchecked))


def printings(row: dict) -> list[list[str]]:
    """The words of a question with its choices, and with the beginning of each, which may stand first."""
    asked, *choices = map(without_labels, [row["question"], *(row["choices"] or [])])
    return [[*asked, *chain.from_iterable(choices)], *(asked + choice[:SPAN] for choice in choices)]


def without_labels(text: str) -> list[str]:
    """The words of a question with its choices, whichever way these are listed."""
    return [word for word in words(LABEL.sub(" ", text)) if word != LINE_END]


def lists_choices(text: str) -> bool:
    return text.count("\n") > 1 or text.count("،") > 1 or len(LABEL.findall(text)) > 1


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
        self.asked, self.listed = Finder(index.asked), Finder(index.listed)

    def find(self, hashes: np.ndarray, owners: np.ndarray) -> dict[int, str]:
        """The first leaked item (benchmark and id) of each text that has one. Words as of
        shingles.hash_words.
        """
        return self.asked.find(hashes, owners)

    def find_listed(self, texts: list[str]) -> dict[int, str]:
        """The same of questions that say little by themselves, where their choices follow them."""
        if not self.listed.runs.names:
            return {}
        return self.listed.find(
            *hash_words([without_labels(text) if lists_choices(text) else [] for text in texts])
        )


class Finder:
    def __init__(self, runs: Runs):
        self.runs = runs
        self.prefilters = {n: prefilter(found) for n, (found, _) in runs.found.items()}

    def find(self, hashes: np.ndarray, owners: np.ndarray) -> dict[int, str]:
        found = defaultdict(set)
        for n, (runs, items) in self.runs.found.items():
            grams, texts = ngrams(hashes, owners, n)
            likely = self.prefilters[n][slot(grams)]  # one look-up spares the search for nearly all
            grams, texts = grams[likely], texts[likely]
            starts, ends = np.searchsorted(runs, grams, "left"), np.searchsorted(runs, grams, "right")
            for gram, text, start, end in zip(grams, texts, starts, ends):
                for item in items[start:end]:
                    found[int(text), int(item)].add(int(gram))
        leaks = sorted(pair for pair, grams in found.items() if len(grams) >= self.runs.needed[pair[1]])
        return {text: self.runs.names[item] for text, item in reversed(leaks)}


def prefilter(runs: np.ndarray) -> np.ndarray:
    table = np.zeros(1 << PREFILTER_BITS, bool)
    table[slot(runs)] = True
    return table


def slot(runs: np.ndarray) -> np.ndarray:
    return (runs >> np.uint64(64 - PREFILTER_BITS)).astype(np.int64)
