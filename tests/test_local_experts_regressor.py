"""The regressor of local experts: scikit-learn's contract, files, rows read in blocks, and other machines."""

import os
import pickle
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import get_args

import joblib
import numpy as np
import polars as pl
import pytest
from gpytorch.kernels import RBFKernel, ScaleKernel
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from gpmoe import GPRegressor, load
from gpmoe.data.row_blocks import ArrayBlocks, ParquetBlocks, RowFile
from gpmoe.errors import FileFormatError, InputError, NotConvergedWarning, ShapeError
from gpmoe.estimators.local_experts_regressor import LocalExpertsRegressor
from gpmoe.inference.fit_from_file import fit_from_file
from gpmoe.inference.fit_local_experts import ExpertPlan
from gpmoe.models.aggregation import Aggregation

Table = tuple[np.ndarray, np.ndarray]
RULES = get_args(Aggregation)


@parametrize_with_checks([LocalExpertsRegressor(points_per_expert=10)])
def test_scikit_learns_contract_is_kept(estimator, check) -> None:
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::gpmoe.errors.NotConvergedWarning")
@parametrize_with_checks(
    [
        LocalExpertsRegressor(points_per_expert=10, aggregation="cpoe"),
        LocalExpertsRegressor(points_per_expert=10, aggregation="rbcm", shared=False),
    ]
)
def test_scikit_learns_contract_is_kept_by_other_rules(estimator, check) -> None:
    check(estimator)


def small_table(n: int = 150) -> Table:
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, (n, 2))
    return X, np.sin(2 * X[:, 0]) + 0.3 * X[:, 1] + 0.1 * rng.standard_normal(n)


@pytest.fixture(scope="module")
def data() -> Table:
    return small_table()


@pytest.fixture(scope="module")
def grid() -> np.ndarray:
    return np.random.default_rng(1).uniform(-2, 2, (7, 2))


@pytest.fixture(scope="module")
def fitted(data: Table) -> LocalExpertsRegressor:
    return LocalExpertsRegressor(points_per_expert=30, random_state=0).fit(*data)


def test_one_expert_with_all_rows_is_the_exact_regressor(data: Table, grid) -> None:
    wanted = GPRegressor().fit(*data).predict(grid, return_std=True)
    got = LocalExpertsRegressor(points_per_expert=150).fit(*data).predict(grid, return_std=True)
    assert_allclose(got[0], wanted[0], atol=1e-3)
    assert_allclose(got[1], wanted[1], rtol=1e-2)


def test_units_of_inputs_and_target_change_nothing_else(fitted, data: Table, grid) -> None:
    X, y = data
    a, b = np.array([1e3, 2e-4]), np.array([50.0, -3.0])
    mean, std = fitted.predict(grid, return_std=True)
    other = clone(fitted).fit(X * a + b, 7e5 * y + 40).predict(grid * a + b, return_std=True)
    assert_allclose((other[0] - 40) / 7e5, mean, atol=1e-3)
    assert_allclose(other[1] / 7e5, std, rtol=1e-2)


def test_joint_answers_agree_with_single_ones(fitted, grid) -> None:
    mean, std = fitted.predict(grid, return_std=True)
    covariance = fitted.predict(grid, return_cov=True)[1]
    assert_allclose(covariance.diagonal(), std**2, rtol=1e-6)
    samples = fitted.sample_y(grid, 20_000, random_state=0)
    assert_allclose(samples.mean(1), mean, atol=4 * std.max() / 20_000**0.5)
    assert_allclose(np.cov(samples), covariance, atol=0.05 * std.max() ** 2)
    latent = fitted.predict_latent_dist(grid).variance
    noise = float(fitted.model_.new_noise()) * fitted.scaling_.y_scale**2
    assert_allclose(latent + noise, std**2, rtol=1e-9)


def test_noise_may_be_given_in_units_of_y_squared(data: Table) -> None:
    model = LocalExpertsRegressor(points_per_expert=30, noise=0.25).fit(data[0], 5 * data[1])
    assert float(model.model_.new_noise()) * model.scaling_.y_scale**2 == pytest.approx(0.25)


@pytest.mark.parametrize(
    "arguments",
    [*({"aggregation": rule} for rule in RULES), {"shared": False, "aggregation": "rbcm"}, {"partition": "random"},
     {"kernel": ScaleKernel(RBFKernel()), "noise": 0.05, "scale": None, "n_nearest": None}],
    ids=str,
)  # fmt: skip
def test_a_file_keeps_every_prediction(arguments: dict, data: Table, grid, tmp_path: Path) -> None:
    model = LocalExpertsRegressor(points_per_expert=30, random_state=0, **arguments).fit(*data)
    model.save(tmp_path / "model.gpmoe")
    again = load(tmp_path / "model.gpmoe")
    for one, other in zip(model.predict(grid, return_std=True), again.predict(grid, return_std=True), strict=True):
        assert np.array_equal(one, other)
    assert again.report_ == model.report_
    assert again.get_params().keys() == model.get_params().keys()
    assert np.array_equal(model.predict(grid), pickle.loads(pickle.dumps(model)).predict(grid))


def test_a_file_whose_layout_does_not_fit_is_refused(fitted, tmp_path: Path, monkeypatch) -> None:
    data, tensors = fitted.to_parts()
    tensors["layout.offsets"] = tensors["layout.offsets"][:-1]
    monkeypatch.setattr(type(fitted), "to_parts", lambda self: (data, tensors))
    fitted.save(tmp_path / "model.gpmoe")
    with pytest.raises(FileFormatError, match="don't fit together"):
        load(tmp_path / "model.gpmoe")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"aggregation": "mean"}, "`aggregation`"), ({"partition": "ball"}, "`partition`"), ({"scale": "log"}, "`scale`"),
     ({"points_per_expert": 0}, "`points_per_expert`"), ({"n_nearest": 0}, "`n_nearest`"), ({"noise": -1.0}, "`noise`"),
     ({"shared": False}, "share hyperparameters")],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_are_named(arguments: dict, text: str, data: Table) -> None:
    with pytest.raises(InputError, match=text):
        LocalExpertsRegressor(**arguments).fit(*data)


# Rows in blocks.


def test_blocks_give_what_arrays_give(fitted, data: Table, grid, tmp_path: Path) -> None:
    X, y = data
    wanted = fitted.predict(grid, return_std=True)
    frame = pl.DataFrame({"a": X[:, 0], "b": X[:, 1], "y": y})
    frame.write_parquet(tmp_path / "rows.parquet", row_group_size=40)
    mapped = np.memmap(tmp_path / "X", dtype=float, mode="w+", shape=X.shape)
    mapped[:] = X
    sources: dict = {
        "mapped": (mapped, y),
        "iterator": (iter([(X[:37], y[:37]), (X[37:], y[37:])]), None),
        "path": (ParquetBlocks(tmp_path / "rows.parquet", "y"), None),
    }
    parquet = pytest.importorskip("pyarrow.parquet")
    sources["row groups"] = (ParquetBlocks(parquet.ParquetFile(tmp_path / "rows.parquet"), "y", ["a", "b"]), None)
    for name, source in sources.items():
        model = clone(fitted).fit(*source)
        assert model.n_features_in_ == 2, name
        got = model.predict(grid, return_std=True)
        assert_allclose(got[0], wanted[0], atol=0.1, err_msg=name)
        assert_allclose(got[1], wanted[1], rtol=0.2, err_msg=name)
        assert_allclose(model.scaling_.X_scale, fitted.scaling_.X_scale, rtol=1e-10)


def test_many_cells_give_every_expert_its_rows(data: Table) -> None:
    X, y = data
    rows = RowFile(ArrayBlocks(X, y, rows=40)).rows
    model = fit_from_file(rows, ExpertPlan(points_per_expert=10), cell=40).model
    sizes = np.diff(model.layout.offsets)
    assert sizes.sum() == 150
    assert 7 <= sizes.min() <= sizes.max() <= 13
    assert model.layout.regions is not None
    assert np.array_equal(model.layout.regions.assign(model.X.numpy()), np.repeat(np.arange(len(sizes)), sizes))
    order, wanted = np.lexsort(model.X.numpy().T), np.lexsort(X.T)
    assert np.array_equal(model.X.numpy()[order], X[wanted])
    assert np.array_equal(model.y.numpy()[order], y[wanted])


def test_memory_does_not_grow_with_the_rows(monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["gpmoe.inference.fit_local_experts"], "_LEARNED_FROM", 500)
    monkeypatch.setattr(sys.modules["gpmoe.inference.fit_local_experts"], "_PILOT", 100)
    monkeypatch.setattr("gpmoe.inference.fit_from_file._SAMPLE", 2000)
    monkeypatch.setattr("gpmoe.data.row_blocks._ROWS", 2000)
    monkeypatch.setattr("gpmoe.inference.fit_from_file._CELL", 4000)

    def blocks(count: int):
        rng = np.random.default_rng(0)
        for _ in range(count):
            X = rng.uniform(-2, 2, (2000, 6))
            yield X, np.sin(X[:, 0]) + 0.1 * rng.standard_normal(2000)

    def peak(count: int) -> int:
        tracemalloc.start()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConvergedWarning)
            LocalExpertsRegressor(points_per_expert=50, random_state=0).fit(blocks(count))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)
    few, many = peak(10), peak(60)
    table = 50 * 2000 * 7 * 8  # bytes of the rows that the second has more
    assert many - few < 0.25 * table


@pytest.mark.parametrize(
    ("blocks", "error", "text"),
    [([], InputError, "there are no rows"), ([np.ones((3, 2))], InputError, r"pair \(X, y\); block 0 is a ndarray"),
     ([(np.ones((3, 2)), np.ones(2))], ShapeError, "same number of rows"),
     ([(np.ones((3, 2)), np.ones(3)), (np.ones((3, 1)), np.ones(3))], ValueError, "features")],
    ids=str,
)  # fmt: skip
def test_bad_blocks_are_named(blocks, error, text: str) -> None:
    with pytest.raises(error, match=text):
        LocalExpertsRegressor().fit(blocks)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1.0], "y": [1.0]}).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="no column 'z'"):
        list(ParquetBlocks(tmp_path / "rows.parquet", "z"))
    with pytest.raises(InputError, match="needs all rows in memory"):
        LocalExpertsRegressor(partition="random").fit(ParquetBlocks(tmp_path / "rows.parquet", "y"))


# Other processes and machines.


def test_processes_change_no_number(data: Table, grid) -> None:
    model = LocalExpertsRegressor(points_per_expert=4, aggregation="rbcm", shared=False, random_state=0)
    wanted = clone(model).fit(*data).predict(grid, return_std=True)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        got = clone(model).fit(*data).predict(grid, return_std=True)
    assert np.array_equal(got, wanted)


RAY = """
import os, sys
import joblib, numpy as np, ray
from ray.util.joblib import register_ray
from gpmoe.estimators.local_experts_regressor import LocalExpertsRegressor

rng = np.random.default_rng(0)
X = rng.uniform(-2, 2, (300, 2))
y = np.sin(2 * X[:, 0]) + 0.1 * rng.standard_normal(300)

@ray.remote
def process():
    import time
    time.sleep(1.0)
    return os.getpid()

if __name__ == "__main__":
    model = LocalExpertsRegressor(points_per_expert=4, aggregation="rbcm", shared=False, random_state=0)
    wanted = model.fit(X, y).predict(X, return_std=True)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    workers = set(ray.get([process.remote(), process.remote()]))
    assert len(workers) == 2 and os.getpid() not in workers, workers
    register_ray()
    with joblib.parallel_config(backend="ray", n_jobs=2):
        got = model.fit(X, y).predict(X, return_std=True)
    ray.shutdown()
    print("identical" if np.array_equal(wanted, got) else "different")
"""


@pytest.mark.slow
def test_two_processes_of_ray_give_identical_numbers(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install gpmoe[ray]")
    script = tmp_path / "with_ray.py"
    script.write_text(RAY)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1] == "identical"
