"""What the chapter on the uncertainty of a score defines: against SciPy, planted values, and themselves."""

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from hypothesis import given

SLUG = "measuring/evaluation-uncertainty"


# --- Intervals ---


@given(st.integers(1, 200), st.data())
def test_wilson_equals_scipy_and_stays_inside(definitions_of, n, data):
    k = data.draw(st.integers(0, n))
    low, high = definitions_of(SLUG).wilson(k, n)
    expected = scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx(tuple(expected), abs=1e-9)
    assert -1e-9 <= low <= k / n + 1e-9 and k / n - 1e-9 <= high <= 1 + 1e-9 and high > low


@given(st.integers(0, 60), st.integers(0, 60))
def test_sign_test_equals_scipy(definitions_of, wins, losses):
    found = definitions_of(SLUG).sign_test(wins, losses)
    expected = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert found == pytest.approx(expected)


def test_power_by_formula_is_power_by_simulation(chapter):
    values = np.random.default_rng(0).normal(0.2, 1, 5000)
    n = round(chapter.questions_needed(values))
    assert chapter.power_of(values, n) == pytest.approx(0.8, abs=0.01)
    assert chapter.power_found(values, n, tests=4000) == pytest.approx(0.8, abs=0.03)
    assert chapter.questions_needed(values / 7) == pytest.approx(
        chapter.questions_needed(values)
    )
    assert chapter.power_of(values, 4 * n) > 0.99
    assert chapter.power_found(values - values.mean(), n, tests=4000) == pytest.approx(
        0.025, abs=0.01
    )


# --- Calibration ---


def test_calibration_error_of_what_is_known(chapter):
    confidence = np.array([0.95] * 10 + [0.55] * 10)
    hit = np.array([1.0] * 10 + [0.0] * 10)
    assert chapter.calibration_error(confidence, hit) == pytest.approx(
        0.5 * 0.05 + 0.5 * 0.55
    )


def test_a_temperature_is_found_again_and_changes_no_answer(chapter):
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4000, 4)) * 2
    shares = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    right = np.array([rng.choice(4, p=p) for p in shares])
    t = chapter.best_temperature(true * 3, right)
    assert t == pytest.approx(3, rel=0.1)
    raw, cooled = (chapter.confidence_of(true * 3, x) for x in (1.0, t))
    hit = (true.argmax(1) == right).astype(float)
    assert (
        chapter.calibration_error(cooled, hit) < 0.03 < chapter.calibration_error(raw, hit)
    )
    assert np.allclose(chapter.confidence_of(true), shares.max(1))
    assert np.allclose(
        chapter.log_shares(true, right), np.log(shares[np.arange(4000), right])
    )
