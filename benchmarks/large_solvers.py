"""Iterative solvers beside GPyTorch's conjugate gradients and Cholesky: solves, whole fits, standard deviations."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from torch import Tensor

from benchmarks.harness import DATA, Case, Figures, Results, Run, Suite, Table
from benchmarks.libraries import Array, gpytorch_model, matern_data, matern_kernel
from benchmarks.tables import against, duration, number, verdict

SOLVE, FIT, DEVIATION = "solve", "fit", "standard deviation"
TOLERANCE = 1e-6
MASKS = (0, 1, 2)
STEPS = 50  # of Adam, that a user of GPyTorch would take at the least
BARS = {"pol": (0.076, -1.22), "elevators": (0.355, 0.375)}  # RMSE, negative log score


def table(data: str, mask: int = 0) -> tuple[Array, Array, Array]:
    """Inputs, targets, and a cross-validation mask of a table, in original units."""
    folder = DATA / "uci10" / data
    rows = np.loadtxt(folder / "data.csv.gz", delimiter=",")
    return rows[:, :-1], rows[:, -1], np.loadtxt(folder / "test_mask.csv.gz", delimiter=",")[:, mask] > 0.5


def standardised(values: Array, like: Array) -> Array:
    scale = like.std(0)
    return np.asarray((values - like.mean(0)) / np.where(scale > 0, scale, 1.0))


def split(data: str, n: int | None, mask: int = 0) -> tuple[Array, Array, Array, Array]:
    """Training and test rows of a mask, standardised on the training rows; n of those at random."""
    X, y, test = table(data, mask)
    order = np.random.default_rng(0).permutation(np.flatnonzero(~test))[:n]
    parts = (standardised(X[test], X[order]), standardised(y[test], y[order]))
    return standardised(X[order], X[order]), standardised(y[order], y[order]), *parts


def problem(data: str, n: int) -> tuple[Array, Array, Kernel]:
    """All rows (n at most) and a Matérn-5/2 kernel whose lengthscales suit them."""
    if data == "simulated":
        X, y = matern_data(n, 8)
        return X, y, matern_kernel(8)
    X, y, _ = table(data)
    order = np.random.default_rng(0).permutation(len(y))[:n]
    X, y = standardised(X[order], X[order]), standardised(y[order], y[order])
    return X, y, matern_kernel(X.shape[1], math.sqrt(X.shape[1]))


def iterative_settings() -> ExitStack:
    """GPyTorch's conjugate gradients to the tolerance asked for, with 2,000 iterations at most."""
    stack, settings = ExitStack(), gpytorch.settings
    for setting in (
        settings.max_cholesky_size(1),
        settings.fast_computations(True, True, True),
        settings.cg_tolerance(2 * TOLERANCE),  # to its favour: at 1e-6 its recursion stalls
        settings.max_cg_iterations(2_000),
        settings.max_preconditioner_size(100),
    ):
        stack.enter_context(setting)
    return stack


def residual_of(kernel: Kernel, X: Tensor, y: Tensor, noise: float, x: Tensor, iterations: int = 0) -> Figures:
    from gpmoe.linalg.operator import KernelOperator

    operator = KernelOperator(kernel, X, torch.full_like(y, noise))
    remainder = y[:, None] - operator.matmul(x.reshape(-1, 1))
    return {"residual": float(remainder.norm() / y.norm()), "iterations": iterations}


def solve_by_gpmoe(data: str, n: int, noise: float) -> Run:
    """From the kernel: assembly, preconditioner and iterations are all in the time."""
    from gpmoe.inference.solver import ConjugateGradients
    from gpmoe.linalg.operator import KernelOperator
    from gpmoe.linalg.solution import Solution

    X, y = (torch.from_numpy(part) for part in problem(data, n)[:2])
    kernel = problem(data, n)[2].requires_grad_(False)

    def step() -> Solution:
        operator = KernelOperator(kernel, X, torch.full_like(y, noise))
        return ConjugateGradients(tolerance=TOLERANCE).prepare(operator).solve(y[:, None])

    return Run(step, lambda solution: residual_of(kernel, X, y, noise, solution.X, solution.iterations))


def solve_by_gpytorch(data: str, n: int, noise: float) -> Run:
    X, y = (torch.from_numpy(part) for part in problem(data, n)[:2])
    kernel = problem(data, n)[2].requires_grad_(False)

    def step() -> Tensor:
        with torch.no_grad(), iterative_settings():
            return kernel(X).evaluate_kernel().add_diagonal(torch.tensor(noise).double()).solve(y[:, None])

    return Run(step, lambda x: residual_of(kernel, X, y, noise, x))


def solve_by_cholesky(data: str, n: int, noise: float) -> Run:
    """gpmoe's assembly and factor in float64."""
    from gpmoe.linalg import lapack
    from gpmoe.linalg.stationary import fill_covariance

    X, y = (torch.from_numpy(part) for part in problem(data, n)[:2])
    kernel = problem(data, n)[2].requires_grad_(False)

    def step() -> Tensor:
        C = torch.empty(len(y), len(y), dtype=y.dtype)
        fill_covariance(kernel, X, None, C)
        lapack.diagonal(C).add_(noise)
        lapack.cholesky_(C)
        return lapack.cholesky_solve(C, y)

    return Run(step, lambda x: residual_of(kernel, X, y, noise, x))


def scores(mean: Tensor, variance: Tensor, y: Array) -> Figures:
    error = torch.from_numpy(y) - mean
    log = 0.5 * ((2 * math.pi * variance).log() + error.square() / variance)
    return {"rmse": float(error.square().mean().sqrt()), "negative_log_score": float(log.mean())}


def fit_by_gpmoe(data: str, n: int | None, mask: int = 0) -> Run:
    """Hyperparameters and final solve; predictions are not timed."""
    from gpmoe.inference.fit import fit
    from gpmoe.inference.solver import ConjugateGradients
    from gpmoe.models.iterative_gp import IterativeGP

    X, y, X_new, y_new = split(data, n, mask)

    def step() -> tuple[Any, str]:
        gp = IterativeGP(torch.from_numpy(X), torch.from_numpy(y), solver=ConjugateGradients(), kernel=start(X))
        return gp, fit(gp).solver

    def figures(result: tuple[Any, str]) -> Figures:
        gp, how = result
        mean, variance = gp.marginals(torch.from_numpy(X_new))
        return {**scores(mean, variance + gp.new_noise().detach(), y_new), "how": how}

    return Run(step, figures)


def start(X: Array) -> Kernel:
    """Matérn-3/2, which the published figures use."""
    kernel = ScaleKernel(MaternKernel(nu=1.5, ard_num_dims=X.shape[1])).double()
    kernel.base_kernel.lengthscale = math.sqrt(X.shape[1])
    return kernel


def step_by_gpytorch(data: str, n: int | None) -> Run:
    """One step of training with GPyTorch's settings above n = 800: conjugate gradients with 10 probes."""
    X, y = split(data, n)[:2]
    gp = gpytorch_model(X, y, start(X), 0.1).train()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp)

    def step() -> None:
        with gpytorch.settings.max_cholesky_size(800), gpytorch.settings.fast_computations(True, True, True):
            (-mll(gp(*gp.train_inputs), gp.train_targets)).backward()

    return Run(step)


def deviations(n: int, iterative: Callable[[Array, Array, Kernel, Array], Tensor]) -> Run:
    """A library's latent standard deviation over that of an exact factor, at 200 new points."""
    from gpmoe.models.exact_gp import ExactGP

    X, y = matern_data(n, 8)
    X_new = np.concatenate([np.random.default_rng(1).standard_normal((190, 8)), X[:10]])
    kernel = matern_kernel(8).requires_grad_(False)
    exact = ExactGP(torch.from_numpy(X), torch.from_numpy(y), kernel=kernel, noise=0.1)
    reference = exact.marginals(torch.from_numpy(X_new))[1].sqrt()

    def figures(deviation: Tensor) -> Figures:
        ratio = deviation / reference
        return {"smallest": float(ratio.min()), "largest": float(ratio.max())}

    return Run(lambda: iterative(X, y, kernel, X_new), figures)


def deviations_by_gpmoe(X: Array, y: Array, kernel: Kernel, X_new: Array) -> Tensor:
    from gpmoe.inference.solver import ConjugateGradients
    from gpmoe.models.iterative_gp import IterativeGP

    gp = IterativeGP(torch.from_numpy(X), torch.from_numpy(y), kernel=kernel, noise=0.1, solver=ConjugateGradients())
    return gp.marginals(torch.from_numpy(X_new))[1].sqrt()


def deviations_by_gpytorch(X: Array, y: Array, kernel: Kernel, X_new: Array) -> Tensor:
    gp = gpytorch_model(X, y, kernel, 0.1).eval()
    settings = gpytorch.settings
    with torch.no_grad(), settings.max_cholesky_size(800), settings.fast_computations(True, True, True):
        variance: Tensor = gp(torch.from_numpy(X_new)).variance
        return variance.sqrt()


def solve_case(library: str, data: str, noise: float, small: bool) -> Case:
    how = {"gpmoe": solve_by_gpmoe, "GPyTorch CG": solve_by_gpytorch, "Cholesky": solve_by_cholesky}[library]
    parameters = {"data": data, "n": 1000 if small else 20_000, "noise": noise}
    return Case(SOLVE, library, how, parameters, repetitions=1 if small else 3, warm_up=1 if small else 0)


def fit_case(library: str, data: str, small: bool, mask: int = 0) -> Case:
    how = {"gpmoe": fit_by_gpmoe, "GPyTorch step": step_by_gpytorch}[library]
    parameters = {"data": data, "n": 1000 if small else None} | ({"mask": mask} if mask else {})
    return Case(FIT, library, how, parameters, repetitions=1, warm_up=0)


def deviation_case(library: str, small: bool) -> Case:
    how = {"gpmoe": deviations_by_gpmoe, "GPyTorch": deviations_by_gpytorch}[library]

    def prepare(n: int) -> Run:
        return deviations(n, how)

    return Case(DEVIATION, library, prepare, {"n": 1000 if small else 5000}, repetitions=1, warm_up=0)


def present() -> list[str]:
    return [data for data in BARS if (DATA / "uci10" / data).is_dir()]


@cache
def cases(small: bool) -> list[Case]:
    for data in set(BARS) - set(present()):
        print(f"large_solvers: {data} skipped, no {DATA / 'uci10' / data}; set GPMOE_DATA")
    solves = [
        solve_case(library, data, noise, small)
        for data in [*present(), "simulated"]
        for noise in (0.01, 0.1)
        for library in ("gpmoe", "GPyTorch CG", "Cholesky")
    ]
    fits = [fit_case(library, data, small) for data in present() for library in ("gpmoe", "GPyTorch step")]
    fits += [fit_case("gpmoe", data, small, mask) for data in present() for mask in MASKS[1:]]
    return [*solves, *fits, *(deviation_case(library, small) for library in ("gpmoe", "GPyTorch"))]


def solve_row(results: Results, data: str, noise: float, small: bool) -> list[str]:
    ours, peer, factor = (solve_case(library, data, noise, small) for library in ("gpmoe", "GPyTorch CG", "Cholesky"))
    bars = (None, None) if small else (5.0, 1.0)
    return [
        data,
        f"{noise:g}",
        *(duration(results.median(case)) for case in (ours, peer, factor)),
        against(results, ours, peer, bars[0]),
        against(results, ours, factor, bars[1]),
        *(number(results.median(case, "residual"), ".1e") for case in (ours, peer, factor)),
        number(results.median(ours, "iterations"), ".0f"),
    ]


def fit_row(results: Results, data: str, small: bool) -> list[str]:
    ours, peer = fit_case("gpmoe", data, small), fit_case("GPyTorch step", data, small)
    seconds, theirs = results.median(ours), STEPS * results.median(peer)
    bars = (None, None) if small else BARS[data]
    rmse, score = (mean_over_masks(results, data, name, small) for name in ("rmse", "negative_log_score"))
    return [
        data,
        duration(seconds),
        duration(theirs),
        number(theirs / seconds, ".2f") + verdict(theirs / seconds, None if small else 3.0),
        number(rmse, ".4f") + verdict(rmse, bars[0], at_most=True),
        number(score, ".4f") + verdict(score, bars[1], at_most=True),
    ]


def mean_over_masks(results: Results, data: str, name: str, small: bool) -> float:
    """Mean of a figure over the masks that were run, NaN if none was."""
    found = [results.median(fit_case("gpmoe", data, small, mask), name) for mask in MASKS]
    run = [value for value in found if not math.isnan(value)]
    return sum(run) / len(run) if run else math.nan


def deviation_row(results: Results, library: str, small: bool) -> list[str]:
    case = deviation_case(library, small)
    ends = [results.median(case, name) for name in ("smallest", "largest")]
    error = max(abs(end - 1) for end in ends)
    bar = 0.01 if library == "gpmoe" else None
    cells = [number(ends[0], ".4f"), number(ends[1], ".4f"), number(error, ".4f") + verdict(error, bar, at_most=True)]
    return [library, duration(results.median(case)), *cells]


def tables(results: Results, small: bool) -> list[Table]:
    solves = [solve_row(results, data, noise, small) for data in [*present(), "simulated"] for noise in (0.01, 0.1)]
    fits = [fit_row(results, data, small) for data in present()]
    spread = [deviation_row(results, library, small) for library in ("gpmoe", "GPyTorch")]
    solve_header = ["data", "noise", "gpmoe", "GPyTorch CG", "Cholesky", "GPyTorch / gpmoe", "Cholesky / gpmoe"]
    solve_header += ["residual gpmoe", "residual GPyTorch", "residual Cholesky", "iterations gpmoe"]
    fit_header = ["data", "gpmoe", f"GPyTorch, {STEPS} steps", "ratio", "RMSE", "negative log score"]
    spread_header = ["library", "time", "smallest ratio", "largest ratio", "largest error"]
    return [
        Table("Solve", solve_header, solves, ("All rows of the tables (20,000 at most), from kernel to solution.",)),
        Table(
            "Fit",
            fit_header,
            fits,
            (
                f"GPyTorch: one step at its defaults, times {STEPS}; Matérn-3/2, 90 % train. Times: mask 0; scores: "
                f"the mean over those of masks {', '.join(map(str, MASKS))} that were run.",
            ),
        ),
        Table("Latent standard deviation over Cholesky's", spread_header, spread, ("200 points; noise variance 0.1.",)),
    ]


SUITE = Suite("large_solvers", cases, tables)
