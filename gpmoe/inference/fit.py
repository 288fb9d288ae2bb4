"""Hyperparameters by L-BFGS-B on an objective and all priors.

A parameter v with a lower bound b is optimised as log(v - b), others as they are stored: scale parameters then move
by factors, which is what their likelihood surface looks like.
"""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import gpytorch
import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import Parameter

from gpmoe.errors import NotPositiveDefiniteError
from gpmoe.inference.marginal_likelihood import log_marginal_likelihood, prior_of
from gpmoe.inference.report import FitReport, warn_about
from gpmoe.inference.solver import Cholesky
from gpmoe.linalg import lapack
from gpmoe.linalg.threads import threads_for
from gpmoe.models.exact_gp import ExactGP

Objective = Callable[[Any], Tensor]
Vector = NDArray[np.float64]


def fit(
    gp: ExactGP,
    objective: Objective = log_marginal_likelihood,
    *,
    solver: Cholesky | None = None,
    n_restarts: int = 0,
    seed: int | None = None,
    max_iterations: int = 1000,
) -> FitReport:
    """Maximise an objective plus the log priors over all parameters of a model that want a gradient, in place.

    Args:
        gp: the model; its present parameters are the first start.
        objective: a function of the model to a scalar, `log_marginal_likelihood` by default.
        solver: `Cholesky()` if None.
        n_restarts: further starts, drawn around the first one (a factor of e on scale parameters is one standard
            deviation). They run through joblib: ``with joblib.parallel_config(n_jobs=2): fit(...)``.
        seed: for the further starts.
        max_iterations: of each start.

    Returns:
        The report of the best start.

    Warns:
        NotConvergedWarning: if the best start stopped at `max_iterations` or in a failed line search.
        JitterWarning: if the covariance at the result needed jitter.
    """
    report = fit_quietly(
        gp, objective, solver=solver, n_restarts=n_restarts, seed=seed, max_iterations=max_iterations
    )
    warn_about(report, stacklevel=3)
    return report


def fit_quietly(
    gp: ExactGP,
    objective: Objective = log_marginal_likelihood,
    *,
    solver: Cholesky | None = None,
    n_restarts: int = 0,
    seed: int | None = None,
    max_iterations: int = 1000,
) -> FitReport:
    """`fit` without its warnings, for fits that are part of another one."""
    start = time.perf_counter()
    solver = Cholesky() if solver is None else solver
    coordinates = Coordinates(gp)
    first = coordinates.read()
    rng = np.random.default_rng(seed)
    starts = [first, *(first + rng.standard_normal(first.shape) for _ in range(n_restarts))]
    if n_restarts:
        jobs = (delayed(_climb_copy)(gp, objective, solver, x, max_iterations, lapack.provider()) for x in starts)
        ends = Parallel()(jobs)
    else:
        ends = [climb(gp, objective, solver, max_iterations=max_iterations)]
    best = max(ends, key=lambda end: end.value)
    coordinates.write(best.x)
    report = FitReport(
        objective_trace=tuple(best.trace),
        iterations=best.iterations,
        evaluations=sum(end.evaluations for end in ends),
        converged=best.converged,
        reason=best.reason,
        jitter=gp.factor().jitter,
        seconds=time.perf_counter() - start,
        solver=f"{solver} by {lapack.provider()}",
        starts=tuple(end.value for end in ends),
    )
    return report


@dataclass(frozen=True)
class End:
    """Where one start ended."""

    x: Vector
    value: float
    trace: list[float]
    iterations: int
    evaluations: int
    converged: bool
    reason: str


def _climb_copy(
    gp: ExactGP, objective: Objective, solver: Cholesky, x: Vector, max_iterations: int, name: lapack.Provider
) -> End:
    """Climb on a copy, with the parent's LAPACK; what a worker runs."""
    with lapack.use_provider(name):
        copy = deepcopy(gp)
        Coordinates(copy).write(x)
        return climb(copy, objective, solver, max_iterations=max_iterations)


def climb(model: gpytorch.Module, objective: Objective, solver: Cholesky, *, max_iterations: int) -> End:
    """L-BFGS-B from a model's present parameters, resumed once from where a line search failed.

    Args:
        model: changed in place.
        objective: a function of the model to a scalar; the log priors are added.
        solver: how linear systems are solved.
        max_iterations: the most.

    Returns:
        Where it ended.
    """
    coordinates = Coordinates(model)
    x = coordinates.read()
    rows = max((len(data) for data in model.buffers() if data.dim()), default=0)
    log_prior = prior_of(model)
    trace: list[float] = []
    evaluations = 0

    def loss_and_gradient(x: Vector) -> tuple[float, Vector]:
        nonlocal evaluations
        evaluations += 1
        coordinates.write(x)
        model.zero_grad(set_to_none=True)
        try:
            value = objective(model) + log_prior()
        except NotPositiveDefiniteError:  # a trial point too far out: the line search must shorten its step
            return float("inf"), np.zeros_like(x)
        value.backward()
        return -float(value.detach()), -coordinates.gradient(x)

    def remember(intermediate_result: object) -> None:
        trace.append(-float(intermediate_result.fun))  # type: ignore[attr-defined]

    iterations, reason, converged = 0, "no free parameters", True
    value = float("-inf")
    with solver.applied(), torch.enable_grad(), threads_for(rows):
        if x.size == 0:
            value = float(objective(model).detach()) + float(log_prior())
            trace.append(value)
        for _ in range(2 if x.size else 0):
            options = {"maxiter": max_iterations, "maxfun": 20 * max_iterations, "maxcor": 20}
            result = minimize(
                loss_and_gradient, x, jac=True, method="L-BFGS-B", bounds=[(-60.0, 60.0)] * x.size, callback=remember, options=options
            )
            gained = -float(result.fun) - value
            x, value = result.x, -float(result.fun)
            iterations, reason = iterations + int(result.nit), str(result.message)
            converged = bool(result.success) or gained < 1e-6 * max(1.0, abs(value))
            if result.status != 2:  # 2: the line search failed
                break
    coordinates.write(x)
    return End(x, value, trace, iterations, evaluations, converged, reason)


class Coordinates:
    """The unconstrained vector that an optimiser moves, as a view of a model's parameters.

    | symbol | name in code |
    |---|---|
    | v, what a constraint makes of the stored parameter | `value` |
    | b, its lower bound | `lower` |
    | x = log(v - b), or the stored parameter | `x` |
    """

    def __init__(self, model: gpytorch.Module) -> None:
        self._slots: list[tuple[Parameter, float | None]] = []
        for _, parameter, constraint in model.named_parameters_and_constraints():
            if parameter.requires_grad:
                self._slots.append((parameter, _softplus_bound(constraint)))

    def read(self) -> Vector:
        """The coordinates of the present parameters."""
        parts = []
        for parameter, lower in self._slots:
            raw = parameter.detach().double().reshape(-1)
            parts.append(raw if lower is None else torch.nn.functional.softplus(raw).clamp_min(1e-300).log())
        return torch.cat(parts).cpu().numpy() if parts else np.zeros(0)

    def write(self, x: Vector) -> None:
        """Set the parameters."""
        at = 0
        for parameter, lower in self._slots:
            piece = x[at : at + parameter.numel()]
            if lower is not None:
                v = np.exp(piece)
                piece = v + np.log(-np.expm1(-v))  # the inverse of softplus
            parameter.data.copy_(torch.from_numpy(piece.copy()).reshape(parameter.shape))
            at += parameter.numel()

    def gradient(self, x: Vector) -> Vector:
        """The gradient that backpropagation left in the parameters, in coordinates."""
        parts, at = [], 0
        for parameter, lower in self._slots:
            size = parameter.numel()
            slope = np.zeros(size) if parameter.grad is None else parameter.grad.double().reshape(-1).cpu().numpy()
            if lower is not None:
                v = np.exp(x[at : at + size])
                slope = slope * v / -np.expm1(-v)
            parts.append(slope)
            at += size
        return np.concatenate(parts) if parts else np.zeros(0)


def _softplus_bound(constraint: object) -> float | None:
    """The lower bound of a softplus constraint (Positive, GreaterThan), None for any other."""
    if type(constraint) not in (gpytorch.constraints.Positive, gpytorch.constraints.GreaterThan):
        return None
    if constraint._transform is not torch.nn.functional.softplus or constraint.lower_bound.numel() != 1:  # type: ignore[attr-defined]
        return None
    return float(constraint.lower_bound)  # type: ignore[attr-defined]
