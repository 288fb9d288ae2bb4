"""The packaged table and the simulators."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpmoe.data import load_motorcycle, simulate_heteroscedastic, simulate_two_regimes


def test_motorcycle_has_the_published_rows() -> None:
    X, y = load_motorcycle()
    assert X.shape == (133, 1)
    assert y.shape == (133,)
    assert X.dtype == y.dtype == np.float64
    assert (X[0, 0], y[0], X[-1, 0], y[-1]) == (2.4, 0.0, 57.6, 10.7)  # first and last row of MASS::mcycle
    assert (y.min(), y.max()) == (-134.0, 75.0)  # summary(mcycle) in R
    assert len(np.unique(X)) == 94  # times repeat


def test_motorcycle_arrays_are_fresh_and_writable() -> None:
    X, y = load_motorcycle()
    X[:], y[:] = 0.0, 0.0
    assert load_motorcycle()[1].min() == -134.0


@pytest.mark.parametrize("simulate", [simulate_two_regimes, simulate_heteroscedastic])
def test_a_seed_fixes_a_simulation(simulate) -> None:
    for first, second in zip(simulate(50, seed=3), simulate(50, seed=3), strict=True):
        assert_array_equal(first, second)
    assert not np.array_equal(simulate(50, seed=3)[1], simulate(50, seed=4)[1])


def test_two_regimes_follow_the_gate_they_report() -> None:
    X, y, gate_probs = simulate_two_regimes(40_000, seed=0)
    assert_allclose(gate_probs.sum(axis=1), 1.0, atol=1e-12)
    near = np.abs(X[:, 0]) < 0.5
    second = y[near] > 0.65  # there regime 0 stays below 0.25 + 5 sd, and regime 1 above it but in one tail
    mean = gate_probs[near] @ [0.0, 1.0]
    assert abs(second.mean() - mean.mean()) < 0.05


def test_heteroscedastic_noise_has_the_variance_it_reports() -> None:
    X, y, noise = simulate_heteroscedastic(40_000, seed=0)
    squares = (y - np.sin(2 * np.pi * X[:, 0])) ** 2 / noise
    assert abs(squares.mean() - 1.0) < 4 * np.sqrt(2 / 40_000)  # chi-squared with one degree of freedom: variance 2
