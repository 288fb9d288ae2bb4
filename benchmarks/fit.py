"""Whole fits from equal starts: seconds, and the log marginal likelihood that they reach."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from typing import NamedTuple

import gpytorch
import numpy as np
from gpytorch.kernels import Kernel, PeriodicKernel, RBFKernel, RQKernel, ScaleKernel
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process import kernels as sk

from benchmarks.datasets import load_split
from benchmarks.harness import DATA, Case, Results, Run, Suite, Table
from benchmarks.libraries import (
    SMALLEST_NOISE,
    Array,
    dense_log_marginal_likelihood,
    gpmoe_model,
    gpytorch_cholesky,
    gpytorch_model,
    matern_kernel,
    sklearn_matern,
    torch_covariance,
)
from benchmarks.tables import against, duration, number, verdict

NAME = "fit"
BARS = {  # times faster than GPyTorch, than scikit-learn
    "concrete": (5.0, 3.0),
    "energy": (5.0, 3.0),
    "co2": (8.0, 4.0),
}
NOT_WORSE = 0.1  # nats that count as the same objective
WIDE = (1e-5, 1e5)


class Problem(NamedTuple):
    """Standardised data, the start in both kernel languages, and the start of the noise variance."""

    X: Array
    y: Array
    kernel: Kernel
    sklearn_kernel: sk.Kernel
    noise: float


def standardise(values: Array) -> Array:
    return np.asarray((values - values.mean(0)) / values.std(0))


def table_problem(data: str, n: int | None) -> Problem:
    X, y = load_split(data, 0)[:2]
    X, y = standardise(X[:n]), standardise(y[:n])
    d = X.shape[1]
    return Problem(X, y, matern_kernel(d, 1.0), sklearn_matern(d, 1.0), 0.1)


def co2_problem(n: int | None) -> Problem:
    """Mauna Loa: the first 2,002 weeks without gaps; scikit-learn's example kernel and its start / var(y)."""
    from statsmodels.datasets import co2

    weekly = co2.load_pandas().data["co2"].dropna().iloc[: n or 2002]
    years = (weekly.index - weekly.index[0]).days.to_numpy(float) / 365.25
    y = weekly.to_numpy(float)
    scales = np.array([50.0, 2.0, 0.5, 0.1, 0.1]) ** 2 / np.var(weekly)  # trend, season, medium, short, noise
    trend, season, medium, short, noise = np.maximum(scales, 2 * SMALLEST_NOISE).tolist()
    in_sklearn = (
        sk.ConstantKernel(trend, WIDE) * sk.RBF(50.0, WIDE)
        + sk.ConstantKernel(season, WIDE) * sk.RBF(100.0, WIDE) * sk.ExpSineSquared(1.0, 1.0, WIDE, "fixed")
        + sk.ConstantKernel(medium, WIDE) * sk.RationalQuadratic(1.0, 1.0, WIDE, WIDE)
        + sk.ConstantKernel(short, WIDE) * sk.RBF(0.1, WIDE)
        + sk.WhiteKernel(noise, (SMALLEST_NOISE, 1e5))
    )
    return Problem(years[:, None], standardise(y), co2_kernel(trend, season, medium, short), in_sklearn, noise)


def co2_kernel(trend: float, season: float, medium: float, short: float) -> Kernel:
    """The sum in GPyTorch's words; its periodic lengthscale is the square of scikit-learn's, both 1."""
    bases = (RBFKernel(), RBFKernel() * PeriodicKernel(), RQKernel(), RBFKernel())
    parts = [ScaleKernel(base).double() for base in bases]
    for part, outputscale in zip(parts, (trend, season, medium, short), strict=True):
        part.outputscale = outputscale
    envelope, periodic = parts[1].base_kernel.kernels
    periodic.period_length, periodic.lengthscale = 1.0, 1.0
    periodic.raw_period_length.requires_grad_(False)
    parts[2].base_kernel.alpha = 1.0
    lengthscales = (50.0, 100.0, 1.0, 0.1)
    for base, lengthscale in zip(
        (parts[0].base_kernel, envelope, parts[2].base_kernel, parts[3].base_kernel),
        lengthscales,
        strict=True,
    ):
        base.lengthscale = lengthscale
    return parts[0] + parts[1] + parts[2] + parts[3]


def problem(data: str, n: int | None) -> Problem:
    return co2_problem(n) if data == "co2" else table_problem(data, n)


def fit_by_gpmoe(X: Array, y: Array, kernel: Kernel, noise: float) -> object:
    """Maximum likelihood from the given start, no restarts, no priors."""
    from gpmoe.inference import fit

    gp = gpmoe_model(X, y, kernel, noise)
    fit(gp, n_restarts=0)
    return gp


def gpytorch_lbfgs(X: Array, y: Array, kernel: Kernel, noise: float) -> object:
    """GPyTorch's objective under BoTorch's SciPy L-BFGS-B driver."""
    from botorch.optim.fit import fit_gpytorch_mll_scipy

    gp = gpytorch_model(X, y, kernel, noise).train()
    with gpytorch_cholesky():
        fit_gpytorch_mll_scipy(gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp))
    return gp


def torch_run(fitter: Callable[..., object], data: str, n: int | None) -> Run:
    p, little = problem(data, n), problem(data, 50)
    fitter(little.X, little.y, little.kernel, little.noise)  # what is compiled or imported once
    return Run(
        lambda: fitter(p.X, p.y, deepcopy(p.kernel), p.noise),
        lambda gp: {"objective": dense_log_marginal_likelihood(torch_covariance(gp, p.X), p.y)},
    )


def sklearn_run(data: str, n: int | None) -> Run:
    p = problem(data, n)
    return Run(
        lambda: GaussianProcessRegressor(p.sklearn_kernel, alpha=0.0).fit(p.X, p.y),
        lambda gp: {"objective": dense_log_marginal_likelihood(gp.kernel_(p.X), p.y)},
    )


LIBRARIES: dict[str, Callable[..., Run]] = {
    "gpmoe": partial(torch_run, fit_by_gpmoe),
    "GPyTorch": partial(torch_run, gpytorch_lbfgs),
    "scikit-learn": sklearn_run,
}


def case(library: str, data: str, small: bool) -> Case:
    repetitions = 1 if data == "co2" else 3
    parameters = {"data": data, "n": 200 if small else None}
    return Case(NAME, library, LIBRARIES[library], parameters, repetitions, warm_up=0)


def present() -> list[str]:
    """Problems whose data are at hand."""
    return [data for data in BARS if data == "co2" or (DATA / "uci20" / data).is_dir()]


@cache
def cases(small: bool) -> list[Case]:
    for data in set(BARS) - set(present()):
        print(f"fit: {data} skipped, no {DATA / 'uci20' / data}; set GPMOE_DATA")
    return [case(library, data, small) for data in present() for library in LIBRARIES]


def row(results: Results, data: str, small: bool) -> list[str]:
    ours, *peers = (case(library, data, small) for library in LIBRARIES)
    objectives = [results.median(each, "objective") for each in (ours, *peers)]
    behind = np.nanmax([*objectives[1:], -np.inf]) - objectives[0]
    bars = (None, None) if small else BARS[data]
    return [
        data,
        *(duration(results.median(each)) for each in (ours, *peers)),
        *(against(results, ours, peer, bar) for peer, bar in zip(peers, bars, strict=True)),
        *(number(value, ".2f") for value in objectives),
        (f"{behind:.2f}" + verdict(behind, NOT_WORSE, at_most=True)) if np.isfinite(behind) else "-",
    ]


def tables(results: Results, small: bool) -> list[Table]:
    names = list(LIBRARIES)
    header = ["data", *names, *(f"{name} / gpmoe" for name in names[1:])]
    header += [*(f"objective {name}" for name in names), "best peer - gpmoe, nats"]
    notes = (
        "Objective: log marginal likelihood in nats on standardised y, by one dense function for all.",
        "No priors, zero mean, no restarts, the same start everywhere, noise variance at least 1e-6; each"
        " library's L-BFGS-B with its own stopping rule (GPyTorch through BoTorch's SciPy driver).",
        "concrete, energy: split 0, X and y standardised on the training rows, Matérn-5/2 ARD, start at"
        " lengthscales 1, outputscale 1, noise variance 0.1.",
        "co2: Mauna Loa weekly means, first 2,002 without gaps; RBF + RBF x periodic (1 year, fixed) + rational"
        " quadratic + short RBF + noise, start of scikit-learn's example with variances over var(y).",
    )
    return [Table("Fit", header, [row(results, data, small) for data in present()], notes)]


SUITE = Suite("fit", cases, tables)
