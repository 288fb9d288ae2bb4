"""Conjugate variational EM for mixtures of experts.

q(z) prod_k q(f_k) q(gate), with q(z_n = k) = r_nk. Given r, expert k holds point n with weight r_nk, and q(f_k)
integrates out of the bound:

    bound = sum_k log Z_k + E[log gate] - KL(gate) - sum_nk r_nk log r_nk + log priors

where log Z_k is `Expert.evidence` and a point with r_nk = 0 is not there. Each step, of r, of the gate and of the
hyperparameters, can only raise it.

Source: Nguyen and Bonilla (2014), Fast Allocation of Gaussian Process Experts, eq. 15-17, with exact experts.
"""

import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor

from gpmoe.inference.fit import Climber, fit_quietly
from gpmoe.inference.marginal_likelihood import log_prior
from gpmoe.inference.mixture_starts import Start as Start
from gpmoe.inference.mixture_starts import cluster_starts as cluster_starts
from gpmoe.inference.mixture_starts import merge_experts
from gpmoe.inference.mixture_starts import split_experts as split_experts
from gpmoe.inference.plain_evidence import plain_evidence
from gpmoe.inference.report import FitReport, warn_about
from gpmoe.inference.shared_parameters import Together, sharing_groups
from gpmoe.inference.solver import Cholesky
from gpmoe.kernels.description import share_modules, shared_modules
from gpmoe.linalg import lapack
from gpmoe.linalg.threads import at_most_threads, threads_for
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.expert import Expert
from gpmoe.models.gaussian_model import LearnableModel
from gpmoe.models.mixture_of_experts import MixtureOfExperts
from gpmoe.models.sparse_mixture_of_experts import SparseMixtureOfExperts

_STEPS = 2  # of L-BFGS in each M-step
_TOLERANCE = 1e-4  # nats a point by which an iteration must raise the bound to go on
_SCREENING = 4  # iterations that each start gets before the best go on
_FINALISTS = 2  # starts that go on to their end
_SCREENING_ROWS = 256  # on more rows than these the search is made on so many of them, drawn at random


def expert_evidence(expert: Expert) -> Tensor:
    """An expert's share of the bound, a scalar in nats, differentiable: what its hyperparameters maximise."""
    return expert.evidence()


def _expected_log_likelihood(climber: Climber, X: Tensor, y: Tensor) -> Tensor:
    """That of the expert which a climber nudges, written out where the expert is."""
    if climber.plain is None:
        expected: Tensor = climber.model.expected_log_likelihood(X, y)
        return expected
    mean, variance = climber.plain.marginals(X)
    noise = climber.plain.noise
    return torch.from_numpy(-0.5 * (math.log(2 * math.pi * noise) + ((y.numpy() - mean) ** 2 + variance) / noise))


def fit_mixture(
    moe: MixtureOfExperts,
    *,
    solver: Cholesky | None = None,
    n_restarts: int = 6,
    seed: int | None = None,
    max_iterations: int = 200,
) -> FitReport:
    """Fit gate, experts and responsibilities, in place.

    One GP is fitted to all points. Each start assigns the points to experts by another clustering of inputs, targets
    and that GP's residuals and runs a few iterations; the two best go on to their ends. On more than 256 rows all this
    is done on so many of them, drawn at random, and what it finds goes on on all rows.

    Args:
        moe: the model; with one expert this is `fit` on it.
        solver: `Cholesky()` if None.
        n_restarts: number of starts, which run through joblib.
        seed: for the clusterings.
        max_iterations: of variational EM.

    Returns:
        The report; its objective is the bound.

    Warns:
        NotConvergedWarning, JitterWarning: as `fit` does.
    """
    report = _Search(solver or Cholesky(), n_restarts, seed, max_iterations).fit(moe)
    warn_about(report, stacklevel=3)
    return report


def choose_n_experts(
    make: Callable[[int], MixtureOfExperts],
    *,
    solver: Cholesky | None = None,
    n_restarts: int = 6,
    seed: int | None = None,
    max_iterations: int = 200,
    most: int = 4,
    rivals: Sequence[MixtureOfExperts] = (),
) -> tuple[MixtureOfExperts, FitReport]:
    """Fit mixtures of one, two, ... experts and keep the one with the largest approximate log evidence.

    The evidence is the bound plus Laplace's approximation for the gate's point estimate plus log k!, for the
    relabellings that the bound does not see. Each mixture also starts from the one before it with one expert split.
    The search ends after two sizes in a row that bring nothing, or where an expert would be left with fewer than ten
    points on average. Then it goes down again: each size is also tried from the next larger one with its two closest
    experts merged.

    Args:
        make: an unfitted model of so many experts.
        solver, n_restarts, seed, max_iterations: as for `fit_mixture`.
        most: the largest mixture to try.
        rivals: unfitted mixtures of other experts on the same data, of which one is kept if its evidence is larger
            still: one of a single `HeteroscedasticGP`, for instance, where noise changes gradually.

    Returns:
        The model and its report.
    """
    search = _Search(solver or Cholesky(), n_restarts, seed, max_iterations)
    first = make(1)
    fitted = [(first, search.fit(first))]
    scores = [fitted[0][1].objective_trace[-1]]
    for k in range(2, min(most, len(first.y) // 10) + 1):
        if k - 1 - int(np.argmax(scores)) > 2:
            break
        moe = make(k)
        report = search.fit(moe, split_experts(fitted[-1][0]))
        fitted.append((moe, report))
        scores.append(log_evidence(moe, report.objective_trace[-1]))
    _from_above(make, replace(search, n_restarts=0), fitted, scores)
    for rival in rivals:
        report = search.fit(rival)
        fitted.append((rival, report))
        scores.append(log_evidence(rival, report.objective_trace[-1]))
    moe, report = fitted[int(np.argmax(scores))]
    warn_about(report, stacklevel=3)
    return moe, report


def _from_above(
    make: Callable[[int], MixtureOfExperts],
    search: "_Search",
    fitted: list[tuple[MixtureOfExperts, FitReport]],
    scores: list[float],
) -> None:
    """Replace mixtures by better ones that come from merging experts of the next larger."""
    for k in range(len(fitted) - 1, 1, -1):
        moe = make(k)
        report = search.fit(moe, merge_experts(fitted[k][0]))
        score = log_evidence(moe, report.objective_trace[-1])
        if score > scores[k - 1]:
            fitted[k - 1], scores[k - 1] = (moe, report), score


def log_evidence(moe: MixtureOfExperts | SparseMixtureOfExperts, bound: float) -> float:
    """Approximate log evidence of a fitted mixture, which compares mixtures of different sizes.

    Args:
        moe: the mixture, at its optimum.
        bound: its evidence bound plus the log priors, nats.

    Returns:
        The bound plus Laplace's approximation for the gate's point estimate plus log k!, nats.
    """
    if moe.n_experts == 1:
        return bound
    return bound + float(moe.gate.log_occam_factor(moe.X)) + math.lgamma(moe.n_experts + 1)


@dataclass(frozen=True)
class _Search:
    """Starts, screening and the final run."""

    solver: Cholesky
    n_restarts: int
    seed: int | None
    max_iterations: int

    def fit(self, moe: MixtureOfExperts, further: Sequence[Start] = ()) -> FitReport:
        """Fit a mixture of any size, in place, from clusterings and `further` starts."""
        start = time.perf_counter()
        if moe.n_experts > 1 and len(moe.y) > _SCREENING_ROWS:
            return self._fit_from_subset(moe, further)
        if moe.n_experts == 1:
            return self._fit_one(moe, start)
        starts, evaluations = list(further), 0
        if self.n_restarts:
            first = moe.all_experts[0]
            single = deepcopy(first) if isinstance(first, ExactGP) else ExactGP(moe.X, moe.y)
            single.set_data(moe.X, moe.y)
            evaluations = fit_quietly(single, solver=self.solver).evaluations
            with threads_for(len(moe.y)):
                starts += cluster_starts(moe, single, self.n_restarts, self.seed)
        jobs = (delayed(_screen)(deepcopy(moe), begin, self.solver, lapack.provider()) for begin in starts)
        screened: list[_Run] = Parallel()(jobs)
        finalists = sorted(screened, key=lambda run: run.trace[-1])[-_FINALISTS:]
        ends = [self._run(run.moe) for run in finalists]
        best, end = max(zip(finalists, ends, strict=True), key=lambda pair: pair[1].trace[-1])
        evaluations += sum(run.evaluations for run in [*screened, *ends])
        return self._finish(moe, end, best, evaluations, tuple(run.trace[-1] for run in screened), start)

    def _fit_one(self, moe: MixtureOfExperts, start: float) -> FitReport:
        """Fit the only expert, by `fit` where it is a model of its own."""
        expert = moe.all_experts[0]
        expert.set_data(moe.X, moe.y)
        if isinstance(expert, LearnableModel):
            return fit_quietly(expert, solver=self.solver)
        end = self._run(moe)
        return self._finish(moe, end, None, end.evaluations, (end.trace[-1],), start)

    def _fit_from_subset(self, moe: MixtureOfExperts, further: Sequence[Start]) -> FitReport:
        """Search on some of the rows, then go on from there on all of them."""
        start = time.perf_counter()
        chosen = np.random.default_rng(self.seed).choice(len(moe.y), _SCREENING_ROWS, replace=False)
        rows = torch.from_numpy(np.sort(chosen))
        small = moe.on_rows(rows)
        found = self.fit(small, [Start(begin.responsibilities[rows], begin.models) for begin in further])
        for source, target in zip(small.all_experts, moe.all_experts, strict=True):
            _copy_parameters(source, target)
        shared = shared_modules(moe)
        moe.gate = small.gate
        share_modules(moe, shared)
        moe.set_responsibilities(small.membership(moe.X, moe.y))
        end = self._run(moe)
        return self._finish(moe, end, None, found.evaluations + end.evaluations, found.starts, start)

    def _run(self, moe: MixtureOfExperts) -> "_Run":
        return run_em(moe, self.solver, self.max_iterations, _TOLERANCE * len(moe.y))

    def _finish(
        self,
        moe: MixtureOfExperts,
        end: "_Run",
        before: "_Run | None",
        evaluations: int,
        starts: tuple[float, ...],
        start: float,
    ) -> FitReport:
        """Take the model that EM ended with, and report."""
        moe.experts, moe.gate = end.moe.experts, end.moe.gate
        moe.responsibilities = end.moe.responsibilities
        runs = [end] if before is None else [before, end]
        trace = tuple(value for run in runs for value in run.trace)
        return FitReport(
            objective_trace=trace,
            iterations=len(trace),
            evaluations=evaluations,
            converged=end.converged,
            reason="the bound rose by less than the tolerance" if end.converged else "max_iterations reached",
            jitter=max(expert.jitter_needed() for expert in moe.all_experts),
            seconds=time.perf_counter() - start,
            solver=f"{self.solver} by {lapack.provider()}",
            starts=starts,
            usage=tuple(shares for run in runs for shares in run.usage),
        )


@dataclass(frozen=True)
class _Run:
    """A model, the bound and the experts' shares of the points after each iteration, and how it ended."""

    moe: MixtureOfExperts
    trace: list[float]
    usage: list[tuple[float, ...]]
    evaluations: int
    converged: bool


def _copy_parameters(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Start an expert where another model ended, as far as their parameters are the same ones."""
    values = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        if name in values and values[name].shape == parameter.shape:
            parameter.data.copy_(values[name].detach())


def _screen(moe: MixtureOfExperts, start: Start, solver: Cholesky, name: lapack.Provider) -> _Run:
    """A few iterations from one start; what a worker runs."""
    with lapack.use_provider(name), at_most_threads(1):  # as for restarts
        for model, expert in zip(start.models or [], moe.all_experts, strict=False):
            _copy_parameters(model, expert)
        moe.set_responsibilities(start.responsibilities)
        return run_em(moe, solver, _SCREENING, 0.0)


def run_em(moe: MixtureOfExperts, solver: Cholesky, max_iterations: int, tolerance: float) -> _Run:
    """Variational EM from the present responsibilities.

    Args:
        moe: the model, changed in place.
        solver: how linear systems are solved.
        max_iterations: the most.
        tolerance: stop when the bound rises by less, nats.

    Returns:
        The trace of the bound, which never falls.
    """
    trace: list[float] = []
    usage: list[tuple[float, ...]] = []
    climbers = [_expert_climber(expert) for expert in moe.all_experts]
    gate = _gate_climber(moe)
    movers = _movers(climbers if gate is None else [*climbers, gate])
    converged = False
    with solver.applied(), torch.enable_grad(), threads_for(len(moe.y)):
        while len(trace) < max_iterations and not converged:
            if trace:
                _assign(moe, climbers)
            trace.append(_maximise(moe, movers, gate is not None))
            usage.append(tuple(moe.responsibilities.mean(0).tolist()))
            converged = len(trace) > 1 and trace[-1] - trace[-2] < tolerance
    evaluations = sum(mover.evaluations for mover in movers if mover is not gate)
    return _Run(moe, trace, usage, evaluations, converged)


def _assign(moe: MixtureOfExperts, climbers: list[Climber]) -> None:
    """The E-step: responsibilities at their optimum for the present q(f) and gate."""
    with torch.no_grad():
        log_likelihood = torch.stack([_expected_log_likelihood(climber, moe.X, moe.y) for climber in climbers], -1)
        moe.set_responsibilities(torch.softmax(log_likelihood + moe.gate.expected_log_probs(moe.X), -1))


def _expert_climber(expert: Any) -> Climber:
    """What nudges an expert's hyperparameters."""
    return Climber(expert, expert_evidence, plain_evidence(expert) if isinstance(expert, ExactGP) else None)


def _gate_climber(moe: MixtureOfExperts) -> Climber | None:
    """What nudges the gate's hyperparameters, None for a gate without any."""
    if not isinstance(moe.gate, torch.nn.Module) or not any(p.requires_grad for p in moe.gate.parameters()):
        return None
    return Climber(moe.gate, lambda gate: gate.bound(moe.X, moe.responsibilities))


def _movers(climbers: list[Climber]) -> list[Climber]:
    """What the M-step nudges: each climber, or one for all of a group whose models share parameters."""
    movers = []
    for group in sharing_groups([climber.model for climber in climbers]):
        members = [climbers[i] for i in group]
        if len(members) == 1:
            movers += members
            continue
        for member in members:
            member.plain = None  # which keeps values of its own
        parts, objectives = [each.model for each in members], [each.objective for each in members]
        movers.append(Climber(Together(parts, objectives), Together.objective))
    return movers


def _maximise(moe: MixtureOfExperts, movers: list[Climber], gate_moves: bool) -> float:
    """The M-step of gate and hyperparameters; returns the bound."""
    X, r = moe.X, moe.responsibilities
    with torch.no_grad():
        moe.gate.fit_step(X, r)
        for expert in moe.all_experts:
            expert.fit_step()
    total = sum(mover.nudge(_STEPS) for mover in movers)
    if not gate_moves:
        of_gate = float(moe.gate.bound(X, r).detach())
        total += of_gate + float(log_prior(moe.gate)) if isinstance(moe.gate, torch.nn.Module) else of_gate
    return total - float(torch.special.xlogy(r, r).sum())
