"""Duplicates and contradictions. Near duplicates are rows whose sets of word pairs are nearly the same
(Jaccard similarity at or above a threshold).

MinHash signatures (rensa; Broder 1997) estimate the similarity, locality-sensitive hashing finds the pairs
worth comparing without comparing all, and every found pair is checked against the threshold on the whole
signature.
"""

import numpy as np
from rensa import RMinHash

from stages.text.shingles import MIX, ngrams

PERMUTATIONS = 128  # numbers a signature: the estimate's standard error is at most √(0.25/128) = 0.044
SEED = 5
SHORTEST = 20  # word pairs: in a shorter text one word makes another question
CHUNK = 20_000  # pairs compared at a time


def band_rows(threshold: float) -> int:
    """Signature numbers a band: the longest band whose turning point (1/bands)^(1/rows) lies below the
    threshold.
    """
    return max(rows for rows in (2, 4, 8, 16) if (rows / PERMUTATIONS) ** (1 / rows) < threshold - 0.05)


def signatures(hashes: np.ndarray, owners: np.ndarray, count: int) -> np.ndarray:
    """The MinHash signature over the word pairs of each of `count` texts: uint32 of shape (count,
    PERMUTATIONS).
    """
    pairs, texts = ngrams(hashes, owners, 2)
    offsets = np.searchsorted(texts, np.arange(count + 1)).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(pairs, offsets, num_perm=PERMUTATIONS, seed=SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(count, PERMUTATIONS)


def band_keys(signature: np.ndarray, rows: int) -> np.ndarray:
    """One hash per band and text, uint64 of shape (bands, count): texts that share one are worth
    comparing.
    """
    parts = signature.reshape(len(signature), -1, rows).astype(np.uint64)
    keys = np.zeros(parts.shape[:2], np.uint64)
    for k in range(rows):
        keys = (keys ^ parts[:, :, k]) * MIX
    return keys.T


def near_twins(keys: np.ndarray, signature: np.ndarray, alive: np.ndarray, threshold: float) -> np.ndarray:
    """For each row the first row it nearly repeats, or -1; rows that are not `alive` are left out. Nearness
    is passed on.

    `keys` is (bands, rows) and `signature` (rows, PERMUTATIONS); both may be on disk.
    """
    twins = np.full(len(alive), -1)
    rows = np.flatnonzero(alive)
    pairs = np.array([], np.int64)
    for band in keys:
        pairs = np.union1d(pairs, candidates(band[rows], rows, len(alive)))
    for start in range(0, len(pairs), CHUNK):
        first, later = np.divmod(pairs[start : start + CHUNK], len(alive))
        same = (signature[first] == signature[later]).mean(axis=1) >= threshold
        for a, b in zip(first[same], later[same]):  # sorted by `first`, so its own twin is known
            root = a if twins[a] < 0 else twins[a]
            twins[b] = root if twins[b] < 0 else min(root, twins[b])
    return twins


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
