"""Fit of a stochastic variational GP by minibatches: natural gradients for q(v), Adam for everything else."""

import time

import torch

from gpmoe.inference.marginal_likelihood import log_prior, prior_of
from gpmoe.inference.minibatches import SETTLED, expect_passes, falling_steps, late_gain, optimisers_of
from gpmoe.inference.report import FitReport, warn_about
from gpmoe.inference.solver import Cholesky
from gpmoe.linalg import lapack
from gpmoe.linalg.threads import threads_for
from gpmoe.models.stochastic_variational_gp import StochasticVariationalGP


def fit_stochastic(
    gp: StochasticVariationalGP,
    *,
    epochs: int = 50,
    batch_size: int = 1024,
    natural_step: float = 0.1,
    learning_rate: float = 0.01,
    seed: int | None = None,
) -> FitReport:
    """Maximise the bound plus the log priors over q(v) and all parameters of a model that want a gradient, in place.

    Each epoch sees every row once, in random order. In the second half of the epochs both step sizes fall linearly,
    to a hundredth.

    Args:
        gp: the model; with batch dimensions all its members see the same rows.
        epochs: how often each row is seen.
        batch_size: rows a step.
        natural_step: share of the way that q(v) goes to its optimum for a minibatch; with Gaussian noise and all rows
            in one batch, 1 reaches the optimum in one step.
        learning_rate: Adam's, for kernel, mean, likelihood and inducing points as they are stored.
        seed: for the order of rows.

    Returns:
        The report; `objective_trace` holds the mean over the minibatches of each epoch, `starts` the bound over all
        rows plus the log priors at the end.

    Warns:
        NotConvergedWarning: if the last tenth of the epochs still gained 0.01 nats an observation.
        JitterWarning: if the covariance of the inducing points needed jitter at the result.

    Raises:
        InputError: for less than one epoch or row a step.
        NotPositiveDefiniteError: if a natural step is too long.
    """
    report = fit_stochastic_quietly(
        gp, epochs=epochs, batch_size=batch_size, natural_step=natural_step, learning_rate=learning_rate, seed=seed
    )
    warn_about(report, stacklevel=3)
    return report


def fit_stochastic_quietly(
    gp: StochasticVariationalGP,
    *,
    epochs: int = 50,
    batch_size: int = 1024,
    natural_step: float = 0.1,
    learning_rate: float = 0.01,
    seed: int | None = None,
) -> FitReport:
    """`fit_stochastic` without its warnings, for fits that are part of another one."""
    expect_passes(epochs, batch_size)
    start = time.perf_counter()
    n = gp.y.shape[-1]
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    priors = prior_of(gp)
    optimisers = optimisers_of(gp, natural_step, learning_rate)
    schedules = falling_steps(optimisers, epochs)
    trace = []
    with Cholesky().applied(), torch.enable_grad(), threads_for(max(min(batch_size, n), gp.inducing_points.shape[-2])):
        for _ in range(epochs):
            values = []
            for rows in torch.randperm(n, generator=generator).split(batch_size):
                gp.zero_grad(set_to_none=True)
                objective = gp.elbo(rows.to(gp.X.device)).sum() + priors()
                (-objective).backward()
                for each in optimisers:
                    each.step()
                values.append(float(objective.detach()))
            for schedule in schedules:
                schedule.step()
            trace.append(sum(values) / len(values))
        final = _whole(gp, batch_size)
    gained = late_gain(trace) / n
    return FitReport(
        objective_trace=tuple(trace),
        iterations=epochs * -(-n // batch_size),
        evaluations=epochs * -(-n // batch_size),
        converged=gained < SETTLED,
        reason=f"{epochs} epochs; the last tenth gained {gained:.2g} nats an observation",
        jitter=gp.factor().jitter,
        seconds=time.perf_counter() - start,
        solver=f"natural gradients and Adam, minibatches of {batch_size}; {Cholesky()} by {lapack.provider()}",
        starts=(final,),
    )


def _whole(gp: StochasticVariationalGP, batch_size: int) -> float:
    """The bound over all rows plus the log priors; by blocks, each of which gives an estimate."""
    n = gp.y.shape[-1]
    with torch.no_grad():
        blocks = torch.arange(n, device=gp.X.device).split(batch_size)
        estimates = [float(gp.elbo(rows).sum()) * len(rows) / n for rows in blocks]
        return sum(estimates) + float(log_prior(gp))
