"""How sure a score is, and whether two scores of the same items differ.

Every interval is a 95 % one in closed form, every p-value two-sided and without random draws: the same scores
give the same numbers, and a p-value can be as small as a correction for many comparisons needs (10,000
permutations end at 0.0001). Two samples `a` and `b` are paired: the same items in the same order, so that
what makes an item hard cancels out.
"""

import math
from collections.abc import Hashable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
Z = 1.959964  # the normal quantile of LEVEL, two-sided


class Difference(NamedTuple):
    """mean(b) − mean(a) and its interval; no bounds (None) where one pair of shares tells nothing about their
    spread.
    """

    value: float
    ci_low: float | None
    ci_high: float | None


def proportion(
    hits: Sequence[bool | float], clusters: Sequence[Hashable] | None = None
) -> dict[str, float | int | None]:
    """The share of hits (0 or 1), its standard error √(p(1−p)/n) and its Wilson interval (Wilson 1927, JASA
    22), to 4 decimals.

    Unlike ±1.96 standard errors, the interval stays within 0..1 and has a width at 0 of n hits. Without any
    hit or miss (n = 0) all values are None: a benchmark whose every item was left out has no score, which is
    not an error.

    clusters: what each item shares with others, a passage say. The standard error is then `clustered`, and
    the interval that of as many independent items as would have it (Korn and Graubard 1998, Survey
    Methodology 24); of as many as there are clusters where all are hits or misses.
    """
    n = len(hits)
    if not n:
        return _rounded(None, None, None, None, 0)
    share = float(np.mean(hits))
    stderr, alone = math.sqrt(share * (1 - share) / n), n
    if shares_any(clusters):
        stderr = clustered(hits, clusters)
        alone = min(share * (1 - share) / stderr**2, n) if stderr else len(set(clusters))
    centre = (share + Z**2 / (2 * alone)) / (1 + Z**2 / alone)
    half = Z / (1 + Z**2 / alone) * math.sqrt(share * (1 - share) / alone + Z**2 / (4 * alone**2))
    return _rounded(share, stderr, max(centre - half, 0.0), min(centre + half, 1.0), n)


def mean(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> dict[str, float | int | None]:
    """The mean of scores of any unit, its standard error s/√n and Student's interval, to 4 decimals.

    The central limit theorem carries it (Miller 2024, arXiv 2411.00640); t instead of 1.96 for the small n of
    single subjects. One value has no standard error and no interval (None); n = 0 as in `proportion`. With
    `clusters` the standard error is `clustered`, and t has as many degrees of freedom as clusters, less one.
    """
    n = len(values)
    independent = len(set(clusters)) if shares_any(clusters) else n
    if independent < 2:
        return _rounded(float(np.mean(values)) if n else None, None, None, None, n)
    centre, stderr = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(n)
    if independent < n:
        stderr = clustered(values, clusters)
    half = t_quantile(independent - 1) * stderr
    return _rounded(centre, stderr, centre - half, centre + half, n)


def shares_any(clusters: Sequence[Hashable] | None) -> bool:
    """Whether some items are of one cluster."""
    return clusters is not None and len(set(clusters)) < len(clusters)


def clustered(scores: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """The standard error of a mean of scores that hang together in clusters: √Σ_c (Σ_i∈c (s_i − s̄))² / n.

    Miller 2024 (arXiv 2411.00640), equation 4: items on one passage are answered right or wrong together, and
    an error that takes them for independent is too small.
    """
    distances = np.asarray(scores, dtype=float) - float(np.mean(scores))
    numbers: dict[Hashable, int] = {}
    which = [numbers.setdefault(one, len(numbers)) for one in clusters]
    return math.sqrt(float((np.bincount(which, weights=distances) ** 2).sum())) / len(distances)


def macro(groups: Sequence[dict]) -> dict[str, float | int | None]:
    """The mean of the means of groups, each of which counts alike, with its normal interval: √Σ se² / k.

    groups: as `proportion` and `mean` give them. Without the standard error of a group (one value that is
    no share) there is none of the whole.
    """
    errors = [group["stderr"] for group in groups]
    centre, n = float(np.mean([group["value"] for group in groups])), sum(group["n"] for group in groups)
    if None in errors:
        return _rounded(centre, None, None, None, n)
    stderr = math.sqrt(sum(error**2 for error in errors)) / len(groups)
    return _rounded(centre, stderr, centre - Z * stderr, centre + Z * stderr, n)


def summary(
    scores: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> dict[str, float | int | None]:
    """The `proportion` of scores that are all 0 or 1, the `mean` of others."""
    return proportion(scores, clusters) if is_binary(scores) else mean(scores, clusters)


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """mean(b) − mean(a) with its interval.

    Of 0/1 scores the adjusted Wald interval of Bonett and Price (2012, J. Educ. Behav. Stat. 37), which adds
    one to both counts of unequal pairs: it covers 95 % also where few items differ, where a bootstrap of the
    pairs covers as little as half. Of other scores Student's interval of the differences, which covers no
    less than their percentile bootstrap.
    """
    difference = _differences(a, b)
    n, value = len(difference), float(np.mean(difference))
    if is_binary(a, b):
        won, lost = ((np.sum(difference == sign) + 1) / (n + 2) for sign in (1, -1))
        centre, half = won - lost, Z * math.sqrt((won + lost - (won - lost) ** 2) / (n + 2))
    elif n == 1:
        return Difference(value, None, None)
    else:
        centre, half = value, t_quantile(n - 1) * float(np.std(difference, ddof=1)) / math.sqrt(n)
    return Difference(value, float(centre - half), float(centre + half))


def paired_test(a: Sequence[float], b: Sequence[float]) -> float:
    """The p-value of "no difference": the exact McNemar test of 0/1 scores, the paired t test of others."""
    return mcnemar(a, b) if is_binary(a, b) else paired_t(a, b)


def mcnemar(a: Sequence[float], b: Sequence[float]) -> float:
    """Exact p-value of paired 0/1 scores: the sign test of the items on which they differ (McNemar 1947,
    Psychometrika 12).
    """
    difference = _differences(a, b)
    won, lost = int(np.sum(difference > 0)), int(np.sum(difference < 0))
    return _sign_test(min(won, lost), won + lost)


def paired_t(a: Sequence[float], b: Sequence[float]) -> float:
    """p-value of the paired t test; of the sign test where all differences are equal, which have no spread to
    judge by.
    """
    difference = _differences(a, b)
    n, value = len(difference), float(np.mean(difference))
    if np.allclose(difference, value):
        return 1.0 if np.isclose(value, 0) else _sign_test(0, n)
    return 1 - t_within(abs(value) / (float(np.std(difference, ddof=1)) / math.sqrt(n)), n - 1)


def holm(p_values: Sequence[float], family: int | None = None) -> list[float]:
    """Holm's adjusted p-values (1979, Scand. J. Stat. 6), in the order given; below 0.05: one error in 20
    such families.

    family: how many comparisons these were chosen from, where they are not all. What is tested against the
    best of k, which the same items chose, is chosen from all k(k−1)/2 pairs.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(
        np.maximum.accumulate(p[order] * ((family or len(p)) - np.arange(len(p)))), 1
    )
    return adjusted.tolist()


def is_binary(*scores: Sequence[float]) -> bool:
    return all(np.isin(one, (0, 1)).all() for one in scores)


def t_within(t: float, df: int) -> float:
    """P(|T| ≤ t) of Student's t with a whole number of degrees of freedom, exact: Abramowitz and Stegun
    26.7.3 and 26.7.4.
    """
    angle, odd = math.atan(t / math.sqrt(df)), df % 2
    j = np.arange(1, df // 2)
    series = 1 + float(np.cumprod((2 * j - 1 + odd) / (2 * j + odd) * math.cos(angle) ** 2).sum())
    if not odd:
        return math.sin(angle) * series
    return 2 / math.pi * (angle + (math.sin(angle) * math.cos(angle) * series if df > 1 else 0))


@cache
def t_quantile(df: int) -> float:
    """The t with P(|T| ≤ t) = 0.95, by bisection to 8 digits."""
    low, high = Z, 13.0  # the quantiles of infinitely many degrees of freedom and, rounded up, of one
    while high - low > 1e-8:
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, df) < LEVEL else (low, middle)
    return high


def _sign_test(fewer: int, n: int) -> float:
    """Two-sided P(at most `fewer`, or at least n − `fewer`, of n fair coins); logarithms, for 0.5**n is no
    float from n = 1075.
    """
    k = np.arange(1, fewer + 1)
    log_choices = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))])
    return min(1.0, 2 * float(np.exp(log_choices - n * math.log(2)).sum()))


def _differences(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    first, second = (np.asarray(one, dtype=float) for one in (a, b))
    if first.shape != second.shape or not first.size:
        raise ValueError(
            f"paired scores are of the same items, at least one: got {first.size} and {second.size}"
        )
    return second - first


def _rounded(
    value: float | None, stderr: float | None, low: float | None, high: float | None, n: int
) -> dict:
    bounds = {"value": value, "stderr": stderr, "ci_low": low, "ci_high": high}
    return {name: None if one is None else round(one, 4) for name, one in bounds.items()} | {"n": n}
