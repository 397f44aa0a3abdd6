"""Runs of words as numbers: what near-duplicate search and the leak guard compare."""

from itertools import chain

import numpy as np
from xxhash import xxh3_64_intdigest

MIX, SPREAD = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xD6E8FEB86659FD93),
)  # odd constants of splitmix64 and rrmxmx


def hash_words(texts: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """A 64-bit hash of every word of every text, and the number of the text it stands in: two arrays of one
    length.
    """
    flat = np.fromiter((xxh3_64_intdigest(word.encode()) for word in chain.from_iterable(texts)), np.uint64)
    return flat, np.repeat(np.arange(len(texts)), [len(text) for text in texts])


def ngrams(hashes: np.ndarray, owners: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A 64-bit hash of every run of `n` words that lies in one text, and that text's number."""
    count = max(len(hashes) - n + 1, 0)
    mixed = np.zeros(count, np.uint64)
    for k in range(n):
        mixed = mixed * MIX + hashes[k : k + count]
    mixed = (mixed ^ (mixed >> np.uint64(32))) * SPREAD
    whole = owners[:count] == owners[n - 1 :][:count]
    return mixed[whole], owners[:count][whole]
