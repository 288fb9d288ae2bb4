"""Predictive distributions against quadrature, Monte Carlo and limiting cases."""

import pickle
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.integrate import quad

from gpmoe.distributions import Predictive
from gpmoe.errors import InputError, NonFiniteError, ShapeError

WEIGHTS = np.array([[0.2, 0.5, 0.3], [0.0, 0.9, 0.1]])
MEANS = np.array([[-2.0, 0.5, 3.0], [7.0, 1.0, -1.0]])
VARIANCES = np.array([[0.3, 1.0, 4.0], [2.0, 0.05, 0.5]])

KINDS = {
    "gaussian": Predictive.gaussian([0.7, -3.0], [2.0, 0.1]),
    "student_t": Predictive.student_t([0.7, -3.0], [2.0, 0.1], [3.5, 9.0]),
    "mixture": Predictive.mixture(WEIGHTS, MEANS, VARIANCES),
}


@pytest.fixture(params=KINDS, ids=str)
def predictive(request: pytest.FixtureRequest) -> Predictive:
    return KINDS[request.param]


def density(predictive: Predictive, row: int):
    one = predictive[row]
    return lambda y: float(np.exp(one.log_prob([y]))[0])


def integrate(function, predictive: Predictive, row: int, lower: float = -np.inf, upper: float = np.inf) -> float:
    """Integral of function over (lower, upper), cut at quantiles so that no peak is missed."""
    inner = predictive[row].quantile([0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999]).ravel()
    cuts = [lower, *inner[(inner > lower) & (inner < upper)], upper]
    return sum(quad(function, a, b, epsabs=1e-12, epsrel=1e-12)[0] for a, b in pairwise(cuts))


@pytest.mark.parametrize("row", [0, 1])
def test_density_integrates_to_one_and_to_the_mean_and_variance(predictive: Predictive, row: int) -> None:
    p, mean = density(predictive, row), predictive.mean[row]
    assert_allclose(integrate(p, predictive, row), 1.0, rtol=1e-8)
    assert_allclose(integrate(lambda y: y * p(y), predictive, row), mean, rtol=1e-7)
    second = integrate(lambda y: (y - mean) ** 2 * p(y), predictive, row)
    assert_allclose(second, predictive.variance[row], rtol=1e-6)
    assert_allclose(predictive.stddev**2, predictive.variance)


@pytest.mark.parametrize("row", [0, 1])
def test_cdf_is_the_integral_of_the_density(predictive: Predictive, row: int) -> None:
    for y in (-3.1, 0.4, 2.0):
        below = integrate(density(predictive, row), predictive, row, upper=y)
        assert_allclose(predictive.cdf([y, y])[row], below, atol=1e-10)


@pytest.mark.parametrize("row", [0, 1])
def test_crps_is_the_integral_of_the_squared_cdf_error(predictive: Predictive, row: int) -> None:
    one = predictive[row]
    for y in (-3.1, 0.4, 8.0):
        below = integrate(lambda t: one.cdf([t])[0] ** 2, predictive, row, upper=y)
        above = integrate(lambda t: (1 - one.cdf([t])[0]) ** 2, predictive, row, lower=y)
        assert_allclose(one.crps([y]), below + above, rtol=1e-7)


def test_sample_moments_and_crps_agree_within_four_standard_errors(predictive: Predictive) -> None:
    draws = predictive.sample(1_000_000, generator=0)
    error = draws.std(0) / 1000.0
    assert (np.abs(draws.mean(0) - predictive.mean) < 4 * error).all()
    u = predictive.cdf(draws)
    assert (np.abs(u.mean(0) - 0.5) < 4 / np.sqrt(12e6)).all()
    assert (np.abs((u < 0.9).mean(0) - 0.9) < 4 * 0.3 / 1000).all()
    y = np.array([0.4, -2.0])
    scores = np.abs(draws[::2] - y) - 0.5 * np.abs(draws[::2] - draws[1::2])
    assert (np.abs(scores.mean(0) - predictive.crps(y)) < 4 * scores.std(0) / np.sqrt(5e5)).all()


def test_sampling_never_draws_a_component_of_zero_weight() -> None:
    draws = Predictive.mixture([[0.0, 1.0, 0.0]], [[-99.0, 0.0, 99.0]], [[1.0, 1.0, 1.0]]).sample(10_000, 1)
    assert np.abs(draws).max() < 10


def test_quantile_inverts_the_cdf(predictive: Predictive) -> None:
    q = np.array([1e-9, 1e-3, 0.2, 0.5, 0.8, 0.999])
    y = predictive.quantile(q)
    assert y.shape == (6, 2)
    assert_allclose(predictive.cdf(y), np.broadcast_to(q[:, None], (6, 2)), rtol=1e-11)
    assert_array_equal(predictive.quantile(0.2), y[2])


@pytest.mark.parametrize("q", [2.0**-30, 0.03125, 0.5, 1 - 2.0**-30])
def test_quantiles_of_a_reflected_distribution_are_reflected(predictive: Predictive, q: float) -> None:
    reflected = predictive.affine(-1.0, 0.0)
    assert_allclose(reflected.quantile(q), -predictive.quantile(1 - q), rtol=0, atol=1e-10 * predictive.stddev.max())


@pytest.mark.parametrize("seed", range(5))
def test_mixture_quantiles_hold_to_rounding_for_widely_different_components(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(4, 0.5), size=200)
    means = rng.normal(size=(200, 4)) * 10.0 ** rng.uniform(-2, 4, size=(200, 1))
    predictive = Predictive.mixture(weights, means, 10.0 ** rng.uniform(-8, 6, size=(200, 4)))
    nudge = 1e-10 * predictive.stddev
    for q in (1e-9, 0.1, 0.5, 0.77):
        y = predictive.quantile(q)
        assert (predictive.cdf(y - nudge) <= q * (1 + 1e-12)).all()
        assert (predictive.cdf(y + nudge) >= q * (1 - 1e-12)).all()


def test_median_of_two_equal_distant_components_is_their_midpoint() -> None:
    for distance in (3.0, 8.0, 12.0, 1000.0):  # beyond 8 the cdf is flat in double precision
        means = [[5.0 - distance, 5.0 + distance]]
        assert_allclose(Predictive.mixture([[0.5, 0.5]], means, [[1.0, 1.0]]).quantile(0.5), [5.0], rtol=1e-12)


def test_median_in_a_flat_stretch_follows_the_tails_of_unequal_components() -> None:
    # Between components with standard deviations 1 and 2 at -10 and 10, the tails balance where (x+10)/1 = (10-x)/2.
    predictive = Predictive.mixture([[0.5, 0.5]], [[-10.0, 10.0]], [[1.0, 4.0]])
    assert_allclose(predictive.quantile(0.5), [-10 / 3], rtol=1e-12)


def test_zero_weights_leave_every_answer_alone() -> None:
    plain = Predictive.gaussian([1.0], [2.0])
    padded = Predictive.mixture([[0.0, 1.0, 0.0]], [[-1e9, 1.0, 1e9]], [[1e-9, 2.0, 1e9]])
    for q in (1e-9, 0.5, 0.9):
        assert_allclose(padded.quantile(q), plain.quantile(q), rtol=1e-13)
    for name in ("cdf", "log_prob", "crps"):
        assert_allclose(getattr(padded, name)([0.3]), getattr(plain, name)([0.3]), rtol=1e-12)


def test_log_prob_keeps_its_digits_far_out_in_the_tails() -> None:
    predictive = Predictive.mixture([[0.5, 0.5]], [[0.0, 1.0]], [[1.0, 1.0]])
    # At y = 100 the component at 1 leads by exp(99.5), so the other adds nothing.
    assert_allclose(predictive.log_prob([100.0]), stats.norm.logpdf(99.0) + np.log(0.5), rtol=1e-14)


@pytest.mark.parametrize("nu", [0.5, 1.0, 1.5, 4.0, 1e4, 1e10])
def test_student_t_agrees_with_scipy(nu: float) -> None:
    predictive, y = Predictive.student_t([1.0, 2.0], [4.0, 9.0], nu), np.array([0.3, 12.0])
    reference = stats.t(nu, loc=[1.0, 2.0], scale=[2.0, 3.0])
    assert_allclose(predictive.log_prob(y), reference.logpdf(y), rtol=1e-10)
    assert_allclose(predictive.cdf(y), reference.cdf(y), rtol=1e-12)
    assert_allclose(predictive.quantile([1e-9, 0.3, 0.9]), [reference.ppf(q) for q in (1e-9, 0.3, 0.9)], rtol=1e-10)


def test_student_t_with_many_degrees_of_freedom_is_gaussian() -> None:
    heavy, light = Predictive.student_t([1.0], [4.0], 1e12), Predictive.gaussian([1.0], [4.0])
    for name in ("cdf", "log_prob", "crps"):
        assert_allclose(getattr(heavy, name)([2.5]), getattr(light, name)([2.5]), rtol=1e-10)


def test_student_t_moments_vanish_where_they_do_not_exist() -> None:
    predictive = Predictive.student_t([5.0] * 4, [3.0] * 4, [1.0, 1.5, 2.0, 4.0])
    assert_array_equal(predictive.mean, [np.nan, 5.0, 5.0, 5.0])
    assert_array_equal(predictive.variance, [np.inf, np.inf, np.inf, 6.0])


def test_crps_of_a_student_t_without_mean_names_the_row() -> None:
    with pytest.raises(InputError, match=r"more than one degree of freedom; row 1 has 0\.9"):
        Predictive.student_t([0.0, 0.0], [1.0, 1.0], [3.0, 0.9]).crps([0.0, 0.0])


def test_gaussian_is_a_mixture_of_one() -> None:
    predictive = KINDS["gaussian"]
    assert_array_equal(predictive.weights, [[1.0], [1.0]])
    assert_array_equal(predictive.component_means[:, 0], predictive.mean)
    assert_array_equal(predictive.component_variances[:, 0], predictive.variance)


def test_student_t_refuses_to_name_gaussian_components() -> None:
    with pytest.raises(InputError, match="Student-t predictive has no Gaussian components"):
        _ = KINDS["student_t"].component_means


def test_interval_holds_its_coverage_with_equal_tails(predictive: Predictive) -> None:
    lower, upper = predictive.interval(0.8)
    assert_allclose(predictive.cdf(lower), 0.1, rtol=1e-12)
    assert_allclose(predictive.cdf(upper), 0.9, rtol=1e-12)


def test_affine_changes_units_everywhere(predictive: Predictive) -> None:
    scale, shift, y = np.array([-2.0, 3.0]), 5.0, np.array([0.3, -2.5])
    changed = predictive.affine(scale, shift)
    assert_allclose(changed.mean, scale * predictive.mean + shift)
    assert_allclose(changed.variance, scale**2 * predictive.variance)
    assert_allclose(changed.log_prob(scale * y + shift), predictive.log_prob(y) - np.log(np.abs(scale)))
    assert_allclose(changed.crps(scale * y + shift), np.abs(scale) * predictive.crps(y))


@pytest.mark.parametrize("index", [slice(1, None), [1], np.array([False, True]), 1, -1])
def test_indexing_keeps_the_chosen_rows(predictive: Predictive, index: object) -> None:
    chosen = predictive[index]
    assert len(chosen) == 1
    assert_array_equal(chosen.log_prob([0.3]), predictive.log_prob([0.3, 0.3])[1:])
    assert_array_equal(chosen.quantile(0.3), predictive.quantile(0.3)[1:])


@pytest.mark.parametrize("name", ["cdf", "log_prob", "crps"])
def test_a_grid_of_targets_equals_a_loop_over_it(predictive: Predictive, name: str) -> None:
    method, grid = getattr(predictive, name), np.array([[-1.0], [0.0], [2.5]])
    looped = np.array([method([t, t]) for t in grid[:, 0]])
    assert_allclose(method(grid), looped, rtol=1e-14)
    assert_array_equal(method(np.broadcast_to(grid, (3, 2))), method(grid))
    assert_array_equal(method(0.0), method(grid)[1])


def test_a_pandas_series_with_a_foreign_index_counts_by_position() -> None:
    y = pd.Series([0.3, -2.5], index=[7, 3])
    assert_array_equal(KINDS["mixture"].log_prob(y), KINDS["mixture"].log_prob([0.3, -2.5]))


@pytest.mark.parametrize(
    "make", [lambda: 3, lambda: np.random.default_rng(3), lambda: torch.Generator().manual_seed(3)]
)
def test_a_seed_or_generator_fixes_the_draws(predictive: Predictive, make) -> None:
    assert_array_equal(predictive.sample(5, make()), predictive.sample(5, make()))


def test_a_torch_generator_is_advanced_by_sampling() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = (KINDS["gaussian"].sample(5, generator) for _ in range(2))
    assert (first != second).all()


def test_an_unknown_generator_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"numpy\.random.Generator or a torch\.Generator; got str"):
        KINDS["gaussian"].sample(1, generator="seed")


def test_predictive_survives_pickling_and_later_changes_of_its_inputs(predictive: Predictive) -> None:
    assert_array_equal(pickle.loads(pickle.dumps(predictive)).mean, predictive.mean)
    mean = np.zeros(2)
    kept = Predictive.gaussian(mean, [1.0, 1.0])
    mean[:] = 9.0
    assert_array_equal(kept.mean, [0.0, 0.0])
    with pytest.raises(ValueError, match="read-only"):
        kept.component_means[0] = 1.0


def test_weights_are_renormalised_within_tolerance() -> None:
    predictive = Predictive.mixture([[0.5, 0.5 + 9e-7]], [[0.0, 1.0]], [[1.0, 1.0]])
    assert_allclose(predictive.weights.sum(), 1.0, rtol=1e-15)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Predictive.gaussian([0.0, 1.0], [1.0, 0.0]), InputError, r"`variance` .* row 1 is 0\.0"),
        (lambda: Predictive.gaussian([0.0], [np.inf]), InputError, "`variance` .* row 0 is inf"),
        (lambda: Predictive.gaussian([0.0, np.nan], [1.0, 1.0]), NonFiniteError, "`mean` .* row 1 is nan"),
        (lambda: Predictive.gaussian([[0.0]], [1.0]), ShapeError, r"`mean` must have shape \(n,\); got \(1, 1\)"),
        (lambda: Predictive.gaussian([0.0], [1.0, 2.0]), ShapeError, r"`variance` .* \(1,\), .* got \(2,\)"),
        (lambda: Predictive.student_t([0.0], [-1.0], 3.0), InputError, r"`scale2` .* row 0 is -1\.0"),
        (lambda: Predictive.student_t([0.0], [1.0], 0.0), InputError, r"`degrees_of_freedom` .* row 0 is 0\.0"),
        (lambda: Predictive.student_t([0.0], [1.0], [1.0, 2.0]), ShapeError, r"a scalar or have shape \(1,\)"),
        (lambda: Predictive.mixture([[1.0], [0.8]], [[0.0]] * 2, [[1.0]] * 2), InputError, r"row 1 sums to 0\.8"),
        (lambda: Predictive.mixture([[1.5, -0.5]], [[0.0] * 2], [[1.0] * 2]), InputError, "row 0, component 1 is -0.5"),
        (lambda: Predictive.mixture([[0.5, 0.5]], [[0.0] * 2], [[1.0, 0.0]]), InputError, "component 1 is 0.0"),
        (lambda: Predictive.mixture([0.5, 0.5], [[0.0] * 2], [[1.0] * 2]), ShapeError, r"`weights` .* got \(2,\)"),
        (lambda: KINDS["gaussian"].log_prob([1.0]), ShapeError, r"`y` .* \(2,\), .* got \(1,\)"),
        (lambda: KINDS["gaussian"][[[0]]], ShapeError, r"index .* shape \(1, 1\)"),
        (lambda: KINDS["gaussian"].quantile(1.0), InputError, r"strictly between 0 and 1; got 1\.0"),
        (lambda: KINDS["gaussian"].quantile([[0.5]]), ShapeError, r"`q` .* got \(1, 1\)"),
        (lambda: KINDS["gaussian"].interval(90), InputError, "strictly between 0 and 1; got 90"),
        (lambda: KINDS["gaussian"].affine(0.0, 1.0), InputError, r"`scale squared` .* row 0 is 0\.0"),
        (lambda: KINDS["gaussian"].affine(1.0, [1.0] * 3), ShapeError, r"`shift` .* got \(3,\)"),
    ],
)
def test_a_bad_argument_is_named_with_its_place_and_value(make, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_repr_tells_kind_and_length() -> None:
    assert [repr(predictive) for predictive in KINDS.values()] == [
        "Predictive(Gaussian, n=2)",
        "Predictive(Student-t, n=2)",
        "Predictive(mixture of 3 Gaussians, n=2)",
    ]
