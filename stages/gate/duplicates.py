"""Duplicates and contradictions. Near duplicates are rows whose sets of word pairs are nearly the same
(Jaccard similarity at or above a threshold), those of their answers too.

MinHash signatures (rensa; Broder 1997) estimate the similarity, locality-sensitive hashing finds the pairs
worth comparing without comparing all, and every found pair is checked against the threshold on the whole
signature, and then on its texts.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from rensa import RMinHash

from stages.text import arabic
from stages.text.shingles import MIX, ngrams

PERMUTATIONS = 128  # numbers a signature: the estimate's standard error is at most √(0.25/128) = 0.044
SEED = 5
SHORTEST = 20  # word pairs: in a shorter text one word makes another question
CHUNK = 20_000  # pairs compared at a time
SAMPLE, FEWEST = 500, 20  # rows that tell what most rows share, and the fewest that do
Near = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of rows and others, which pairs are near


def band_rows(threshold: float) -> int:
    """Signature numbers a band: the longest band whose turning point (1/bands)^(1/rows) lies below the
    threshold.
    """
    return max(rows for rows in (2, 4, 8, 16) if (rows / PERMUTATIONS) ** (1 / rows) < threshold - 0.05)


def signatures(hashes: np.ndarray, owners: np.ndarray, count: int) -> np.ndarray:
    """The MinHash signature over the word pairs of each of `count` texts: uint32 of shape (count,
    PERMUTATIONS).
    """
    return minhash(*ngrams(hashes, owners, 2), count)


def minhash(pairs: np.ndarray, texts: np.ndarray, count: int) -> np.ndarray:
    """The same of word pairs, and the text that each stands in, in order."""
    offsets = np.searchsorted(texts, np.arange(count + 1)).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(pairs, offsets, num_perm=PERMUTATIONS, seed=SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(count, PERMUTATIONS)


def told_apart_by(
    asked: tuple[np.ndarray, np.ndarray], answered: tuple[np.ndarray, np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The word pairs of `count` rows, and the row of each in order, from the hashed words of their questions
    and answers. What most of the questions share is left out: the wording of a task is not what its rows are
    told apart by.
    """
    (pairs, rows), (others, their_rows) = ngrams(*asked, 2), ngrams(*answered, 2)
    if count >= FEWEST:
        own = ~np.isin(pairs, shared_by_most(pairs, rows, count))
        pairs, rows = pairs[own], rows[own]
    rows = np.concatenate([rows, their_rows])
    order = np.argsort(rows, kind="stable")
    return np.concatenate([pairs, others])[order], rows[order]


def shared_by_most(pairs: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """The word pairs that stand in most of a sample of the rows."""
    step = -(-count // SAMPLE)
    sampled = rows % step == 0
    once = np.unique(np.stack([rows[sampled].astype(np.uint64), pairs[sampled]]), axis=1)[1]
    found, times = np.unique(once, return_counts=True)
    return found[times > -(-count // step) / 2]


def band_keys(signature: np.ndarray, rows: int) -> np.ndarray:
    """One hash per band and text, uint64 of shape (bands, count): texts that share one are worth
    comparing.
    """
    parts = signature.reshape(len(signature), -1, rows).astype(np.uint64)
    keys = np.zeros(parts.shape[:2], np.uint64)
    for k in range(rows):
        keys = (keys ^ parts[:, :, k]) * MIX
    return keys.T


def near_twins(
    keys: np.ndarray,
    signature: np.ndarray,
    alive: np.ndarray,
    threshold: float | np.ndarray,
    near: Near | None = None,
) -> np.ndarray:
    """For each row the first row it nearly repeats, or -1; rows that are not `alive` are left out. Nearness
    is passed on.

    `keys` is (bands, rows) and `signature` (rows, PERMUTATIONS); both may be on disk. `threshold` is one, or
    one for each row that may repeat another. `near` has the last word on pairs whose signatures are near.
    """
    twins = np.full(len(alive), -1)
    rows = np.flatnonzero(alive)
    pairs = np.array([], np.int64)
    for band in keys:
        pairs = np.union1d(pairs, candidates(band[rows], rows, len(alive)))
    least = np.broadcast_to(threshold, len(alive))
    for start in range(0, len(pairs), CHUNK):
        first, later = np.divmod(pairs[start : start + CHUNK], len(alive))
        same = (signature[first] == signature[later]).mean(axis=1) >= least[later]
        first, later = first[same], later[same]
        if near:
            same = near(first, later)
            first, later = first[same], later[same]
        for a, b in zip(first, later):  # sorted by `first`, so its own twin is known
            root = a if twins[a] < 0 else twins[a]
            twins[b] = root if twins[b] < 0 else min(root, twins[b])
    return twins


@dataclass(frozen=True)
class Exchange:
    """A row as near duplicates are compared: what the user and others said before, and the answers."""

    asked: str
    answers: tuple[str, ...]


def are_near(one: Exchange, other: Exchange, threshold: float) -> bool:
    """Whether two rows whose words are nearly the same say nearly the same.

    Their questions and their answers must: short ones are the same, long ones near. What only one of two
    questions has, beside a passage that both are about, is no other question; and where all answers are
    short, it is long and near.
    """
    for a, b in zip(one.answers, other.answers, strict=True):
        if arabic.exact_words(a) != arabic.exact_words(b) and not near_texts(a, b, threshold):
            return False
    if arabic.words(one.asked) == arabic.words(other.asked):
        return True
    a, b = sentences(one.asked), sentences(other.asked)
    own, others = (" ".join(s for s in a if s not in b), " ".join(s for s in b if s not in a))
    if all_short([arabic.words(answer) for answer in one.answers]):
        return near_texts(own, others, threshold)
    return near_texts(one.asked, other.asked, threshold) and not ask_otherwise(own, others)


def ask_otherwise(one: str, other: str) -> bool:
    """Whether two sentences, none of them empty, have less than half the words of the shorter in common."""
    a, b = ({*arabic.words(text)} - {arabic.LINE_END} for text in (one, other))
    return 2 * len(a & b) < min(len(a), len(b))


def all_short(texts: list[list[str]]) -> bool:
    return all(len(words) <= SHORTEST for words in texts)


def near_texts(one: str, other: str, threshold: float) -> bool:
    """Whether two texts are long enough to be near, and are."""
    a, b = arabic.words(one), arabic.words(other)
    if min(len(a), len(b)) <= SHORTEST:
        return False
    a, b = set(pairwise(a)), set(pairwise(b))
    return len(a & b) >= threshold * len(a | b)


def sentences(text: str) -> list[str]:
    return [sentence.strip() for sentence in SENTENCE_END.split(text) if sentence.strip()]


SENTENCE_END = re.compile(r"[.!?؟؛:\n]+")


def candidates(keys: np.ndarray, rows: np.ndarray, total: int) -> np.ndarray:
    """Pairs of rows with one key, each row with the first and with the one before it, as earlier x total +
    later.
    """
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.array([], int)
    first = np.repeat(rows[starts], np.diff(np.r_[starts, len(keys)]))
    later = np.flatnonzero(first != rows)
    return np.concatenate([first[later], rows[later - 1]]) * total + np.tile(rows[later], 2)


def outvoted(claims: np.ndarray, subjects: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Whether another claim on the same subject stands in as many alive rows as a row's own, or in more.

    So where two claims stand equally often neither is left.
    """
    lost, rows = np.zeros(len(alive), bool), np.flatnonzero(alive)
    _, first, claim, votes = np.unique(
        claims[rows], return_index=True, return_inverse=True, return_counts=True
    )
    subject = np.unique(subjects[rows], return_inverse=True)[1][first]  # of each claim
    most = np.zeros(len(rows), int)
    np.maximum.at(most, subject, votes)
    leads = votes == most[subject]
    alone = np.bincount(subject[leads], minlength=len(rows)) == 1
    lost[rows] = ~(leads & alone[subject])[claim]
    return lost


def exact_twins(keys: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """For each row the first alive row with the same key, or -1 for that first one and for rows that are not
    alive.
    """
    twins = np.full(len(alive), -1)
    rows = np.flatnonzero(alive)
    _, first, group = np.unique(keys[rows], return_index=True, return_inverse=True)
    firsts = rows[first[group]]
    twins[rows] = np.where(firsts == rows, -1, firsts)
    return twins
