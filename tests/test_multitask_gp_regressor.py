"""The front door for several targets: units, missing targets, joint samples, files."""

import json
from pathlib import Path

import numpy as np
import pytest
from gpytorch.kernels import MaternKernel, RBFKernel
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

import gpmoe
from gpmoe import GPRegressor, MultitaskGPRegressor
from gpmoe.errors import FileFormatError, InputError, NonFiniteError, ShapeError
from gpmoe.kernels import ConvolvedTaskKernel, FreeCoregionalisation

Array = NDArray[np.float64]


@parametrize_with_checks([MultitaskGPRegressor()])
def test_scikit_learns_contract_is_kept(estimator, check) -> None:
    check(estimator)


def targets(X: Array) -> Array:
    wave = np.sin(X[:, 0] / 3) + 0.2 * X[:, 1]
    return np.stack([5 + wave, 100 - 20 * wave, np.cos(X[:, 0])], axis=1)


@pytest.fixture(scope="module")
def rows() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    X = rng.uniform(0, 10, (40, 2))
    Y = targets(X) + rng.standard_normal((40, 3)) * [0.05, 1.0, 0.05]
    Y[rng.random((40, 3)) < 0.2] = np.nan
    return X, Y


@pytest.fixture(scope="module")
def fitted(rows: tuple[Array, Array]) -> MultitaskGPRegressor:
    return MultitaskGPRegressor().fit(*rows)


def test_missing_targets_are_predicted_at_their_rows(fitted: MultitaskGPRegressor, rows: tuple[Array, Array]) -> None:
    X, Y = rows
    mean, std = fitted.predict(X, return_std=True)
    missing = np.isnan(Y)
    z = (mean - targets(X))[missing] / std[missing]
    assert np.abs(z).max() < 4
    assert fitted.score(X, targets(X)) > 0.9
    assert fitted.score(X, Y) == pytest.approx(fitted.score(X, Y, np.ones(40)))


def test_one_task_tells_of_another(rows: tuple[Array, Array]) -> None:
    X, Y = rows
    where = X[:, 0] > 6
    hidden = np.where(where[:, None] & (np.arange(3) == 1), np.nan, Y)
    together, apart = (MultitaskGPRegressor(rank=rank).fit(X, hidden).predict(X) for rank in (1, 0))
    errors = [np.abs(found - targets(X))[where, 1].mean() for found in (together, apart)]
    assert errors[0] < 0.5 * errors[1]


def test_every_answer_tells_of_one_distribution(fitted: MultitaskGPRegressor, rows: tuple[Array, Array]) -> None:
    X, _ = rows
    mean, std = fitted.predict(X[:4], return_std=True)
    distributions = fitted.predict_dist(X[:4])
    assert np.allclose(np.stack([each.mean for each in distributions], 1), mean)
    assert np.allclose(np.stack([each.stddev for each in distributions], 1), std)
    also, covariance = fitted.predict(X[:4], return_cov=True)
    assert np.allclose(also, mean)
    assert np.allclose(np.diag(covariance).reshape(4, 3), std**2)
    latent = np.stack([each.variance for each in fitted.predict_latent_dist(X[:4])], 1)
    noise = fitted.model_.noise().numpy() * fitted.target_scaling_.scale**2
    assert np.allclose(latent + noise, std**2)
    lower, upper = fitted.predict_interval(X[:4])
    assert np.allclose((lower + upper) / 2, mean)
    with pytest.raises(InputError, match="both"):
        fitted.predict(X, return_std=True, return_cov=True)


def test_samples_are_joint_over_tasks_and_rows(fitted: MultitaskGPRegressor, rows: tuple[Array, Array]) -> None:
    X, _ = rows
    far = X[:2] + 30
    draws = fitted.sample_y(far, 4000, random_state=1)
    assert draws.shape == (2, 3, 4000)
    mean, covariance = fitted.predict(far, return_cov=True)
    flat = draws.reshape(6, -1)
    scale = np.sqrt(np.diag(covariance))
    correlation = covariance / scale / scale[:, None]
    assert np.abs((flat.mean(1) - mean.reshape(-1)) / scale).max() < 4 / np.sqrt(4000)
    assert np.abs(np.corrcoef(flat) - correlation).max() < 4 / np.sqrt(4000)
    assert abs(correlation[0, 1]) > 0.5
    assert np.array_equal(draws, fitted.sample_y(far, 4000, random_state=1))


def test_the_log_score_counts_what_is_there(fitted: MultitaskGPRegressor, rows: tuple[Array, Array]) -> None:
    X, Y = rows
    densities = [
        each.log_prob(y)[known]
        for each, y, known in zip(fitted.predict_dist(X), np.nan_to_num(Y).T, ~np.isnan(Y).T, strict=True)
    ]
    assert fitted.log_score(X, Y) == pytest.approx(np.concatenate(densities).mean())


def test_units_do_not_matter(fitted: MultitaskGPRegressor, rows: tuple[Array, Array]) -> None:
    X, Y = rows
    scale, shift = np.array([2.0, 16.0, 0.25]), np.array([8.0, -32.0, 1.0])
    other = MultitaskGPRegressor().fit(4 * X - 8, Y * scale + shift)
    assert np.allclose(other.predict(4 * X - 8), fitted.predict(X) * scale + shift, rtol=1e-3, atol=1e-3)


def test_a_single_task_is_a_single_gp(rows: tuple[Array, Array]) -> None:
    """With the same kernel, mean and noise the two predict alike; the parametrisation of the variance differs."""
    X, Y = rows
    X, y = X[~np.isnan(Y[:, 0])], Y[~np.isnan(Y[:, 0]), 0]
    one, other = GPRegressor().fit(X, y), MultitaskGPRegressor(rank=0).fit(X, y[:, None])
    assert np.allclose(other.predict(X)[:, 0], one.predict(X), atol=0.02)
    assert other.predict(X).shape == (len(X), 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_components": 2, "rank": 2},
        {"tasks": "outlier", "noise": [0.01, 1.0, 0.01], "random_state": 3, "n_restarts": 1},
        {"kernels": [RBFKernel(), MaternKernel(nu=1.5)], "solver": "dense", "noise": 0.01},
        {"kernels": [ConvolvedTaskKernel(FreeCoregionalisation(3), n_inputs=2)], "noise": 0.01},
        {"n_components": "auto"},
    ],
    ids=["plain", "linear model", "gate", "own kernels", "convolved", "auto"],
)
def test_a_file_holds_everything(options: dict[str, object], rows: tuple[Array, Array], tmp_path: Path) -> None:
    X, Y = rows
    model = MultitaskGPRegressor(**options).fit(X, Y)
    model.save(tmp_path / "model.gpmoe")
    other = gpmoe.load(tmp_path / "model.gpmoe")
    assert np.array_equal(other.predict(X + 0.3), model.predict(X + 0.3))
    assert other.report_ == model.report_
    for name, value in model.get_params().items():
        assert name == "kernels" or np.array_equal(getattr(other, name), value), name
    assert np.allclose(other.fit(X, Y).predict(X), model.predict(X), rtol=1e-4, atol=1e-4)


def test_a_file_whose_parts_do_not_fit_is_refused(
    fitted: MultitaskGPRegressor, rows: tuple[Array, Array], tmp_path: Path
) -> None:
    data, tensors = fitted.to_parts()
    json.dumps(data)
    with pytest.raises(ShapeError):
        MultitaskGPRegressor.from_parts(data, {**tensors, "Y": tensors["Y"][:, :2]})
    (tmp_path / "model.gpmoe").write_bytes(b"no model")
    with pytest.raises(FileFormatError):
        gpmoe.load(tmp_path / "model.gpmoe")


def test_the_report_names_the_way(fitted: MultitaskGPRegressor) -> None:
    assert fitted.report_.solver.startswith(("complement", "dense"))
    assert "of 120 cells" in fitted.report_.solver
    x = np.linspace(0, 5, 150)[:, None]
    model = MultitaskGPRegressor(n_components=2, rank=0, noise=0.01).fit(x, np.hstack([np.sin(x), np.cos(x)]))
    assert model.report_.solver.startswith("filter")
    assert model.model_.plan.method == "filter"


def test_targets_that_do_not_fit_are_refused(rows: tuple[Array, Array]) -> None:
    X, Y = rows
    model = MultitaskGPRegressor()
    with pytest.raises(ShapeError, match="one column for each task"):
        model.fit(X, Y[:, 0])
    with pytest.raises(ShapeError, match="same number of rows"):
        model.fit(X, Y[:-1])
    with pytest.raises(NonFiniteError, match="row 2, column 1"):
        model.fit(X, np.where(np.arange(120).reshape(40, 3) == 7, np.inf, Y))
    with pytest.raises(InputError, match=r"columns \[2\]"):
        model.fit(X, np.where(np.arange(3) == 2, np.nan, Y))
    with pytest.raises(InputError, match="'free' or 'outlier'"):
        clone(model).set_params(tasks="odd").fit(X, Y)
    with pytest.raises(InputError, match="a number or 'auto'"):
        clone(model).set_params(n_components="many").fit(X, Y)
    with pytest.raises(ShapeError, match="`noise`"):
        clone(model).set_params(noise=[1.0, 2.0]).fit(X, Y)
