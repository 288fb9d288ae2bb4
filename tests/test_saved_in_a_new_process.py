"""What a file of an estimator predicts in a process that did not make it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpmoe import GPRegressor, MixtureOfExpertsRegressor
from gpmoe.estimators.grid_gp_regressor import GridGPRegressor
from gpmoe.estimators.probabilistic_regressor import ProbabilisticRegressor
from gpmoe.estimators.sparse_gp_regressor import SparseGPRegressor
from gpmoe.inference.solver import ConjugateGradients

READ = """
import sys
import numpy as np
import gpmoe
dist = gpmoe.load(sys.argv[1]).predict_dist(np.load(sys.argv[2]))
np.save(sys.argv[3], np.stack([dist.mean, dist.stddev]))
"""
MODELS: dict[str, ProbabilisticRegressor] = {
    "exact": GPRegressor(),
    "iterative": GPRegressor(solver=ConjugateGradients()),
    "sparse": SparseGPRegressor(n_inducing=12, random_state=0),
    "grid": GridGPRegressor(),
    "mixture": MixtureOfExpertsRegressor(n_experts=2, random_state=0),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_predicts_bit_for_bit_what_its_maker_did(name: str, tmp_path: Path) -> None:
    X = np.stack(np.meshgrid(np.arange(8.0), np.arange(5.0)), -1).reshape(-1, 2)
    y = np.sin(X[:, 0]) + X[:, 1] + 0.1 * np.random.default_rng(0).standard_normal(40)
    model = MODELS[name].fit(X, y)
    dist = model.predict_dist(X + 0.3)
    model.save(tmp_path / "model.gpmoe")
    np.save(tmp_path / "X.npy", X + 0.3)
    arguments = [str(tmp_path / part) for part in ("model.gpmoe", "X.npy", "out.npy")]
    done = subprocess.run([sys.executable, "-c", READ, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.stack([dist.mean, dist.stddev]))
