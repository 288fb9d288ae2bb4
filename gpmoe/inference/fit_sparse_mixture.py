"""Fit of a mixture of sparse experts by minibatches.

Natural gradients for every q(v_k), Adam for hyperparameters, inducing points and the parameters of gates that learn by
gradient; other gates take their own closed-form step once an epoch, on some rows with their responsibilities.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from gpytorch.kernels import Kernel
from gpytorch.optim import NGD
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.gates import Gate
from gpmoe.inference.fit import Climber
from gpmoe.inference.marginal_likelihood import log_prior, prior_of
from gpmoe.inference.minibatches import SETTLED, expect_passes, falling_steps, late_gain, optimisers_of
from gpmoe.inference.report import FitReport, warn_about
from gpmoe.inference.solver import Cholesky
from gpmoe.linalg import lapack
from gpmoe.linalg.threads import threads_for
from gpmoe.models.sparse_mixture_of_experts import SparseMixtureOfExperts

GATE_ROWS = 20_000  # random rows from which a gate learns in closed form
_GP_GATE_ROWS = 1000  # the same for a gate whose cost grows with the cube of rows
_GATE_STEPS = 2  # of L-BFGS for a gate's hyperparameters, once an epoch
_BLOCK = 4096  # rows at a time of a pass over all
_OBJECTIVES = ("elbo", "tight")
_LEAST_STEPS, _LEAST_EPOCHS = 1000, 10


def gate_rows(gate: Gate, n: int) -> int:
    """How many of n rows a gate's closed-form step takes: fewer if the gate is made of GPs."""
    of_gps = isinstance(gate, torch.nn.Module) and any(isinstance(part, Kernel) for part in gate.modules())
    return min(n, _GP_GATE_ROWS if of_gps else GATE_ROWS)


def learns_by_gradient(gate: Gate, X: Tensor) -> bool:
    """Whether a gate's probabilities at X ``(m, d)`` are differentiable in parameters of its own."""
    with torch.enable_grad():
        return gate.log_probs(X).requires_grad


def fit_sparse_mixture(
    moe: SparseMixtureOfExperts,
    *,
    epochs: int | None = None,
    batch_size: int = 1024,
    natural_step: float = 0.1,
    learning_rate: float = 0.01,
    objective: str = "elbo",
    seed: int | None = None,
) -> FitReport:
    """Maximise the bound plus the log priors over gate, experts and their q(v), in place, from where the model stands.

    Each epoch sees every row once, in random order. In the second half of the epochs step sizes fall linearly, to a
    hundredth. `hard_em.sparse_from_exact` makes models from which this starts well.

    Args:
        moe: the model.
        epochs: how often each row is seen; if None ten times, and more often where that would be fewer than a thousand
            steps.
        batch_size: rows a step.
        natural_step: share of the way that each q(v_k) goes to its optimum for a minibatch.
        learning_rate: Adam's.
        objective: "elbo"; or "tight", for the end: all parameters climb the predictive log likelihood, while each
            q(v_k) stays the posterior by the bound's natural gradient, which can't take a precision below the prior's.
        seed: for the order of rows.

    Returns:
        The report; `objective_trace` holds the mean over the minibatches of each epoch, `starts` the objective over all
        rows plus the log priors at the end.

    Warns:
        NotConvergedWarning: if the last tenth of the epochs still gained 0.01 nats an observation.
        JitterWarning: if the covariance of inducing points needed jitter at the result.

    Raises:
        InputError: for an unknown objective, or less than one epoch or row a step.
        NotPositiveDefiniteError: if a natural step is too long.
    """
    if objective not in _OBJECTIVES:
        raise InputError(f"`objective` must be 'elbo' or 'tight'; got {objective!r}.")
    expect_passes(epochs, batch_size)
    start = time.perf_counter()
    n = len(moe.y)
    steps = -(-n // batch_size)
    epochs = max(_LEAST_EPOCHS, -(-_LEAST_STEPS // steps)) if epochs is None else epochs
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    optimisers = optimisers_of(moe, natural_step, learning_rate, held=_held(moe))
    schedules = falling_steps(optimisers, epochs)
    step, trace = _Step(moe, objective, optimisers), []
    with Cholesky().applied(), torch.enable_grad(), threads_for(min(batch_size, n)):
        for _ in range(epochs):
            order = torch.randperm(n, generator=generator)
            _fit_gate(moe, order)
            trace.append(sum(step(rows) for rows in order.split(batch_size)) / steps)
            for schedule in schedules:
                schedule.step()
        final = _whole(moe, objective)
    gained = late_gain(trace) / n
    report = FitReport(
        objective_trace=tuple(trace),
        iterations=epochs * steps,
        evaluations=epochs * steps,
        converged=gained < SETTLED,
        reason=f"{epochs} epochs; the last tenth gained {gained:.2g} nats an observation",
        jitter=max(expert.factor().jitter for expert in moe.all_experts),
        seconds=time.perf_counter() - start,
        solver=f"natural gradients and Adam on {objective!r}, minibatches of {batch_size}; {Cholesky()} by "
        f"{lapack.provider()}",
        starts=(final,),
    )
    warn_about(report, stacklevel=3)
    return report


class _Step:
    """One minibatch: gradients into every parameter, then a step of each optimiser; returns the objective."""

    def __init__(self, moe: SparseMixtureOfExperts, objective: str, optimisers: list[torch.optim.Optimizer]) -> None:
        self.moe, self.objective, self.optimisers = moe, objective, optimisers
        self.priors = prior_of(moe)
        self.natural = moe.natural_parameters()
        self.gate_learns = moe.n_experts > 1 and learns_by_gradient(moe.gate, moe.X[:1])

    def __call__(self, rows: Tensor) -> float:
        self.moe.zero_grad(set_to_none=True)
        value = getattr(self.moe, self.objective)(rows) + self.priors()
        if self.gate_learns:
            value = value + self.moe.gate.log_prior()
        (-value).backward()
        if self.objective != "elbo":
            natural = torch.autograd.grad(-self.moe.elbo(rows), self.natural)
            for parameter, gradient in zip(self.natural, natural, strict=True):
                parameter.grad = gradient
        for each in self.optimisers:
            each.step()
        return float(value.detach())


def _held(moe: SparseMixtureOfExperts) -> list[torch.nn.Parameter]:
    """Parameters of a gate that learns in closed form: `_fit_gate` moves them, with the posterior they belong to."""
    closed = moe.n_experts > 1 and not learns_by_gradient(moe.gate, moe.X[:1])
    return list(moe.gate.parameters()) if closed and isinstance(moe.gate, torch.nn.Module) else []


def _fit_gate(moe: SparseMixtureOfExperts, order: Tensor) -> None:
    """The closed-form step of a gate that has one, and a few steps of its hyperparameters."""
    if moe.n_experts == 1 or learns_by_gradient(moe.gate, moe.X[:1]):
        return
    rows = order[: gate_rows(moe.gate, len(order))]
    X = moe.X[rows]
    r = moe.responsibilities(X, moe.y[rows])
    with torch.no_grad():
        moe.gate.fit_step(X, r)
    if isinstance(moe.gate, torch.nn.Module) and any(p.requires_grad for p in moe.gate.parameters()):
        Climber(moe.gate, lambda gate: gate.bound(X, r)).nudge(_GATE_STEPS)
        with torch.no_grad():
            moe.gate.fit_step(X, r)


def natural_pass(
    moe: SparseMixtureOfExperts, rows: Tensor, responsibilities: Tensor | None = None, *, natural_step: float = 1.0
) -> float:
    """One natural gradient step of every q(v_k) from all the given rows, in bounded memory.

    With Gaussian likelihoods and a step of one each q(v_k) is then the posterior given the responsibilities.

    Args:
        moe: the model, changed in place; only its q(v_k) change.
        rows: indices ``(m,)``; they stand for all n.
        responsibilities: ``(m, k)``; at their optimum if None.
        natural_step: share of the way.

    Returns:
        The bound before the step, nats.
    """
    optimiser = NGD(moe.natural_parameters(), num_data=1, lr=natural_step)
    total = 0.0
    with Cholesky().applied(), torch.enable_grad(), threads_for(len(rows)), _only(moe, moe.natural_parameters()):
        optimiser.zero_grad()
        blocks = rows.split(_BLOCK)
        shares = [None] * len(blocks) if responsibilities is None else responsibilities.split(_BLOCK)
        for block, r in zip(blocks, shares, strict=True):
            value = moe.elbo(block, r) * (len(block) / len(rows))
            (-value).backward()
            total += float(value.detach())
        optimiser.step()
        optimiser.zero_grad()
    return total


@contextmanager
def _only(moe: SparseMixtureOfExperts, wanted: list[torch.nn.Parameter]) -> Iterator[None]:
    """No gradient for other parameters in a block."""
    known = {id(parameter) for parameter in wanted}
    others = [each for each in moe.parameters() if each.requires_grad and id(each) not in known]
    before = [(each, each.requires_grad) for each in wanted]
    for each in others:
        each.requires_grad_(False)
    for each in wanted:
        each.requires_grad_(True)
    try:
        yield
    finally:
        for each in others:
            each.requires_grad_(True)
        for each, wants in before:
            each.requires_grad_(wants)


def _whole(moe: SparseMixtureOfExperts, objective: str) -> float:
    """The objective over all rows plus the log priors; by blocks, each of which gives an estimate."""
    n = len(moe.y)
    with torch.no_grad():
        estimates = [float(getattr(moe, objective)(rows)) * len(rows) / n for rows in torch.arange(n).split(_BLOCK)]
        return sum(estimates) + float(log_prior(moe)) + float(moe.gate.log_prior())
