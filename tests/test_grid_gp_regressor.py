"""The front door for grids: axes found, predictions in the caller's units, files."""

import json

import numpy as np
import pytest
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from numpy.typing import NDArray
from sklearn.base import clone

from gpmoe import metrics
from gpmoe.errors import InputError, MemoryLimitError, NonFiniteError
from gpmoe.estimators import grid_axes
from gpmoe.estimators.grid_axes import find_grid
from gpmoe.estimators.grid_gp_regressor import GridGPRegressor
from gpmoe.linalg.complement import Iterative

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def rows() -> tuple[Array, Array]:
    """Ten places of two coordinates at eight times, columns mixed up, a fifth of the rows missing, in no order."""
    rng = np.random.default_rng(0)
    places, times = rng.uniform(0, 100, (10, 2)), np.arange(8) * 3.0
    X = np.array([[x, t, z] for x, z in places for t in times])
    y = 5 + 2 * np.sin(X[:, 1] / 4) * np.cos(X[:, 0] / 30) + 0.05 * rng.standard_normal(len(X))
    kept = rng.permutation(len(X))[:64]
    return X[kept], y[kept]


@pytest.fixture(scope="module")
def fitted(rows: tuple[Array, Array]) -> GridGPRegressor:
    return GridGPRegressor().fit(*rows)


def test_the_axes_are_found(fitted: GridGPRegressor, rows: tuple[Array, Array]) -> None:
    assert fitted.axes_ == [[0, 2], [1]]
    assert fitted.grid_shape_ == (10, 8)
    grid = find_grid(rows[0])
    back = np.concatenate([points[code] for points, code in zip(grid.points, grid.cells, strict=True)], axis=1)
    assert np.array_equal(back, rows[0][:, [0, 2, 1]])


def test_predictions_are_those_of_dense_algebra(fitted: GridGPRegressor, rows: tuple[Array, Array]) -> None:
    X, y = rows
    model, X_new = fitted.model_, X[:5] + 0.7

    def covariance(A: Array, B: Array) -> Array:
        a, b = (fitted.scaling_.inputs(part)[:, [0, 2, 1]].split([2, 1], dim=1) for part in (A, B))
        parts = [kernel(x, z).to_dense() for kernel, x, z in zip(model.kernels, a, b, strict=True)]
        return (parts[0] * parts[1]).numpy()

    noise, mean = float(model.noise()), float(model.mean_module.constant)
    weights = np.linalg.solve(covariance(X, X) + noise * np.eye(len(X)), covariance(X, X_new))
    scaled = (y - fitted.scaling_.y_shift) / fitted.scaling_.y_scale
    expected = fitted.scaling_.y_shift + fitted.scaling_.y_scale * (mean + weights.T @ (scaled - mean))
    variance = np.diag(covariance(X_new, X_new) - weights.T @ covariance(X, X_new))
    found, std = fitted.predict(X_new, return_std=True)
    assert np.allclose(found, expected)
    assert np.allclose(std, np.sqrt(variance + noise) * fitted.scaling_.y_scale)
    assert np.allclose(fitted.predict_latent_dist(X_new).stddev, np.sqrt(variance) * fitted.scaling_.y_scale)


def test_missing_cells_are_predicted(fitted: GridGPRegressor, rows: tuple[Array, Array]) -> None:
    X, _ = rows
    places, times = np.unique(X[:, [0, 2]], axis=0), np.unique(X[:, 1])
    every = np.array([[x, t, z] for x, z in places for t in times])
    truth = 5 + 2 * np.sin(every[:, 1] / 4) * np.cos(every[:, 0] / 30)
    assert np.sqrt(np.mean((fitted.predict(every) - truth) ** 2)) < 0.2
    assert fitted.log_score(every, truth) > 0
    assert fitted.report_.solver.startswith("complement")


def test_everything_a_probabilistic_regressor_does(fitted: GridGPRegressor, rows: tuple[Array, Array]) -> None:
    X, y = rows
    mean, covariance = fitted.predict(X[:4], return_cov=True)
    assert np.allclose(np.sqrt(np.diag(covariance)), fitted.predict(X[:4], return_std=True)[1])
    samples = fitted.sample_y(X[:4], 3000, random_state=0)
    assert np.abs(samples.mean(1) - mean).max() < 4.5 * np.sqrt(np.diag(covariance).max() / 3000)
    lower, upper = fitted.predict_interval(X)
    assert (lower < upper).all()
    assert fitted.score(X, y) > 0.95
    assert metrics.log_score(fitted.predict_dist(X), y) == pytest.approx(fitted.log_score(X, y))


def test_units_do_not_matter(rows: tuple[Array, Array], fitted: GridGPRegressor) -> None:
    X, y = rows
    other = GridGPRegressor().fit(4 * X - 8, 16 * y + 32)  # powers of two scale without rounding
    assert np.allclose(other.predict(4 * X - 8), 16 * fitted.predict(X) + 32, rtol=1e-4)


def test_the_order_of_rows_does_not_matter(rows: tuple[Array, Array], fitted: GridGPRegressor) -> None:
    X, y = rows
    other = GridGPRegressor().fit(X[::-1], y[::-1])
    assert np.allclose(other.predict(X), fitted.predict(X), rtol=1e-4)


def test_own_kernels_axes_and_noise_are_taken_and_not_changed(rows: tuple[Array, Array]) -> None:
    X, y = rows
    kernels = [ScaleKernel(RBFKernel()), MaternKernel(nu=1.5)]
    before = [kernel.state_dict() for kernel in kernels]
    model = GridGPRegressor(kernels, axes=[[1], [2, 0]], noise=0.01).fit(X, y)
    assert model.axes_ == [[1], [2, 0]]
    assert model.model_.noise().item() * model.scaling_.y_scale**2 == pytest.approx(0.01)
    for kernel, state in zip(kernels, before, strict=True):
        assert all((kernel.state_dict()[key] == value).all() for key, value in state.items())
    assert clone(model).get_params()["noise"] == 0.01


@pytest.mark.parametrize("own", [True, False])
def test_parts_put_together_predict_alike(rows: tuple[Array, Array], own: bool) -> None:
    X, y = rows
    kernels = [ScaleKernel(RBFKernel()), MaternKernel(nu=1.5)] if own else None
    solver = Iterative(tolerance=1e-8) if own else "auto"
    model = GridGPRegressor(kernels, axes=[[1], [2, 0]], solver=solver)
    model = model.fit(X, y) if not own else GridGPRegressor(kernels, [[1], [2, 0]], 0.01, solver).fit(X, y)
    data, tensors = model.to_parts()
    other = GridGPRegressor.from_parts(json.loads(json.dumps(data)), tensors)
    assert np.array_equal(other.predict(X), model.predict(X))
    assert other.report_ == model.report_
    assert other.get_params().keys() == model.get_params().keys()
    assert other.solver == solver


def test_restarts_are_fixed_by_the_random_state(rows: tuple[Array, Array]) -> None:
    X, y = rows
    first, second = (GridGPRegressor(n_restarts=1, random_state=3).fit(X, y) for _ in range(2))
    assert np.array_equal(first.predict(X), second.predict(X))
    assert len(first.report_.starts) == 2


def test_scattered_rows_are_refused_with_the_ways_out() -> None:
    X = np.random.default_rng(0).standard_normal((30, 3))
    with pytest.raises(InputError, match=r"don't lie on a grid.*GPRegressor"):
        GridGPRegressor().fit(X, X[:, 0])


def test_one_column_is_one_axis() -> None:
    X = np.linspace(0, 3, 12).reshape(-1, 1)
    assert GridGPRegressor().fit(X, np.sin(X[:, 0])).axes_ == [[0]]


def test_two_rows_in_one_cell_are_refused(rows: tuple[Array, Array]) -> None:
    X, y = rows
    with pytest.raises(InputError, match="rows 3 and 64 of X are the same cell"):
        GridGPRegressor().fit(np.concatenate([X, X[3:4]]), np.append(y, 0.0))


def test_axes_must_name_each_column_once(rows: tuple[Array, Array]) -> None:
    for axes in ([[0], [1]], [[0, 1], [1, 2]], [[0, 1, 2], []]):
        with pytest.raises(InputError, match="each of the 3 columns once"):
            GridGPRegressor(axes=axes).fit(*rows)


def test_kernels_must_fit_the_axes(rows: tuple[Array, Array]) -> None:
    with pytest.raises(InputError, match=r"got 1.*\[\[0, 2\], \[1\]\]"):
        GridGPRegressor([RBFKernel()]).fit(*rows)


def test_a_grid_too_large_is_refused_with_its_size(rows: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_axes, "_MOST_CELLS", 79)
    with pytest.raises(MemoryLimitError, match="10 x 8 = 80 cells"):
        GridGPRegressor().fit(*rows)


def test_gaps_are_rows_left_out_not_nan(rows: tuple[Array, Array]) -> None:
    X, y = rows
    with pytest.raises(NonFiniteError, match="row 0"):
        GridGPRegressor().fit(X, np.where(np.arange(len(y)) == 0, np.nan, y))
