"""Evaluation scores: pass@k and bootstrap confidence intervals."""

from collections.abc import Sequence

import numpy as np

from llm_learn.argument_checks import expect


def bootstrap_interval(
    values: np.ndarray, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval for the mean of some values, by resampling with replacement (Efron 1979).

    Args:
        values: (N,), one for each question.
        resamples: number of bootstrap samples.
        seed: decides the samples.
    """
    expect("values (N,), N >= 1", values=values)
    rng, means = np.random.default_rng(seed), []
    at_once = max(1, 2**20 // len(values))  # resamples in memory
    for done in range(0, resamples, at_once):
        shape = min(at_once, resamples - done), len(values)
        means.append(values[rng.integers(0, len(values), shape)].mean(1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def cluster_interval(
    values: np.ndarray,
    clusters: Sequence | np.ndarray,
    resamples: int = 4000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval for the mean of some values, by a bootstrap that resamples whole clusters.

    Args:
        values: (N,), one for each question.
        clusters: (N,), what each question belongs to, such as its country.
        resamples: number of bootstrap samples.
        seed: decides the samples.
    """
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    expect("values (N,), clusters (N,), N >= 1", values=values, clusters=cluster)
    sums, counts = np.bincount(cluster, values), np.bincount(cluster)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
