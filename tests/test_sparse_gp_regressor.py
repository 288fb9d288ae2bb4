"""The sparse regressor: scikit-learn's contract, the exact regressor's answers, files, and what bad input is told."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from gpmoe import GPRegressor, load
from gpmoe.errors import InputError, NotConvergedWarning, ShapeError
from gpmoe.estimators.sparse_gp_regressor import SparseGPRegressor
from gpmoe.models.sparse_gp import SparseGP
from gpmoe.models.stochastic_variational_gp import StochasticVariationalGP

Table = tuple[np.ndarray, np.ndarray]
INFERENCES = ["collapsed", "stochastic"]
either = pytest.mark.parametrize("inference", INFERENCES)


def quietly_fitted(model: SparseGPRegressor, X: np.ndarray, y: np.ndarray) -> SparseGPRegressor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        return model.fit(X, y)


@pytest.mark.filterwarnings("ignore::gpmoe.errors.NotConvergedWarning")
@parametrize_with_checks([SparseGPRegressor(n_inducing=5, max_iterations=10)])
def test_scikit_learns_contract_is_kept(estimator, check) -> None:
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::gpmoe.errors.NotConvergedWarning")
@parametrize_with_checks([SparseGPRegressor(n_inducing=5, inference="stochastic", max_iterations=30, random_state=0)])
def test_scikit_learns_contract_is_kept_with_minibatches(estimator, check) -> None:
    check(estimator)


def small_table() -> Table:
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, (120, 2))
    return X, np.sin(X[:, 0]) + 0.3 * X[:, 1] + 0.1 * rng.standard_normal(120)


@pytest.fixture(scope="module")
def data() -> Table:
    return small_table()


@pytest.fixture(scope="module")
def grid() -> np.ndarray:
    return np.random.default_rng(1).uniform(-2, 2, (7, 2))


@pytest.fixture(scope="module", params=INFERENCES)
def fitted(request, data: Table) -> SparseGPRegressor:
    return quietly_fitted(SparseGPRegressor(15, inference=request.param, random_state=0), *data)


def test_few_inducing_points_answer_nearly_as_the_exact_process(fitted, data: Table, grid) -> None:
    mean, std = fitted.predict(grid, return_std=True)
    wanted, wanted_std = GPRegressor().fit(*data).predict(grid, return_std=True)
    assert_allclose(mean, wanted, atol=0.05)
    assert_allclose(std, wanted_std, rtol=0.2)


def test_with_a_point_for_each_row_it_is_the_exact_process(data: Table, grid) -> None:
    X, y = data
    mean, std = SparseGPRegressor(len(X), random_state=0).fit(X, y).predict(grid, return_std=True)
    wanted, wanted_std = GPRegressor().fit(X, y).predict(grid, return_std=True)
    assert_allclose(mean, wanted, atol=1e-4)
    assert_allclose(std, wanted_std, rtol=1e-3)


@either
def test_units_of_inputs_and_target_change_nothing_else(inference: str, data: Table, grid) -> None:
    X, y = data
    a, b = np.array([1e3, 2e-4]), np.array([50.0, -3.0])
    first, second = (SparseGPRegressor(10, inference=inference, max_iterations=20, random_state=0) for _ in range(2))
    mean, std = quietly_fitted(first, X, y).predict(grid, return_std=True)
    other_mean, other_std = quietly_fitted(second, X * a + b, -7e5 * y + 40).predict(grid * a + b, return_std=True)
    assert_allclose((other_mean - 40) / -7e5, mean, atol=2e-2)
    assert_allclose(other_std / 7e5, std, rtol=5e-2)


@either
def test_the_random_state_fixes_every_number(inference: str, data: Table, grid) -> None:
    model = SparseGPRegressor(10, inference=inference, max_iterations=5, random_state=3)
    first, again = (quietly_fitted(clone(model), *data).predict(grid, return_std=True) for _ in range(2))
    assert np.array_equal(first, again)


def test_the_parts_are_public(fitted, data: Table, grid) -> None:
    kind = SparseGP if fitted.inference == "collapsed" else StochasticVariationalGP
    assert isinstance(fitted.model_, kind)
    assert fitted.model_.inducing_points.shape == (15, 2)
    assert fitted.report_.seconds > 0
    mean, covariance = fitted.predict(grid, return_cov=True)
    assert_allclose(covariance.diagonal(), fitted.predict(grid, return_std=True)[1] ** 2, rtol=1e-6)
    samples = fitted.sample_y(grid, 20_000, random_state=0)
    assert_allclose(samples.mean(1), mean, atol=4 * covariance.diagonal().max() ** 0.5 / 20_000**0.5)
    assert fitted.log_score(*data) > 0


@pytest.mark.parametrize("noise", [0.02, "each"])
@either
def test_noise_is_a_variance_in_units_of_y_squared(inference: str, noise, data: Table, grid) -> None:
    X, y = data
    noise = np.random.default_rng(2).uniform(0.01, 0.1, len(y)) if noise == "each" else noise
    wanted = GPRegressor(noise=9.0 * noise).fit(X, 3 * y).predict_latent_dist(grid)
    model = SparseGPRegressor(30, noise=9.0 * noise, inference=inference, max_iterations=100, random_state=0)
    got = quietly_fitted(model, X, 3 * y).predict_latent_dist(grid)
    assert_allclose(got.mean, wanted.mean, atol=0.1)
    assert_allclose(got.stddev, wanted.stddev, rtol=0.5)
    total = model.predict_dist(grid).variance - got.variance
    assert_allclose(total, np.mean(9.0 * noise), rtol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"inference": "stochastic", "max_iterations": 5},
        {"kernel": ScaleKernel(RBFKernel(active_dims=(0,))) + MaternKernel(nu=1.5), "noise": 0.05},
        {"inference": "stochastic", "max_iterations": 5, "noise": np.linspace(0.01, 0.2, 120), "scale": None},
    ],
    ids=["collapsed", "stochastic", "kernel and noise", "noise of each row"],
)
def test_a_file_keeps_every_prediction(arguments: dict, data: Table, grid, tmp_path: Path) -> None:
    model = quietly_fitted(SparseGPRegressor(10, random_state=0, **arguments), *data)
    model.save(tmp_path / "model.gpmoe")
    again = load(tmp_path / "model.gpmoe")
    for one, other in zip(model.predict(grid, return_std=True), again.predict(grid, return_std=True), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(model.sample_y(grid, 2), again.sample_y(grid, 2))
    assert again.report_ == model.report_
    assert again.get_params().keys() == model.get_params().keys()
    refitted = (quietly_fitted(each, *data).predict(grid) for each in (model, again))
    assert np.array_equal(*refitted)


def edge_cases() -> dict[str, Table]:
    X, y = (part[:24] for part in small_table())
    return {
        "one row": (X[:1], y[:1]),
        "two rows": (X[:2], y[:2]),
        "constant target": (X, np.full(24, 3.0)),
        "constant column": (np.column_stack([X[:, 0], np.full(24, 1e7)]), y),
        "repeated rows": (np.repeat(X[:6], 4, 0), np.repeat(y[:6], 4)),
        "one place": (np.repeat(X[:1], 24, 0), y),
        "huge": (1e12 * X, 1e12 * y),
    }


@pytest.mark.parametrize("case", edge_cases())
@either
def test_data_at_the_edge_give_finite_answers(inference: str, case: str) -> None:
    X, y = edge_cases()[case]
    model = SparseGPRegressor(5, inference=inference, max_iterations=20, random_state=0)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        mean, std = model.fit(X, y).predict(X, return_std=True)
    assert len(found) <= 1, [str(warning.message) for warning in found]
    assert np.isfinite(mean).all()
    assert (np.isfinite(std) & (std > 0)).all()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"inference": "exact"}, InputError, "'collapsed' or 'stochastic'"),
        ({"n_inducing": 0}, InputError, "`n_inducing` must be a whole number of at least 1; got 0"),
        ({"noise": -1.0}, InputError, "must be positive"),
        ({"noise": [0.1, 0.2]}, ShapeError, r"shape \(120,\)"),
        ({"scale": "log"}, InputError, "`scale`"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments: dict, error, text: str, data: Table) -> None:
    with pytest.raises(error, match=text):
        SparseGPRegressor(**arguments).fit(*data)


def test_what_is_passed_in_is_copied(data: Table) -> None:
    kernel = ScaleKernel(RBFKernel())
    before = kernel.outputscale.item()
    SparseGPRegressor(5, kernel=kernel, max_iterations=500, random_state=0).fit(data[0][:30], data[1][:30])
    assert kernel.outputscale.item() == before
