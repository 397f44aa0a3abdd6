"""Scores' intervals and tests, against scipy and statsmodels where these are installed and against golden
values always.
"""

import numpy as np
import pytest

from stages.evaluation import statistics


def pairs(won: int, lost: int, both: int, neither: int) -> tuple[list[int], list[int]]:
    return [0] * won + [1] * lost + [1] * both + [0] * neither, [1] * won + [0] * lost + [1] * both + [
        0
    ] * neither


def drawn(n: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Paired scores such as F1: most items equal, the others moved by some share."""
    rng = np.random.default_rng(seed)
    a = rng.beta(2, 2, n)
    return a, np.where(rng.random(n) < 0.4, np.clip(a + rng.normal(shift, 0.2, n), 0, 1), a)


def test_proportion_is_the_wilson_interval():
    # golden: statsmodels 0.15 proportion_confint(3, 20, method="wilson")
    assert statistics.proportion([1] * 3 + [0] * 17) == {
        "value": 0.15,
        "stderr": 0.0798,
        "ci_low": 0.0524,
        "ci_high": 0.3604,
        "n": 20,
    }


@pytest.mark.parametrize(
    ("hits", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 9), (431, 720), (9000, 14042)]
)
def test_proportion_against_statsmodels(hits, n):
    confint = pytest.importorskip("statsmodels.stats.proportion").proportion_confint
    found = statistics.proportion([True] * hits + [False] * (n - hits))
    assert (found["ci_low"], found["ci_high"]) == pytest.approx(confint(hits, n, method="wilson"), abs=5.1e-5)


def test_mean_is_students_interval():
    # golden: scipy 1.17 stats.t.interval(0.95, 3, 2.5, stats.sem([1, 2, 3, 4]))
    assert statistics.mean([1, 2, 3, 4]) == {
        "value": 2.5,
        "stderr": 0.6455,
        "ci_low": 0.4457,
        "ci_high": 4.5543,
        "n": 4,
    }


def test_scores_of_no_item_and_of_one():
    nothing = {"value": None, "stderr": None, "ci_low": None, "ci_high": None, "n": 0}
    assert statistics.proportion([]) == statistics.mean([]) == nothing
    assert statistics.mean([0.25]) == nothing | {"value": 0.25, "n": 1}
    assert statistics.proportion([1]) == {
        "value": 1.0,
        "stderr": 0.0,
        "ci_low": 0.2065,
        "ci_high": 1.0,
        "n": 1,
    }
    with pytest.raises(ValueError, match="same items, at least one: got 0 and 0"):
        statistics.paired_test([], [])
    with pytest.raises(ValueError, match="got 2 and 1"):
        statistics.paired_difference([1, 0], [1])


@pytest.mark.parametrize("df", [1, 2, 3, 4, 9, 10, 101, 720, 14041])
def test_students_distribution_against_scipy(df):
    stats = pytest.importorskip("scipy.stats")
    assert statistics.t_quantile(df) == pytest.approx(stats.t.ppf(0.975, df), abs=1e-6)
    for t in (0, 0.3, 2.0, 5.0, 40.0):
        assert statistics.t_within(t, df) == pytest.approx(1 - 2 * stats.t.sf(t, df), abs=1e-12)


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (6, 0, 0.03125),
        (2, 10, 0.03857421875),
        (700, 900, np.float64(6.319484959450105e-07)),
    ],
)
def test_mcnemar_is_the_exact_sign_test_of_the_unequal_pairs(won, lost, p):
    assert statistics.mcnemar(*pairs(won, lost, both=30, neither=3)) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(("won", "lost"), [(3, 8), (40, 41), (120, 60), (1500, 1700)])
def test_mcnemar_against_statsmodels(won, lost):
    reference = (
        pytest.importorskip("statsmodels.stats.contingency_tables")
        .mcnemar([[5, won], [lost, 5]], exact=True)
        .pvalue
    )
    assert statistics.mcnemar(*pairs(won, lost, 5, 5)) == pytest.approx(reference, rel=1e-9)


def test_paired_t_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    for n, seed, shift in ((8, 1, 0.0), (41, 2, 0.05), (300, 3, 0.02)):
        a, b = drawn(n, seed, shift)
        reference = stats.ttest_rel(b, a)
        assert statistics.paired_test(a, b) == pytest.approx(reference.pvalue, rel=1e-8)
        assert statistics.paired_difference(a, b)[1:] == pytest.approx(
            tuple(reference.confidence_interval()), abs=1e-8
        )


def test_paired_t_says_what_permutations_say():
    """It needs no symmetry or normality that scores lack: flipping the signs at random gives the same p."""
    a, b = drawn(120, 5, 0.05)
    flips = np.random.default_rng(0).choice([-1, 1], (20_000, 120)) @ (b - a)
    assert statistics.paired_t(a, b) == pytest.approx(np.mean(np.abs(flips) >= abs(np.sum(b - a))), abs=0.01)


def test_equal_differences_are_judged_by_their_number():
    assert statistics.paired_t([0.2, 0.4], [0.7, 0.9]) == 0.5
    assert statistics.paired_t([0.2, 0.4], [0.2, 0.4]) == 1.0
    assert statistics.paired_difference([0.25], [0.75]) == (0.5, None, None)


def test_paired_difference_of_binary_scores():
    # golden, by hand: 11/102 − 3/102 ± 1.959964 √((14/102 − (8/102)²)/102)
    found = statistics.paired_difference(*pairs(10, 2, 60, 28))
    assert found == pytest.approx((0.08, 0.008164, 0.148699), abs=1e-6)
    assert (
        statistics.paired_difference([1] * 50, [1] * 50).ci_high > 0.03
    )  # 50 equal answers do not prove two models equal


@pytest.mark.parametrize(("n", "won", "lost"), [(30, 0.02, 0.005), (100, 0.1, 0.04), (720, 0.3, 0.1)])
def test_the_interval_of_binary_scores_covers_the_truth(n, won, lost):
    counts = np.random.default_rng(n).multinomial(n, [won, lost, 1 - won - lost], size=1500)
    found = [statistics.paired_difference(*pairs(w, lo, rest, 0)) for w, lo, rest in counts]
    assert np.mean([low <= won - lost <= high for _, low, high in found]) > 0.94


def test_holm():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )  # golden, textbook
    assert statistics.holm([0.01, 0.02], family=6) == pytest.approx([0.06, 0.1])
    assert statistics.holm([]) == []


def test_holm_against_statsmodels():
    multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
    p = np.random.default_rng(0).random(40) ** 3
    assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_equals_are_not_called_worse_than_the_best_of_them():
    """Ten equal models: the best was chosen by the same items, so nine comparisons with it are chosen from
    all 45 pairs.
    """
    rng = np.random.default_rng(0)
    errors = {None: 0, 45: 0}
    for _ in range(400):
        scores = (rng.random((300, 10)) < 0.5).astype(float)
        best = int(scores.mean(axis=0).argmax())
        p = [statistics.mcnemar(scores[:, best], scores[:, one]) for one in range(10) if one != best]
        for family in errors:
            errors[family] += min(statistics.holm(p, family)) < 0.05
    assert errors[45] <= 0.05 * 400 < errors[None]


# --- clusters and groups ------------------------------------------------------------------------------------


def test_a_clustered_standard_error_is_that_of_a_regression_on_a_constant():
    rng = np.random.default_rng(3)
    clusters = rng.integers(0, 12, 90)
    for scores in (rng.random(90), (rng.random(12)[clusters] > 0.5).astype(float)):
        fitted = (
            pytest.importorskip("statsmodels.api")
            .OLS(scores, np.ones(90))
            .fit(cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False})
        )
        assert statistics.clustered(scores, list(clusters)) == pytest.approx(fitted.bse[0], rel=1e-9)


def test_items_on_one_passage_tell_less():
    hits, passages = [1.0, 1.0, 0.0, 0.0] * 10, [i // 2 for i in range(40)]
    alone, shared = statistics.proportion(hits), statistics.proportion(hits, passages)
    assert (shared["value"], shared["n"]) == (alone["value"], 40)
    assert shared["stderr"] == pytest.approx(alone["stderr"] * 2**0.5, abs=1e-4)
    # the interval of the 20 independent items that there are
    assert (shared["ci_low"], shared["ci_high"]) == tuple(
        statistics.proportion([1, 0] * 10)[bound] for bound in ("ci_low", "ci_high")
    )
    assert statistics.proportion(hits, list(range(40))) == alone  # nothing is shared
    assert statistics.proportion([1.0] * 40, passages)["ci_low"] == statistics.proportion([1] * 20)["ci_low"]
    values = [0.1, 0.1, 0.9, 0.9]
    assert statistics.mean(values, ["a", "a", "b", "b"])["stderr"] > statistics.mean(values)["stderr"]
    assert statistics.mean(values, ["a"] * 4) == {
        "value": 0.5, "stderr": None, "ci_low": None, "ci_high": None, "n": 4
    }  # fmt: skip


def test_a_macro_average_counts_every_group_alike():
    groups = [statistics.proportion([1] * 9 + [0]), statistics.proportion([0, 1])]
    found = statistics.macro(groups)
    assert (found["value"], found["n"]) == (0.7, 12)
    assert found["stderr"] == pytest.approx((0.1 * 0.9 * 0.1 + 0.5 * 0.5 / 2) ** 0.5 / 2, abs=1e-4)
    assert statistics.macro([statistics.mean([0.25]), groups[0]])["stderr"] is None
