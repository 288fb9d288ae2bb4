"""One exact likelihood with its gradient: Matérn-5/2 ARD, learnable outputscale, lengthscales and noise."""

from collections.abc import Callable
from typing import Any

import gpytorch
import numpy as np
import torch
from scipy.linalg import lapack
from sklearn.gaussian_process import GaussianProcessRegressor

from benchmarks.harness import Case, Figures, Results, Run, Suite, Table
from benchmarks.libraries import (
    gpmoe_model,
    gpytorch_cholesky,
    gpytorch_model,
    log_gradient,
    matern_data,
    matern_kernel,
    sklearn_matern,
)
from benchmarks.tables import against, duration, number, verdict

NAME, MEMORY = "likelihood and gradient", "peak memory"
BARS = {500: (3.0, 5.0), 1000: (5.0, 9.0), 2000: (7.0, 15.0), 5000: (9.0, 14.0)}  # GPyTorch, scikit-learn
FLOOR_BARS = {5000: 1.25}
MEMORY_BAR = 2.6  # GB at n = 10,000
FLOORS = ("LAPACK (torch)", "LAPACK (SciPy)")


def gpmoe_step(n: int, d: int) -> Run:
    from gpmoe.inference import log_marginal_likelihood

    gp = gpmoe_model(*matern_data(n, d), matern_kernel(d), 0.1)

    def step() -> Any:
        gp.zero_grad(set_to_none=True)
        value = log_marginal_likelihood(gp)
        value.backward()
        return value.item()

    return Run(step, lambda value: {"value": value, "gradient": log_gradient(gp)})


def gpmoe_memory(n: int, d: int) -> Run:
    gpmoe_step(64, d).step()  # compiles
    return gpmoe_step(n, d)


def gpytorch_step(n: int, d: int) -> Run:
    gp = gpytorch_model(*matern_data(n, d), matern_kernel(d), 0.1).train()
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp)

    def step() -> Any:
        gp.zero_grad(set_to_none=True)
        with gpytorch_cholesky():
            value = objective(gp(*gp.train_inputs), gp.train_targets) * n
            value.backward()
        return value.item()

    return Run(step, lambda value: {"value": value, "gradient": log_gradient(gp)})


def sklearn_step(n: int, d: int) -> Run:
    gp = GaussianProcessRegressor(sklearn_matern(d), alpha=0.0, optimizer=None).fit(*matern_data(n, d))
    theta = gp.kernel_.theta

    def figures(result: tuple[float, np.ndarray]) -> Figures:
        return {"value": float(result[0]), "gradient": result[1].tolist()}

    return Run(lambda: gp.log_marginal_likelihood(theta, eval_gradient=True), figures)


def covariance(n: int, d: int) -> np.ndarray:
    return np.asfortranarray(sklearn_matern(d)(matern_data(n, d)[0]))


def torch_floor(n: int, d: int) -> Run:
    C = torch.from_numpy(covariance(n, d))
    L, inverse = torch.empty_like(C), torch.empty_like(C)

    def step() -> None:
        torch.linalg.cholesky(C, out=L)
        torch.cholesky_inverse(L, out=inverse)

    return Run(step)


def scipy_floor(n: int, d: int) -> Run:
    C = covariance(n, d)
    work = C.copy(order="F")

    def step() -> None:
        lapack.dpotrf(work, lower=1, clean=0, overwrite_a=1)
        lapack.dpotri(work, lower=1, overwrite_c=1)

    return Run(step, reset=lambda: np.copyto(work, C))


LIBRARIES: dict[str, Callable[..., Run]] = {
    "gpmoe": gpmoe_step,
    "GPyTorch": gpytorch_step,
    "scikit-learn": sklearn_step,
    FLOORS[0]: torch_floor,
    FLOORS[1]: scipy_floor,
}


def case(library: str, n: int) -> Case:
    repetitions = 7 if n <= 2000 else 3
    return Case(NAME, library, LIBRARIES[library], {"n": n, "d": 8}, repetitions, at_least=0.2)


def memory_case(n: int) -> Case:
    return Case(MEMORY, "gpmoe", gpmoe_memory, {"n": n, "d": 8}, repetitions=1, warm_up=0, isolated=True)


def sizes(small: bool) -> tuple[int, ...]:
    return (100, 500) if small else tuple(BARS)


def cases(small: bool) -> list[Case]:
    timed = [case(library, n) for n in sizes(small) for library in LIBRARIES]
    return [*timed, memory_case(1000 if small else 10_000)]


def agreement(results: Results, n: int, figure: str) -> str:
    """Largest relative difference from GPyTorch's figure, over gpmoe and scikit-learn."""
    runs = {name: results.runs(case(name, n)) for name in ("GPyTorch", "gpmoe", "scikit-learn")}
    values = {name: np.asarray(found[0][figure]) for name, found in runs.items() if found}
    if len(values) < 2:
        return "-"
    reference = next(iter(values.values()))
    worst = max(np.abs(value - reference).max() for value in values.values()) / np.abs(reference).max()
    bar = 1e-8 if "gpmoe" in values and figure == "value" else None
    return f"{worst:.1e}" + verdict(worst, bar, at_most=True)


def row(results: Results, n: int) -> list[str]:
    ours, gpytorch_bar = case("gpmoe", n), BARS.get(n, (None, None))
    floor = float(np.nanmin([results.median(case(name, n)) for name in FLOORS] + [np.inf]))
    above = results.median(ours) / floor
    return [
        f"{n:,}",
        *(duration(results.median(case(name, n))) for name in ("gpmoe", "GPyTorch", "scikit-learn")),
        duration(floor if np.isfinite(floor) else np.nan),
        against(results, ours, case("GPyTorch", n), gpytorch_bar[0]),
        against(results, ours, case("scikit-learn", n), gpytorch_bar[1]),
        number(above, ".2f") + verdict(above, FLOOR_BARS.get(n), at_most=True),
        agreement(results, n, "value"),
        agreement(results, n, "gradient"),
    ]


def tables(results: Results, small: bool) -> list[Table]:
    header = ["n", "gpmoe", "GPyTorch", "scikit-learn", "LAPACK floor", "GPyTorch / gpmoe"]
    header += ["scikit-learn / gpmoe", "gpmoe / floor", "values differ by", "gradients differ by"]
    notes = (
        "d = 8, float64, X ~ N(0, I), lengthscales 1.5, outputscale 1, noise variance 0.1, zero mean.",
        "GPyTorch: Cholesky path, ExactMarginalLogLikelihood forward and backward.",
        "scikit-learn: log_marginal_likelihood(theta, eval_gradient=True).",
        "Floor: one potrf and one potri by the faster of torch and SciPy, workspaces reused.",
        "Differences are relative: of the value, and of the gradient by log hyperparameters to its largest.",
    )
    timing = Table("One step", header, [row(results, n) for n in sizes(small)], notes)
    big = memory_case(1000 if small else 10_000)
    used = results.median(big, "peak_bytes") / 1e9
    cell = number(used, ".2f") + verdict(used, None if small else MEMORY_BAR, at_most=True)
    line = [f"{big.parameters['n']:,}", cell, duration(results.median(big))]
    how = "Peak resident memory of a process beyond what it held before its first step, data included there."
    return [timing, Table("Peak memory of one gpmoe step", ["n", "GB", "time"], [line], [how])]


SUITE = Suite("likelihood", cases, tables)
