"""Scores against enumeration, and against what they estimate."""

import tracemalloc

import numpy as np
import pytest
import scipy.stats

from llm_learn.evaluation_statistics import (
    bootstrap_interval,
    cluster_interval,
)


def test_a_bootstrap_interval_is_scipys():
    values = np.random.default_rng(1).gamma(1.0, size=60)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=2
    ).confidence_interval
    width = theirs.high - theirs.low
    # The ends of 4,000 draws vary by a few percent of the width.
    assert bootstrap_interval(values) == pytest.approx(tuple(theirs), abs=0.05 * width)


def test_a_bootstrap_interval_repeats_and_draws_every_value():
    values = np.array([5.0, 1.0])
    assert bootstrap_interval(values) == bootstrap_interval(values, 4000, 0) == (1.0, 5.0)
    many = np.arange(50.0)
    assert bootstrap_interval(many) == bootstrap_interval(many, resamples=4000, seed=0)
    assert bootstrap_interval(many) != bootstrap_interval(many, seed=1)
    assert bootstrap_interval(many) != bootstrap_interval(many, resamples=40)


@pytest.mark.parametrize(
    ("n", "resamples"), [(1, 5), (7, 4000), (300, 4000), (2049, 2000), (2**20 + 3, 5)]
)
def test_a_bootstrap_interval_in_parts_is_that_of_all_resamples_at_once(n, resamples):
    values = np.random.default_rng(1).normal(size=n)
    drawn = np.random.default_rng(3).integers(0, n, (resamples, n))
    expected = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    assert bootstrap_interval(values, resamples, seed=3) == tuple(expected)


def test_a_bootstrap_interval_of_many_values_needs_little_memory():
    tracemalloc.start()
    try:
        _ = bootstrap_interval(np.arange(50_000.0), resamples=200)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6  # all at once take 160 MB


def test_a_bootstrap_interval_holds_the_mean_and_shrinks_with_the_root_of_n():
    few, many = np.array([0.0, 1.0] * 20), np.array([0.0, 1.0] * 80)
    (low, high), (near, far) = bootstrap_interval(few), bootstrap_interval(many)
    assert low < near < 0.5 < far < high
    assert (high - low) / (far - near) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("values", [np.zeros(0), np.zeros((3, 2))])
def test_a_bootstrap_interval_needs_one_value_a_question(values):
    with pytest.raises(ValueError, match="values has shape"):
        bootstrap_interval(values)


def test_clusters_widen_an_interval_by_what_is_repeated():
    values = np.random.default_rng(0).normal(size=100)
    narrow = bootstrap_interval(values)
    repeated = cluster_interval(np.repeat(values, 4), np.repeat(np.arange(100), 4))
    assert repeated == pytest.approx(narrow)
    naive = bootstrap_interval(np.repeat(values, 4))
    assert (naive[1] - naive[0]) == pytest.approx((narrow[1] - narrow[0]) / 2, rel=0.1)


def test_clusters_of_different_sizes_keep_their_weights():
    values, clusters = np.random.default_rng(1).random(12), np.array(list("aaaaaabbccdd"))
    drawn = np.random.default_rng(0).integers(0, 4, (500, 4))
    groups = [values[clusters == name] for name in "abcd"]
    means = [np.concatenate([groups[k] for k in row]).mean() for row in drawn]
    found = cluster_interval(values, clusters, resamples=500)
    assert found == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


@pytest.mark.parametrize(
    ("values", "clusters"),
    [(np.zeros(0), []), (np.zeros(3), "ab"), (np.zeros((2, 2)), [0, 1])],
)
def test_a_cluster_interval_needs_a_cluster_for_each_value(values, clusters):
    with pytest.raises(ValueError, match=r"expected \(N,\)"):
        cluster_interval(values, list(clusters))
