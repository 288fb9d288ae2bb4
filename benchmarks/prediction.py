"""Mean and standard deviation at many new points, from a model that holds its factor."""

import os
from collections.abc import Callable
from typing import Any

import gpytorch
import numpy as np
import torch
from sklearn.gaussian_process import GaussianProcessRegressor

from benchmarks.harness import Case, Figures, Results, Run, Suite, Table
from benchmarks.libraries import (
    Array,
    gpmoe_model,
    gpytorch_cholesky,
    gpytorch_model,
    matern_data,
    matern_kernel,
    sklearn_matern,
)
from benchmarks.tables import against, duration, verdict

NAME, MEMORY = "mean and standard deviation", "peak memory"
# 1.15.2 forms the whole m x m covariance for its variances: compare with 1.15.1 too, from a folder made by
# ``pip install --no-deps --target FOLDER gpytorch==1.15.1 jaxtyping wadler-lindig``.
OLDER = os.environ.get("GPMOE_GPYTORCH_1_15_1", "")
BARS = {"scikit-learn": 2.0, "GPyTorch": None, "GPyTorch 1.15.1": 4.0}


def problem(n: int, m: int, d: int) -> tuple[Array, Array, Array]:
    """Training inputs and targets, and new inputs of the same law."""
    return *matern_data(n, d), np.random.default_rng(1).standard_normal((m, d))


def keep(result: tuple[Array, Array]) -> Figures:
    """The first moments, to compare libraries by."""
    return {"means": result[0][:20].tolist(), "deviations": result[1][:20].tolist()}


def predict_by_gpmoe(gp: Any, X_new: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of p(y | data), noise included."""
    with torch.no_grad():
        mean, variance = gp.marginals(torch.from_numpy(X_new))
        return mean.numpy(), (variance + gp.new_noise()).sqrt().numpy()


def gpmoe_step(n: int, m: int, d: int) -> Run:
    X, y, X_new = problem(n, m, d)
    gp = gpmoe_model(X, y, matern_kernel(d), 0.1)
    return Run(lambda: predict_by_gpmoe(gp, X_new), keep)


def gpmoe_memory(n: int, m: int, d: int) -> Run:
    run = gpmoe_step(n, m, d)
    gpmoe_step(64, 64, d).step()  # compiles
    return run


def gpytorch_step(n: int, m: int, d: int) -> Run:
    X, y, X_new = problem(n, m, d)
    gp = gpytorch_model(X, y, matern_kernel(d), 0.1).eval()

    def step() -> tuple[Array, Array]:
        with torch.no_grad(), gpytorch_cholesky(), gpytorch.settings.fast_pred_var(False):
            predictive = gp.likelihood(gp(torch.from_numpy(X_new)))
            return predictive.mean.numpy(), predictive.variance.sqrt().numpy()

    return Run(step, keep)


def older_gpytorch_step(n: int, m: int, d: int) -> Run:
    if gpytorch.__version__ != "1.15.1":
        raise ImportError(f"the folder in GPMOE_GPYTORCH_1_15_1 gave GPyTorch {gpytorch.__version__}")
    return gpytorch_step(n, m, d)


def sklearn_step(n: int, m: int, d: int) -> Run:
    X, y, X_new = problem(n, m, d)
    gp = GaussianProcessRegressor(sklearn_matern(d), alpha=0.0, optimizer=None).fit(X, y)
    return Run(lambda: gp.predict(X_new, return_std=True), keep)


LIBRARIES: dict[str, Callable[..., Run]] = {
    "gpmoe": gpmoe_step,
    "scikit-learn": sklearn_step,
    "GPyTorch": gpytorch_step,
    "GPyTorch 1.15.1": older_gpytorch_step,
}


def case(library: str, small: bool) -> Case:
    parameters = {"n": 300 if small else 5000, "m": 600 if small else 10_000, "d": 8}
    apart = library == "GPyTorch 1.15.1"
    path = OLDER if apart else ""
    return Case(NAME, library, LIBRARIES[library], parameters, at_least=0.2, isolated=apart, path=path)


def memory_case(small: bool) -> Case:
    parameters = dict(case("gpmoe", small).parameters)
    return Case(MEMORY, "gpmoe", gpmoe_memory, parameters, repetitions=1, warm_up=0, isolated=True)


def cases(small: bool) -> list[Case]:
    names = [name for name in LIBRARIES if OLDER or name != "GPyTorch 1.15.1"]
    return [*(case(name, small) for name in names), memory_case(small)]


def difference(results: Results, ours: Case, peer: Case, figure: str) -> str:
    runs = [results.runs(case) for case in (ours, peer)]
    if not all(runs):
        return "-"
    a, b = (np.asarray(found[0][figure]) for found in runs)
    return f"{np.abs(a - b).max():.1e}"


def tables(results: Results, small: bool) -> list[Table]:
    ours, reference = case("gpmoe", small), case("scikit-learn", small)
    rows = []
    for name in LIBRARIES:
        this, bar = case(name, small), None if small else BARS.get(name)
        ratio = "" if name == "gpmoe" else against(results, ours, this, bar)
        errors = [difference(results, this, reference, figure) for figure in ("means", "deviations")]
        rows.append([name, duration(results.median(this)), ratio, *errors])
    used = results.median(memory_case(small), "peak_bytes") / 1e9
    size = " ".join(f"{k} = {v:,}" for k, v in ours.parameters.items())
    notes = (
        f"{size}; Matérn-5/2 ARD at fixed hyperparameters, float64, factor cached by the call before.",
        "GPyTorch: likelihood(model(X_new)), mean and variance, no_grad, Cholesky; 1.15.1 in processes of its"
        " own, measured where GPMOE_GPYTORCH_1_15_1 names a folder that holds it.",
        "Differences are absolute, from scikit-learn, at 20 points.",
        f"Peak memory of gpmoe's first prediction beyond the model and data: {used:.2f} GB"
        + verdict(used, None, at_most=True),
    )
    header = ["library", "time", "library / gpmoe", "means differ by", "deviations differ by"]
    return [Table("Prediction", header, rows, notes)]


SUITE = Suite("prediction", cases, tables)
