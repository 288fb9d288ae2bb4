"""Hyperparameters with an iterative solver: exactly on some rows, then by pathwise gradients on all of them.

The likelihood of a random subset has its optimum near that of all rows, at a small part of the cost. From there a few
steps of Adam follow the pathwise gradient, whose probes are fixed and whose solves start from the last step's.

Source: Lin et al., arXiv 2405.18457, alg. 1 (the steps); Kingma and Ba (2015), Adam.
"""

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood

from gpmoe.inference.marginal_likelihood import log_prior
from gpmoe.inference.report import FitReport
from gpmoe.inference.solver import IterativeSolver
from gpmoe.linalg.pathwise_likelihood import PathwiseLikelihood
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.iterative_gp import IterativeGP

if TYPE_CHECKING:
    from gpmoe.inference.fit import Coordinates

Exactly = Callable[[ExactGP], FitReport]


def fit_iteratively(
    gp: ExactGP | IterativeGP, solver: IterativeSolver, coordinates: "Coordinates", exactly: Exactly
) -> FitReport:
    """Maximise the likelihood and log priors over the parameters of a model, in place, as the solver's schedule says.

    Args:
        gp: without batch dimensions.
        solver: for the steps on all rows.
        coordinates: of the model's parameters.
        exactly: fits a model of some rows, which shares its parameters with `gp`.

    Returns:
        A report whose objective is one estimate at the result; its solver says what was done, with residuals.
    """
    began = time.perf_counter()
    schedule = solver.schedule
    subset = exactly(_subset(gp, schedule.subset_rows, schedule.seed))
    model = gp if isinstance(gp, IterativeGP) else _sharing(gp, solver)
    n = len(gp.y)
    done, steps = f"L-BFGS on {min(schedule.subset_rows, n)} of {n} rows by Cholesky", 0
    if n > schedule.subset_rows and coordinates.read().size:
        residual = _climb(model, solver, coordinates)
        steps = schedule.steps
        done += f", {steps} pathwise steps on all rows with {schedule.probes} probes to residuals of {residual:.1e}"
    solved = model.solved()
    last = solved.solution
    estimate = model.estimate_log_marginal_likelihood()
    with torch.no_grad():
        value = estimate.value + float(log_prior(model))
    return FitReport(
        objective_trace=(value,),
        iterations=subset.iterations + steps,
        evaluations=subset.evaluations + steps,
        converged=subset.converged and last.converged,
        reason=subset.reason if last.converged else "the last solve did not converge",
        jitter=0.0,
        seconds=time.perf_counter() - began,
        solver=f"{solver}: {done}; last solve with {solved.system.description}, {last.iterations} iterations to a true "
        f"residual of {last.residual:.1e}; objective ± {estimate.standard_error:.2g}",
        starts=(value,),
    )


def _subset(gp: ExactGP | IterativeGP, rows: int, seed: int) -> ExactGP:
    """An exact model of random rows that shares its parts with another; all rows in their order if there are few."""
    n = len(gp.y)
    index = torch.arange(n)
    if n > rows:
        generator = torch.Generator().manual_seed(seed)
        index = torch.randperm(n, generator=generator)[:rows].sort().values
    weights = None if gp.weights is None else gp.weights[index]
    parts = {"kernel": gp.covar_module, "mean": gp.mean_module}
    noise = gp.likelihood
    if isinstance(noise, FixedNoiseGaussianLikelihood):
        noise = noise.noise[index]
    return ExactGP(gp.X[index], gp.y[index], noise=noise, weights=weights, **parts)


def _sharing(gp: ExactGP, solver: IterativeSolver) -> IterativeGP:
    """An iterative model that shares its parts with an exact one."""
    parts = {"kernel": gp.covar_module, "mean": gp.mean_module, "noise": gp.likelihood, "weights": gp.weights}
    return IterativeGP(gp.X, gp.y, solver=solver, **parts)


def _climb(gp: IterativeGP, solver: IterativeSolver, coordinates: "Coordinates") -> float:
    """Adam by the pathwise gradient; the residual of the last solve."""
    schedule = solver.schedule
    generator = torch.Generator(gp.X.device).manual_seed(schedule.seed)
    likelihood = PathwiseLikelihood(gp.covar_module, gp.X, solver=solver, probes=schedule.probes, generator=generator)
    x = coordinates.read()
    mean, square = np.zeros_like(x), np.zeros_like(x)
    with torch.enable_grad():
        for step in range(1, schedule.steps + 1):
            gp.zero_grad(set_to_none=True)
            residual = gp.y - gp.mean_module(gp.X)
            objective = likelihood.surrogate(residual, gp.noise(), tolerance=schedule.tolerance) + log_prior(gp)
            objective.backward()
            slope = coordinates.gradient(x)
            mean, square = 0.9 * mean + 0.1 * slope, 0.99 * square + 0.01 * slope**2
            size = schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / schedule.steps))
            direction = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.99**step)) + 1e-12)
            x = x + size * direction
            coordinates.write(x)
    assert likelihood.solution is not None
    return likelihood.solution.residual
