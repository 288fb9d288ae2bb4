"""Hyperparameters by L-BFGS-B on an objective and all priors.

A parameter v with a lower bound b is optimised as log(v - b), others as they are stored: scale parameters then move
by factors, which is what their likelihood surface looks like.
"""

import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import gpytorch
import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor
from torch.nn import Parameter

from gpmoe.errors import InputError, NotPositiveDefiniteError
from gpmoe.inference.iterative_fit import fit_iteratively
from gpmoe.inference.lbfgs import LBFGS
from gpmoe.inference.marginal_likelihood import log_marginal_likelihood, prior_of
from gpmoe.inference.plain_evidence import PlainEvidence, plain_evidence
from gpmoe.inference.report import FitReport, warn_about
from gpmoe.inference.solver import Cholesky, IterativeSolver, Solver
from gpmoe.linalg import lapack
from gpmoe.linalg.threads import at_most_threads, threads_for
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.gaussian_model import LearnableModel
from gpmoe.models.iterative_gp import IterativeGP

_FAR = math.log(1e5)

Objective = Callable[[Any], Tensor]
Vector = NDArray[np.float64]


def fit(
    gp: LearnableModel,
    objective: Objective = log_marginal_likelihood,
    *,
    solver: Solver | None = None,
    n_restarts: int = 0,
    seed: int | None = None,
    max_iterations: int = 1000,
) -> FitReport:
    """Maximise an objective plus the log priors over all parameters of a model that want a gradient, in place.

    Args:
        gp: the model; its present parameters are the first start.
        objective: a function of the model to a scalar, `log_marginal_likelihood` by default.
        solver: `Cholesky()` if None, or that of an `IterativeGP`. With an iterative one, hyperparameters are fitted
            as its `schedule` says, for the marginal likelihood only; restarts are of the fit to a subset of the rows.
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
    report = fit_quietly(gp, objective, solver=solver, n_restarts=n_restarts, seed=seed, max_iterations=max_iterations)
    warn_about(report, stacklevel=3)
    return report


def fit_quietly(
    gp: LearnableModel,
    objective: Objective = log_marginal_likelihood,
    *,
    solver: Solver | None = None,
    n_restarts: int = 0,
    seed: int | None = None,
    max_iterations: int = 1000,
) -> FitReport:
    """`fit` without its warnings, for fits that are part of another one."""
    start = time.perf_counter()
    chosen: object = solver or (gp.solver if isinstance(gp, IterativeGP) else Cholesky())
    coordinates = Coordinates(gp)
    if isinstance(chosen, IterativeSolver):
        if objective is not log_marginal_likelihood:
            raise InputError(f"{chosen} maximises `log_marginal_likelihood` only; got {objective}. Use Cholesky().")
        exactly = partial(fit_quietly, n_restarts=n_restarts, seed=seed, max_iterations=max_iterations)
        return fit_iteratively(gp, chosen, coordinates, exactly)
    if isinstance(gp, IterativeGP) or not isinstance(chosen, Cholesky):
        raise InputError(f"{type(gp).__name__} can't be fitted by {chosen}; pass no solver, or make another model.")
    solver = chosen
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
        jitter=gp.jitter_needed(),
        seconds=time.perf_counter() - start,
        solver=gp.solved_by or f"{solver} by {lapack.provider()}",
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
    gp: LearnableModel,
    objective: Objective,
    solver: Cholesky,
    x: Vector,
    max_iterations: int,
    name: lapack.Provider,
) -> End:
    """Climb on a copy, with the parent's LAPACK; what a worker runs."""
    with lapack.use_provider(name), at_most_threads(1):  # in any process, so that results don't depend on which
        copy = deepcopy(gp)
        Coordinates(copy).write(x)
        return climb(copy, objective, solver, max_iterations=max_iterations)


def climb(model: gpytorch.Module, objective: Objective, solver: Cholesky, *, max_iterations: int) -> End:
    """L-BFGS-B from a model's present parameters, in place; the log priors are added to the objective."""
    exact = objective is log_marginal_likelihood and isinstance(model, ExactGP) and model.weights is None
    plain = plain_evidence(model) if exact else None
    return Climber(model, objective, plain).climb(solver, max_iterations)


class Climber:
    """L-BFGS-B on one model and objective, resumable: what must be looked up in the model is looked up once.

    Args:
        model: its parameters are changed in place.
        objective: a function of the model to a scalar; the log priors are added.
        plain: the same sum written out, if the model has one.
    """

    def __init__(self, model: gpytorch.Module, objective: Objective, plain: PlainEvidence | None = None) -> None:
        self.model = model
        self.objective = objective
        self.coordinates = Coordinates(model)
        self.log_prior = prior_of(model)
        self.plain = plain if plain is not None and self.coordinates.are_plain else None
        self.evaluations = 0
        self.lbfgs = LBFGS()

    def climb(self, solver: Cholesky, max_iterations: int) -> End:
        """Go up from the present parameters, once more from where a line search failed, and leave them at the top."""
        x = self.coordinates.read()
        value, iterations, reason, converged = float("-inf"), 0, "no free parameters", True
        trace: list[float] = []
        before = self.evaluations
        rows = max((len(data) for data in self.model.buffers() if data.dim()), default=0)
        with solver.applied(), torch.enable_grad(), threads_for(rows):
            if x.size == 0:
                value = float(self._value().detach())
            for _ in range(2 if x.size else 0):
                result = self._minimise(x, max_iterations, trace)
                gained = -float(result.fun) - value
                x, value = result.x, -float(result.fun)
                iterations, reason = iterations + int(result.nit), str(result.message)
                converged = bool(result.success) or gained < 1e-6 * max(1.0, abs(value))
                if result.status != 2:  # 2: the line search failed
                    break
        self.coordinates.write(x)
        trace = trace or [value]  # a start at the top takes no step
        return End(x, value, trace, iterations, self.evaluations - before, converged, reason)

    def nudge(self, steps: int) -> float:
        """Go up a few steps from the present parameters, with what earlier nudges learned of the curvature.

        Solver and threads are the caller's affair.

        Returns:
            The objective plus log priors at the end.
        """
        x = self.coordinates.read()
        if x.size == 0:
            return float(self._value().detach())
        x, loss = self.lbfgs.minimise(self._loss_and_gradient, x, steps, self.coordinates.floor(x))
        self.coordinates.write(x)
        if self.plain is not None:
            self.plain.set(self.coordinates.values(x))
        return -loss

    def _value(self) -> Tensor:
        return self.objective(self.model) + self.log_prior()

    def _loss_and_gradient(self, x: Vector) -> tuple[float, Vector]:
        self.evaluations += 1
        if self.plain is None:
            self.coordinates.write(x)
            self.model.zero_grad(set_to_none=True)
        try:
            if self.plain is not None:
                return self._plain_loss_and_gradient(x, self.plain)
            value = self._value()
        except NotPositiveDefiniteError:  # a trial point too far out: the line search must shorten its step
            return float("inf"), np.zeros_like(x)
        value.backward()
        return -float(value.detach()), -self.coordinates.gradient(x)

    def _plain_loss_and_gradient(self, x: Vector, plain: PlainEvidence) -> tuple[float, Vector]:
        value, slope = plain(self.coordinates.values(x))
        return -value, -self.coordinates.gradient_of_values(x, slope)

    def _minimise(self, x: Vector, max_iterations: int, trace: list[float]) -> OptimizeResult:
        def remember(intermediate_result: OptimizeResult) -> None:
            trace.append(-float(intermediate_result.fun))

        return minimize(
            self._loss_and_gradient,
            x,
            jac=True,
            method="L-BFGS-B",
            bounds=self.coordinates.bounds(x),
            callback=remember,
            options={"maxiter": max_iterations, "maxfun": 20 * max_iterations, "maxcor": 20},
        )


class Coordinates:
    """The unconstrained vector that an optimiser moves, as a view of a model's parameters.

    | symbol | name in code |
    |---|---|
    | v, what a constraint makes of the stored parameter | `value` |
    | b, its lower bound | `lower` |
    | x = log(v - b), or the stored parameter | `x` |
    """

    def __init__(self, model: gpytorch.Module) -> None:
        self._slots: list[tuple[Parameter, float | None, object]] = []
        for _, parameter, constraint in model.named_parameters_and_constraints():
            if parameter.requires_grad:
                self._slots.append((parameter, _softplus_bound(constraint), constraint))
        lower = [np.full(p.numel(), np.nan if bound is None else bound) for p, bound, _ in self._slots]
        self._lower: Vector = np.concatenate([np.zeros(0), *lower])
        self._by_factors = ~np.isnan(self._lower)

    def bounds(self, x: Vector) -> list[tuple[float | None, float | None]]:
        """How far a climb from x may take scale parameters: to 1e-5 and 1e5, further if x is; None for others.

        L-BFGS-B cuts its first step, a whole gradient, at the bounds: further out kernels are flat.
        """
        ends = ((-_FAR if c > -_FAR else c - _FAR, _FAR if c < _FAR else c + _FAR) for c in x)
        return [end if scale else (None, None) for end, scale in zip(ends, self._by_factors, strict=True)]

    def floor(self, x: Vector) -> Vector:
        """How low a nudge from x may take scale parameters: to 1e-5, or where they are; no end for others."""
        return np.where(self._by_factors, np.minimum(x, -_FAR), -np.inf)

    def read(self) -> Vector:
        """The coordinates of the present parameters."""
        parts = []
        for parameter, lower, _ in self._slots:
            raw = parameter.detach().double().reshape(-1)
            parts.append(raw if lower is None else torch.nn.functional.softplus(raw).clamp_min(1e-300).log())
        return torch.cat(parts).cpu().numpy() if parts else np.zeros(0)

    def write(self, x: Vector) -> None:
        """Set the parameters."""
        at = 0
        for parameter, lower, _ in self._slots:
            piece = x[at : at + parameter.numel()]
            if lower is not None:
                v = np.exp(piece)
                piece = v + np.log(-np.expm1(-v))  # the inverse of softplus
            parameter.data.copy_(torch.from_numpy(piece.copy()).reshape(parameter.shape))
            at += parameter.numel()

    def gradient(self, x: Vector) -> Vector:
        """The gradient that backpropagation left in the parameters, in coordinates."""
        parts, at = [], 0
        for parameter, lower, _ in self._slots:
            size = parameter.numel()
            slope = np.zeros(size) if parameter.grad is None else parameter.grad.double().reshape(-1).cpu().numpy()
            if lower is not None:
                v = np.exp(x[at : at + size])
                slope = slope * v / -np.expm1(-v)
            parts.append(slope)
            at += size
        return np.concatenate(parts) if parts else np.zeros(0)

    # What follows works on constrained values, without the stored parameters between.

    @property
    def are_plain(self) -> bool:
        """Whether each value is its coordinate, or a lower bound plus its exponential."""
        return all(lower is not None or constraint is None for _, lower, constraint in self._slots)

    def values(self, x: Vector) -> Vector:
        """Values v of the parameters at x, one raveled after another."""
        return np.where(self._by_factors, self._lower + np.exp(np.where(self._by_factors, x, 0.0)), x)

    def gradient_of_values(self, x: Vector, slope: Vector) -> Vector:
        """The gradient in coordinates from slopes in v."""
        return np.where(self._by_factors, slope * np.exp(np.where(self._by_factors, x, 0.0)), slope)


def _softplus_bound(constraint: object) -> float | None:
    """The lower bound of a softplus constraint (Positive, GreaterThan), None for any other."""
    if type(constraint) not in (gpytorch.constraints.Positive, gpytorch.constraints.GreaterThan):
        return None
    transform = constraint._transform  # type: ignore[attr-defined]
    softplus = transform is torch.nn.functional.softplus or (
        isinstance(transform, torch.nn.Softplus) and transform.beta == 1
    )
    if not softplus or constraint.lower_bound.numel() != 1:  # type: ignore[attr-defined]
        return None
    return float(constraint.lower_bound)  # type: ignore[attr-defined]
