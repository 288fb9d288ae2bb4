"""Metrics against their definitions, scikit-learn, and simulated data sets with a known answer."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.integrate import quad
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, mean_squared_error, r2_score

from gpmoe import metrics
from gpmoe.distributions import Predictive
from gpmoe.errors import InputError, NonFiniteError, ShapeError


@pytest.fixture
def mixture() -> Predictive:
    rng = np.random.default_rng(0)
    return Predictive.mixture(rng.dirichlet(np.ones(3), 400), rng.normal(size=(400, 3)), rng.gamma(2.0, size=(400, 3)))


@pytest.fixture
def y(mixture: Predictive) -> np.ndarray:
    return mixture.sample(1, generator=1)[0]


def test_point_errors_agree_with_scikit_learn(mixture: Predictive, y: np.ndarray) -> None:
    assert_allclose(metrics.rmse(mixture, y) ** 2, mean_squared_error(y, mixture.mean))
    assert_allclose(metrics.mae(mixture, y), mean_absolute_error(y, mixture.quantile(0.5)))
    assert_allclose(metrics.standardised_mean_squared_error(mixture, y), 1 - r2_score(y, mixture.mean))


def test_pinball_loss_agrees_with_scikit_learn_and_half_the_mae(mixture: Predictive, y: np.ndarray) -> None:
    for q in (0.1, 0.5, 0.95):
        expected = mean_pinball_loss(y, mixture.quantile(q), alpha=q)
        assert_allclose(metrics.pinball_loss(mixture, y, q), expected)
    assert_allclose(metrics.pinball_loss(mixture, y, 0.5), 0.5 * metrics.mae(mixture, y))


def test_crps_is_twice_the_pinball_loss_integrated_over_levels() -> None:
    predictive, y = Predictive.mixture([[0.3, 0.7]], [[-1.0, 2.0]], [[0.5, 1.0]]), [1.2]
    kink = predictive.cdf(y)[0]
    pieces = [(1e-12, kink), (kink, 1 - 1e-12)]
    total = sum(quad(lambda q: metrics.pinball_loss(predictive, y, q), a, b, epsabs=1e-11)[0] for a, b in pieces)
    assert_allclose(2 * total, metrics.crps(predictive, y), rtol=1e-7)


def test_log_score_is_the_mean_log_density() -> None:
    predictive = Predictive.student_t([0.0, 1.0], [1.0, 4.0], 5.0)
    expected = np.mean([stats.t.logpdf(0.3, 5), stats.t.logpdf(-2.0, 5, loc=1.0, scale=2.0)])
    assert_allclose(metrics.log_score(predictive, [0.3, -2.0]), expected)


def test_the_true_distribution_scores_better_than_a_wider_or_shifted_one() -> None:
    y = np.random.default_rng(0).normal(size=20_000)
    true, wide, shifted = (
        Predictive.gaussian(np.full(20_000, m), np.full(20_000, v)) for m, v in [(0, 1), (0, 2), (0.3, 1)]
    )
    for wrong in (wide, shifted):
        assert metrics.log_score(true, y) > metrics.log_score(wrong, y)
        assert metrics.crps(true, y) < metrics.crps(wrong, y)


def test_scores_are_those_of_the_single_functions_in_units_of_y(mixture: Predictive, y: np.ndarray) -> None:
    here, there = metrics.scores(mixture, y), metrics.scores(mixture.affine(1000.0, 7.0), 1000.0 * y + 7.0)
    assert list(here) == ["log_score", "crps", "rmse", "mae", "coverage_90", "width_90", "calibration_error"]
    for name in ("crps", "rmse", "mae", "width_90"):
        assert_allclose(there[name], 1000.0 * here[name], rtol=1e-9)
    assert_allclose(there["log_score"], here["log_score"] - np.log(1000.0))
    assert there["coverage_90"] == here["coverage_90"]
    assert here["width_90"] == metrics.interval_width(mixture)


@pytest.mark.parametrize("coverage", [0.2, 0.9, 0.99])
def test_interval_coverage_counts_targets_between_the_ends(mixture: Predictive, y: np.ndarray, coverage: float) -> None:
    lower, upper = mixture.interval(coverage)
    assert metrics.interval_coverage(mixture, y, coverage) == np.mean((lower <= y) & (y <= upper))
    assert_allclose(metrics.interval_width(mixture, coverage), np.mean(upper - lower))


def test_coverage_of_the_true_distribution_is_nominal(mixture: Predictive) -> None:
    draws = mixture.sample(2000, generator=2)
    coverages = [metrics.interval_coverage(mixture, y, 0.9) for y in draws]
    assert abs(np.mean(coverages) - 0.9) < 4 * np.sqrt(0.9 * 0.1 / (2000 * 400))


def test_pit_of_the_true_distribution_is_uniform(mixture: Predictive) -> None:
    u = np.concatenate([metrics.pit(mixture, y) for y in mixture.sample(250, generator=3)])
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    assert stats.kstest(metrics.pit(mixture.affine(1.0, 0.2), mixture.mean), "uniform").pvalue < 1e-4


def test_calibration_error_falls_to_zero_for_the_true_distribution_alone() -> None:
    n = 50_000
    y = np.random.default_rng(4).normal(size=n)
    true, narrow = (Predictive.gaussian(np.zeros(n), np.full(n, v)) for v in (1.0, 0.25))
    assert metrics.calibration_error(true, y) < 4 * 0.42 / np.sqrt(n)
    # Errors twice as wide as claimed: the central interval of level p holds 2 Phi(z_p / 2) - 1 of them.
    p = np.array(metrics.LEVELS)
    observed = 2 * stats.norm.cdf(stats.norm.ppf(0.5 + p / 2) / 2) - 1
    assert abs(metrics.calibration_error(narrow, y) - np.sqrt(np.mean((observed - p) ** 2))) < 4 * 0.5 / np.sqrt(n)


def test_msll_is_zero_for_the_trivial_forecast_and_negative_for_a_better_one() -> None:
    y = np.random.default_rng(5).normal(3.0, 2.0, size=100)
    trivial, better = Predictive.gaussian(np.full(100, 3.0), np.full(100, 4.0)), Predictive.gaussian(y, np.ones(100))
    assert metrics.mean_standardised_log_loss(trivial, y, train_mean=3.0, train_variance=4.0) == 0.0
    expected = stats.norm.logpdf(y, 3.0, 2.0).mean() + 0.5 * np.log(2 * np.pi)
    assert_allclose(metrics.mean_standardised_log_loss(better, y, train_mean=3.0, train_variance=4.0), expected)
    assert expected < 0


def test_a_pandas_series_is_scored_by_position(mixture: Predictive, y: np.ndarray) -> None:
    series = pd.Series(y, index=np.arange(400)[::-1])
    assert metrics.scores(mixture, series) == metrics.scores(mixture, y)


FUNCTIONS = [
    metrics.log_score,
    metrics.crps,
    metrics.rmse,
    metrics.mae,
    metrics.interval_coverage,
    metrics.pit,
    metrics.calibration_error,
    metrics.standardised_mean_squared_error,
    metrics.scores,
    lambda predictive, y: metrics.pinball_loss(predictive, y, 0.5),
    lambda predictive, y: metrics.mean_standardised_log_loss(predictive, y, train_mean=0.0, train_variance=1.0),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_targets_that_do_not_fit_are_refused_by_every_metric(function) -> None:
    predictive = Predictive.gaussian([0.0, 0.0], [1.0, 1.0])
    for wrong in ([1.0], [[1.0], [2.0]], 1.0):
        with pytest.raises(ShapeError, match=r"`y` must have shape \(2,\)"):
            function(predictive, wrong)
    for value in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match=f"row 1 is {value}"):
            function(predictive, [0.0, value])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda p: metrics.interval_coverage(p, [0.0], 1.0), r"strictly between 0 and 1; got 1\.0"),
        (lambda p: metrics.calibration_error(p, [0.0], []), "at least one nominal coverage"),
        (lambda p: metrics.standardised_mean_squared_error(p, [0.0]), "targets are all equal"),
        (lambda p: metrics.log_score(p[:0], []), "not be empty"),
        (lambda p: metrics.mean_standardised_log_loss(p, [0.0], train_mean=0.0, train_variance=0.0), r"row 0 is 0\.0"),
    ],
)
def test_a_question_without_an_answer_is_refused_with_its_reason(call, text: str) -> None:
    with pytest.raises(InputError, match=text):
        call(Predictive.gaussian([0.0], [1.0]))
