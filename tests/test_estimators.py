"""The front door: scikit-learn's contract, the caller's units, and what bad input is told."""

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from gpmoe import GPRegressor, MixtureOfExpertsRegressor
from gpmoe.data import load_motorcycle, simulate_two_regimes
from gpmoe.errors import GPMoEError, InputError, MemoryLimitError, NonFiniteError, ShapeError
from gpmoe.estimators import memory
from gpmoe.gates import ConstantGate

Table = tuple[np.ndarray, np.ndarray]
Make = Callable[[], GPRegressor | MixtureOfExpertsRegressor]
ESTIMATORS: dict[str, Make] = {
    "gp": GPRegressor,
    "moe": lambda: MixtureOfExpertsRegressor(n_experts=2, random_state=0),
}
either = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)


@parametrize_with_checks([GPRegressor(), MixtureOfExpertsRegressor(n_experts=1)])
def test_scikit_learns_contract_is_kept(estimator, check) -> None:
    check(estimator)


@parametrize_with_checks([MixtureOfExpertsRegressor(), MixtureOfExpertsRegressor(n_experts=2)])
def test_scikit_learns_contract_is_kept_by_mixtures(estimator, check) -> None:
    check(estimator)


def small_table() -> Table:
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, (24, 2))
    return X, np.sin(X[:, 0]) + 0.3 * X[:, 1] + 0.1 * rng.standard_normal(24)


@pytest.fixture(scope="module")
def data() -> Table:
    return small_table()


@pytest.fixture(scope="module", params=ESTIMATORS.values(), ids=ESTIMATORS)
def fitted(request, data: Table):
    return request.param().fit(*data)


@pytest.fixture
def grid() -> np.ndarray:
    return np.random.default_rng(1).uniform(-3, 3, (5, 2))


# Units and formats.


@either
def test_units_of_inputs_and_target_change_nothing_else(make: Make, data: Table, grid) -> None:
    X, y = data
    a, b = np.array([1e3, 2e-4]), np.array([50.0, -3.0])
    mean, std = make().fit(X, y).predict(grid, return_std=True)
    model = make().fit(X * a + b, -7e5 * y + 40)
    other_mean, other_std = model.predict(grid * a + b, return_std=True)
    assert_allclose((other_mean - 40) / -7e5, mean, atol=1e-4)
    assert_allclose(other_std / 7e5, std, rtol=1e-3)


@either
def test_the_log_score_moves_by_the_log_of_the_unit(make: Make, data: Table) -> None:
    X, y = data
    assert make().fit(X, 1000 * y).log_score(X, 1000 * y) == pytest.approx(
        make().fit(X, y).log_score(X, y) - np.log(1000), abs=1e-3
    )


@either
@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_frames_give_the_numbers_of_arrays_and_keep_names(make: Make, frame, data: Table, grid) -> None:
    X, y = data
    model = make().fit(frame({"width": X[:, 0], "height": X[:, 1]}), y)
    assert list(model.feature_names_in_) == ["width", "height"]
    new = frame({"width": grid[:, 0], "height": grid[:, 1]})
    assert_allclose(model.predict(new), make().fit(X, y).predict(grid), atol=1e-5)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame({"height": grid[:, 1], "width": grid[:, 0]}))


def test_a_series_may_be_the_target(data: Table, grid) -> None:
    X, y = data
    wanted = GPRegressor().fit(X, y).predict(grid)
    for series in (pd.Series(y), pl.Series(y), list(y)):
        assert_allclose(GPRegressor().fit(X, series).predict(grid), wanted, rtol=1e-12)


def test_without_scaling_the_kernel_sees_inputs_as_they_are(data: Table, grid) -> None:
    X, y = data
    kernel = ScaleKernel(RBFKernel()).requires_grad_(False)
    kernel.base_kernel.lengthscale, kernel.outputscale = 0.7, 2.0
    model = GPRegressor(kernel, noise=[0.1] * 24, scale=None).fit(X, y)
    K = 2 * np.exp(-0.5 * ((X[:, None] - X) ** 2).sum(-1) / 0.7**2) + 0.1 * np.eye(24)
    K_new = 2 * np.exp(-0.5 * ((grid[:, None] - X) ** 2).sum(-1) / 0.7**2)
    constant = model.model_.mean_module.constant.item()
    mean, std = model.predict(grid, return_std=True)
    assert_allclose(mean, constant + K_new @ np.linalg.solve(K, y - constant), rtol=1e-6, atol=1e-6)
    assert_allclose(std**2, 2.1 - (K_new * np.linalg.solve(K, K_new.T).T).sum(-1), rtol=1e-6)


def test_noise_is_a_variance_in_units_of_y_squared(data: Table, grid) -> None:
    X, y = data
    for noise in (4.0, np.full(24, 4.0)):
        model = GPRegressor(noise=noise).fit(X, 100 * y)
        added = model.predict_dist(grid).variance - model.predict_latent_dist(grid).variance
        assert_allclose(added, 4.0, rtol=1e-6)


def test_the_experts_noise_is_a_variance_in_units_of_y_squared(data: Table, grid) -> None:
    X, y = data
    model = MixtureOfExpertsRegressor(2, GPRegressor(noise=4.0), random_state=0).fit(X, 100 * y)
    added = model.predict_dist(grid).component_variances - model.predict_latent_dist(grid).component_variances
    assert_allclose(added, 4.0, rtol=1e-6)


def test_points_of_large_noise_count_less(data: Table) -> None:
    X, y = data
    noise = np.where(np.arange(24) == 3, 1e6, 0.01)
    spoiled = np.where(np.arange(24) == 3, y + 100, y)
    without = np.arange(24) != 3
    kernel = ScaleKernel(RBFKernel()).requires_grad_(False)
    model = GPRegressor(kernel, noise=noise, scale=None).fit(X, spoiled)
    other = GPRegressor(kernel, noise=noise[without], scale=None).fit(X[without], y[without])
    assert_allclose(model.predict(X), other.predict(X), atol=0.01)


def test_the_experts_take_kernel_noise_and_scaling_of_the_expert(data: Table) -> None:
    expert = GPRegressor(ScaleKernel(MaternKernel(nu=0.5)), noise=0.3, scale=None)
    model = MixtureOfExpertsRegressor(2, expert, gate=ConstantGate(2), random_state=0).fit(*data)
    for part in model.model_.experts:
        assert part.covar_module.base_kernel.nu == 0.5
        assert part.likelihood.noise.item() == pytest.approx(0.3)
    assert model.scaling_.y_scale == 1.0


# What prediction gives.


def test_the_covariance_has_the_variance_on_its_diagonal(fitted, grid) -> None:
    mean, std = fitted.predict(grid, return_std=True)
    same_mean, covariance = fitted.predict(grid, return_cov=True)
    assert_allclose(same_mean, mean, rtol=1e-12)
    assert_allclose(np.diag(covariance), std**2, rtol=1e-8)
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_standard_deviation_and_covariance_can_not_be_asked_for_at_once(fitted, grid) -> None:
    with pytest.raises(InputError, match="can't both be True"):
        fitted.predict(grid, return_std=True, return_cov=True)


def test_samples_agree_with_the_moments(fitted, grid) -> None:
    n = 100_000
    samples = fitted.sample_y(grid, n, random_state=3)
    mean, covariance = fitted.predict(grid, return_cov=True)
    assert samples.shape == (5, n)
    assert (np.abs(samples.mean(1) - mean) < 4 * samples.std(1) / n**0.5).all()
    deviation = samples - mean[:, None]
    products = deviation[:, None] * deviation
    assert (np.abs(products.mean(-1) - covariance) < 4 * products.std(-1) / n**0.5).all()


def test_samples_follow_their_random_state(fitted, grid) -> None:
    first = fitted.sample_y(grid, 2, random_state=1)
    assert np.array_equal(first, fitted.sample_y(grid, 2, random_state=1))
    assert not np.array_equal(first, fitted.sample_y(grid, 2, random_state=2))


def test_samples_of_a_smooth_function_without_noise_can_be_drawn() -> None:
    X = np.linspace(0, 1, 12)[:, None]
    kernel = ScaleKernel(RBFKernel()).requires_grad_(False)
    model = GPRegressor(kernel, noise=np.full(12, 1e-9)).fit(X, np.sin(3 * X[:, 0]))
    grid = np.linspace(0, 1, 100)[:, None]
    assert_allclose(model.sample_y(grid, 1)[:, 0], np.sin(3 * grid[:, 0]), atol=1e-2)


def test_intervals_are_quantiles_and_the_score_is_r2(fitted, data: Table) -> None:
    X, y = data
    predictive = fitted.predict_dist(X)
    assert_allclose(fitted.predict_interval(X, 0.8), predictive.quantile([0.1, 0.9]), rtol=1e-9)
    assert fitted.log_score(X, y) == pytest.approx(predictive.log_prob(y).mean())
    residual = y - fitted.predict(X)
    assert fitted.score(X, y) == pytest.approx(1 - residual @ residual / ((y - y.mean()) ** 2).sum())


def test_the_report_and_the_gate_are_public(data: Table, grid) -> None:
    model = MixtureOfExpertsRegressor(3, random_state=0).fit(*data)
    assert model.n_experts_ == 3
    assert model.responsibilities_.shape == (24, 3)
    assert_allclose(model.predict_gate_probs(grid).sum(1), 1, rtol=1e-12)
    assert model.report_.converged
    assert model.report_.seconds > 0


def test_leave_one_out_equals_fitting_again_without_the_point(data: Table) -> None:
    X, y = data
    model = GPRegressor(scale=None).fit(X, y)
    predictive, kernel = model.leave_one_out(), model.model_.covar_module
    rest = np.arange(24) != 5
    without = GPRegressor(kernel, noise=np.full(23, model.model_.new_noise().item()), scale=None).fit(X[rest], y[rest])
    without.model_.mean_module.constant.data.copy_(model.model_.mean_module.constant)
    assert_allclose(without.predict(X[5:6]), predictive.mean[5:6], rtol=1e-6)
    assert_allclose(without.predict_dist(X[5:6]).variance, predictive.variance[5:6], rtol=1e-6)


def test_leave_one_out_answers_in_units_of_y(fitted, data: Table) -> None:
    X, y = data
    loo = fitted.leave_one_out()
    assert len(loo) == 24
    assert np.corrcoef(loo.mean, y)[0, 1] > 0.8
    assert loo.log_prob(y).mean() < fitted.log_score(X, y)


def coverages(make: Make, simulate: Callable[[int, int], Table], count: int) -> np.ndarray:
    found = []
    for seed in range(count):
        X, y = simulate(60, seed)
        X_new, y_new = simulate(400, 1000 + seed)
        lower, upper = make().fit(X, y).predict_interval(X_new, 0.9)
        found.append(((lower <= y_new) & (y_new <= upper)).mean())
    return np.array(found)


def smooth_curve(n: int, seed: int) -> Table:
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2, 2, (n, 1))
    return X, np.sin(2 * X[:, 0]) + 0.3 * rng.standard_normal(n)


@pytest.mark.parametrize(
    ("name", "simulate", "count"),
    [("gp", smooth_curve, 30), ("moe", lambda n, seed: simulate_two_regimes(n, seed)[:2], 10)],
    ids=["gp", "moe"],
)
def test_intervals_cover_what_they_say(name: str, simulate, count: int) -> None:
    found = coverages(ESTIMATORS[name], simulate, count)
    assert abs(found.mean() - 0.9) < 4 * found.std(ddof=1) / count**0.5


# Choosing the number of experts.


def test_one_expert_is_chosen_for_stationary_data() -> None:
    chosen = [MixtureOfExpertsRegressor(random_state=0).fit(*smooth_curve(40, seed)).n_experts_ for seed in range(3)]
    assert chosen.count(1) >= 2


def test_several_experts_are_chosen_for_the_motorcycle() -> None:
    assert MixtureOfExpertsRegressor(random_state=0).fit(*load_motorcycle()).n_experts_ > 1


@pytest.mark.parametrize("gate", ["softmax", "constant", "gp"])
def test_a_single_expert_predicts_with_any_gate(data: Table, gate: str, grid) -> None:
    model = MixtureOfExpertsRegressor(n_experts=1, gate=gate).fit(*data)
    assert_allclose(model.predict(grid), GPRegressor().fit(*data).predict(grid), rtol=1e-6, atol=1e-6)


# Data at the edge.


def edge_cases() -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Inputs, targets, and how far the mean at the inputs may be from the targets."""
    X, y = small_table()
    return {
        "one row": (X[:1], y[:1], 1e-6),
        "two rows": (X[:2], y[:2], 1.5),
        "three rows": (X[:3], y[:3], 1.5),
        "constant target": (X, np.full(24, 3.0), 1e-6),
        "large constant target": (X, np.full(24, 3e9), 1e-3),
        "constant column": (np.column_stack([X[:, 0], np.full(24, 1e7)]), y, 1.0),
        "repeated rows": (np.repeat(X[:6], 4, 0), np.repeat(y[:6], 4), 0.5),
        "rows that disagree": (np.repeat(X[:6], 4, 0), y, 3.0),
        "one place": (np.repeat(X[:1], 24, 0), y, 3.0),
        "one place, one target": (np.repeat(X[:1], 24, 0), np.full(24, 2.0), 1e-6),
        "huge": (1e12 * X, 1e12 * y, 1e12),
        "tiny": (1e-12 * X, 1e-12 * y, 1e-12),
    }


@pytest.mark.parametrize("case", edge_cases())
@either
def test_data_at_the_edge_give_finite_and_sensible_answers(make: Make, case: str) -> None:
    X, y, tolerance = edge_cases()[case]
    if isinstance(make(), MixtureOfExpertsRegressor) and len(y) < 2:
        with pytest.raises(GPMoEError, match="expert"):
            make().fit(X, y)
        return
    mean, std = make().fit(X, y).predict(X, return_std=True)
    assert np.abs(mean - y).max() <= tolerance
    assert (std > 0).all()
    assert np.isfinite(std).all()


@pytest.mark.parametrize("case", edge_cases())
def test_the_number_of_experts_is_chosen_for_data_at_the_edge(case: str) -> None:
    X, y, tolerance = edge_cases()[case]
    mean = MixtureOfExpertsRegressor(random_state=0).fit(X, y).predict(X)
    assert np.abs(mean - y).max() <= tolerance


@pytest.mark.parametrize("case", edge_cases())
@either
def test_a_call_warns_at_most_once(make: Make, case: str) -> None:
    X, y, _ = edge_cases()[case]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            make().fit(X, y).predict(X)
        except GPMoEError:
            assert len(y) == 1
    assert len(found) <= 1, [str(warning.message) for warning in found]
    assert all(
        issubclass(warning.category, UserWarning) and "n_cluster" not in str(warning.message) for warning in found
    )


def test_a_target_in_a_column_is_read_with_one_warning(data: Table, grid) -> None:
    X, y = data
    with pytest.warns(DataConversionWarning, match="column-vector") as found:
        model = GPRegressor().fit(X, y[:, None])
    assert len(found) == 1
    assert found[0].filename == __file__
    assert_allclose(model.predict(grid), GPRegressor().fit(X, y).predict(grid))


# What bad input is told.


def with_value(array: np.ndarray, index: int | tuple[int, int], value: float) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


X0, Y0 = small_table()
BAD_DATA = {
    "NaN in X": (with_value(X0, (7, 1), np.nan), Y0, NonFiniteError, "X contains NaN: first at row 7, column 1, 1 in"),
    "infinity in X": (
        with_value(X0, (2, 0), np.inf),
        Y0,
        NonFiniteError,
        "contains infinity: first at row 2, column 0",
    ),
    "NaN in y": (X0, with_value(Y0, 5, np.nan), NonFiniteError, "Input y contains NaN: first at row 5"),
    "lengths": (X0, Y0[:20], ShapeError, "same number of rows; got 24 and 20"),
    "two targets": (X0, np.column_stack([Y0, Y0]), ShapeError, r"got \(24, 2\). Fit one model for each column"),
    "complex X": (X0 + 1j, Y0, ValueError, "Complex data not supported"),
    "complex y": (X0, Y0 + 1j, InputError, "must be real; got dtype complex128"),
    "no rows": (X0[:0], Y0[:0], ValueError, r"0 sample\(s\)"),
    "no columns": (X0[:, :0], Y0, ValueError, r"0 feature\(s\)"),
    "flat X": (X0[:, 0], Y0, ValueError, "Expected 2D array, got 1D array"),
    "no target": (X0, None, ValueError, "the target y is None"),
    "words in y": (X0, np.array(["a"] * 24), InputError, "`y` must be numeric; got dtype <U1"),
    "words in X": (np.full((24, 2), "a"), Y0, ValueError, "must hold numbers; row 0, column 0 is 'a'"),
}


@pytest.mark.parametrize("case", BAD_DATA)
@either
def test_bad_data_are_named(make: Make, case: str) -> None:
    X, y, error, text = BAD_DATA[case]
    with pytest.raises(error, match=text):
        make().fit(X, y)


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_a_column_with_a_bad_value_is_named_by_its_name(frame, data: Table) -> None:
    X, y = data
    table = frame({"width": X[:, 0], "height": with_value(X, (4, 1), np.inf)[:, 1]})
    with pytest.raises(NonFiniteError, match=r"row 4, column 1 \('height'\)"):
        GPRegressor().fit(table, y)


def test_prediction_checks_its_inputs(fitted, grid) -> None:
    with pytest.raises(ValueError, match=r"3 features, but .* is expecting 2 features"):
        fitted.predict(np.ones((4, 3)))
    with pytest.raises(NonFiniteError, match="row 1, column 0"):
        fitted.predict_dist(with_value(grid, (1, 0), np.nan))
    with pytest.raises(ShapeError, match="got 5 and 3"):
        fitted.log_score(grid, np.zeros(3))
    with pytest.raises(InputError, match="`coverage` must lie strictly between 0 and 1; got 90"):
        fitted.predict_interval(grid, 90)


@either
def test_predicting_before_fitting_is_refused(make: Make, grid, tmp_path) -> None:
    for call in (lambda: make().predict(grid), lambda: make().sample_y(grid), lambda: make().save(tmp_path / "model")):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            call()


@pytest.mark.parametrize(
    ("estimator", "text"),
    [
        (MixtureOfExpertsRegressor(2, gate="tree"), "'uncertainty_router', or a Gate; got 'tree'"),
        (MixtureOfExpertsRegressor(inference="gibbs"), "`inference` must be 'vbem', 'svi' or 'hard'; got 'gibbs'"),
        (MixtureOfExpertsRegressor(0), "'auto' or a whole number of at least 1; got 0"),
        (MixtureOfExpertsRegressor(2.0), "'auto' or a whole number of at least 1; got 2.0"),
        (MixtureOfExpertsRegressor("many"), "'auto' or a whole number of at least 1; got 'many'"),
        (MixtureOfExpertsRegressor(gate=ConstantGate(2)), "pass that number as `n_experts` too"),
        (MixtureOfExpertsRegressor(3, gate=ConstantGate(2)), "must have 3 experts; got one of 2"),
        (MixtureOfExpertsRegressor(2, GPRegressor(noise=np.ones(24))), "must be one number or None"),
        (MixtureOfExpertsRegressor(25), "25"),
        (GPRegressor(scale="minmax"), "`scale` must be 'standardise' or None; got 'minmax'"),
        (GPRegressor(noise=0.0), "positive and finite; got a minimum of 0.0"),
        (GPRegressor(noise=[1.0, 2.0]), r"a number or have shape \(24,\); got \(2,\)"),
        (GPRegressor(noise=np.full(24, np.nan)), "must be positive and finite"),
        (MixtureOfExpertsRegressor(2, GPRegressor(noise=-1.0)), "positive and finite"),
    ],
)
def test_wrong_arguments_are_named(estimator, text: str, data: Table) -> None:
    with pytest.raises(InputError, match=text):
        estimator.fit(*data)


@pytest.mark.parametrize("n_experts", [1, 3, "auto"])
def test_what_does_not_fit_into_memory_is_refused(monkeypatch, data: Table, n_experts) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 4000)
    text = r"n=24 rows needs 0\.0 GB \(\d+ bytes\).*random subset of the rows.*sparse.*more memory"
    for model in (GPRegressor(), MixtureOfExpertsRegressor(n_experts)):
        with pytest.raises(MemoryLimitError, match=text):
            model.fit(*data)


def test_memory_at_hand_is_measured() -> None:
    assert 2**20 < memory.available_bytes() < 2**60


# What is left alone.


@either
def test_nothing_that_is_passed_in_is_modified(make: Make, data: Table, grid) -> None:
    X, y, new = data[0].copy(), data[1].copy(), grid.copy()
    for array in (X, y, new):
        array.setflags(write=False)
    for frame in (X, pd.DataFrame(X, columns=["a", "b"])):
        model = make().fit(frame, y)
        model.predict(frame[:5], return_std=True)
        model.sample_y(frame[:5])
    assert np.array_equal(X, data[0])
    assert np.array_equal(y, data[1])


def test_the_models_do_not_look_at_later_changes_of_the_data(data: Table, grid) -> None:
    X, y = data[0].copy(), data[1].copy()
    for make in (*ESTIMATORS.values(), lambda: GPRegressor(scale=None)):
        model = make().fit(X, y)
        before = model.predict(grid)
        X += 1
        y *= 2
        assert np.array_equal(model.predict(grid), before)


@either
def test_kernels_and_noise_are_copied(make: Make, data: Table) -> None:
    kernel, noise = ScaleKernel(RBFKernel(ard_num_dims=2)), np.array(0.2)
    state = {name: value.clone() for name, value in kernel.state_dict().items()}
    expert = GPRegressor(kernel, noise=[0.2] * 24).fit(*data)
    MixtureOfExpertsRegressor(2, GPRegressor(kernel), random_state=0).fit(*data)
    assert expert.kernel is kernel
    assert all(torch.equal(value, state[name]) for name, value in kernel.state_dict().items())
    assert all(parameter.requires_grad for parameter in kernel.parameters())
    assert noise == 0.2


def test_a_gate_that_is_passed_in_is_copied_and_the_expert_left_unfitted(data: Table) -> None:
    gate, expert = ConstantGate(2), GPRegressor()
    model = MixtureOfExpertsRegressor(2, expert, gate, random_state=0).fit(*data)
    assert model.model_.gate is not gate
    assert torch.equal(gate.logits, torch.zeros(2, dtype=torch.float64))
    assert not hasattr(expert, "model_")


def numpy_state() -> np.ndarray:
    return np.random.get_state()[1]  # noqa: NPY002 - the global state must be left alone


def test_fitting_leaves_dtype_threads_and_chance_alone(data: Table, grid) -> None:
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.get_rng_state(), numpy_state()
    for make in ESTIMATORS.values():
        make().fit(*data).sample_y(grid)
    assert torch.get_default_dtype() == before[0]
    assert torch.get_num_threads() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert np.array_equal(numpy_state(), before[3])


def test_clones_take_kernels_gates_and_experts(data: Table, grid) -> None:
    expert = GPRegressor(ScaleKernel(RBFKernel()), n_restarts=1, random_state=3)
    model = MixtureOfExpertsRegressor(2, expert, ConstantGate(2), random_state=1)
    assert_allclose(clone(model).fit(*data).predict(grid), model.fit(*data).predict(grid))
    assert model.get_params()["expert__n_restarts"] == 1


def test_restarts_follow_the_random_state_and_never_lose(data: Table) -> None:
    first, second = (GPRegressor(n_restarts=2, random_state=5).fit(*data).report_ for _ in range(2))
    assert first.starts == second.starts
    assert len(first.starts) == 3
    assert max(first.starts) >= GPRegressor().fit(*data).report_.objective_trace[-1] - 1e-6
