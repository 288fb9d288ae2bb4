"""Fine-tuning of a mixture of exact experts on its leave-one-out predictive log likelihood.

    sum_n log sum_k π_k(x_n) N(y_n; μ_k^-n, v_k^-n + σ_k²)

The sum over experts stands inside the logarithm, as in prediction, where the bound of variational EM has it outside;
and each point is predicted from all others, so that an expert can't win by fitting the point itself.

| symbol | name in code | shape |
|---|---|---|
| S = diag(r/σ²)^½, r the responsibilities | `root` | (n,) |
| L L' = B = I + S K S, diag(B⁻¹) | `L`, `kept` | (n, n), (n,) |
| μ, v of f_n given all points | `mean`, `variance` | (n,) |

A point's own term takes the share 1 - diag(B⁻¹) of its precision; dividing it out gives μ^-n and v^-n. B has no
eigenvalue below one, so that points of no responsibility need no special care.

Source: Rasmussen and Williams (2006), eq. 3.27 and 3.56 for the moments, sec. 5.4.2 for the objective with one expert.
"""

import time

import torch
from gpytorch.likelihoods import GaussianLikelihood
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.inference.fit import Climber
from gpmoe.inference.fit_sparse_mixture import learns_by_gradient
from gpmoe.inference.report import FitReport, warn_about
from gpmoe.inference.solver import Cholesky
from gpmoe.linalg import lapack
from gpmoe.linalg.stationary import dense_covariance
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.mixture_of_experts import MixtureOfExperts


def leave_one_out_log_likelihood(moe: MixtureOfExperts) -> Tensor:
    """log density of each target under the mixture given all others, summed; differentiable.

    Responsibilities are taken as they are, as in `MixtureOfExperts.leave_one_out`.

    Args:
        moe: a mixture of `ExactGP` experts with one noise variance each.

    Returns:
        A scalar in nats.

    Raises:
        InputError: for other experts.
    """
    _expect_exact(moe)
    densities = []
    for k, expert in enumerate(moe.all_experts):
        mean, variance = _left_out(expert, moe.X, moe.y, moe.responsibilities[:, k])
        densities.append(-0.5 * ((2 * torch.pi * variance).log() + (moe.y - mean).square() / variance))
    return torch.logsumexp(torch.stack(densities, -1) + moe.gate.log_probs(moe.X), -1).sum()


def fit_leave_one_out(moe: MixtureOfExperts, *, max_iterations: int = 50) -> FitReport:
    """Maximise `leave_one_out_log_likelihood` plus the log priors, in place, from where `fit_mixture` ended.

    Hyperparameters of all experts move, and the gate's parameters if its probabilities have a gradient;
    responsibilities stay. Costs a few n³ an expert and iteration. Where experts and gate describe the data well,
    variational EM predicts as well without it; it is for those that can't, whose noise or gate the bound misjudges.

    Args:
        moe: a fitted mixture of exact experts.
        max_iterations: of L-BFGS.

    Returns:
        The report; its trace begins with the objective at the start and never falls.

    Raises:
        InputError: for experts that are not exact GPs with one noise variance, or if all parameters are frozen.

    Warns:
        NotConvergedWarning: if the line search failed; the iteration limit is no failure of fine-tuning.

    Example:
        >>> from gpmoe.inference import fit_mixture
        >>> X = torch.linspace(-1, 1, 30, dtype=torch.float64).unsqueeze(-1)
        >>> moe = MixtureOfExperts(X, X.abs().squeeze(-1), n_experts=2)
        >>> report = fit_mixture(moe, seed=0, n_restarts=1)
        >>> report = fit_leave_one_out(moe, max_iterations=5)
        >>> report.objective_trace[-1] >= report.objective_trace[0]
        True
    """
    _expect_exact(moe)
    if not any(parameter.requires_grad for parameter in moe.parameters()):
        raise InputError(
            "no parameter of the mixture wants a gradient, so nothing would move; an estimator's `model_` is frozen: "
            "call `model_.requires_grad_(True)` first."
        )
    start = time.perf_counter()
    held = [] if learns_by_gradient(moe.gate, moe.X[:1]) else _parameters(moe.gate)
    before = [parameter.requires_grad for parameter in held]
    for parameter in held:
        parameter.requires_grad_(False)
    climber = Climber(moe, lambda model: leave_one_out_log_likelihood(model) + model.gate.log_prior())
    first = climber.coordinates.read()
    with torch.no_grad():
        value = float(leave_one_out_log_likelihood(moe) + moe.gate.log_prior() + climber.log_prior())
    end = climber.climb(Cholesky(), max_iterations)
    better = end.value >= value
    if not better:
        climber.coordinates.write(first)
    for parameter, wanted in zip(held, before, strict=True):
        parameter.requires_grad_(wanted)
    trace = [value, *(end.trace if better else ())]
    report = FitReport(
        objective_trace=tuple(trace),
        iterations=end.iterations,
        evaluations=end.evaluations,
        converged=end.converged or end.iterations >= max_iterations,
        reason=end.reason,
        jitter=0.0,
        seconds=time.perf_counter() - start,
        solver=f"L-BFGS on the leave-one-out likelihood; {Cholesky()} by {lapack.provider()}",
        starts=(trace[-1],),
    )
    warn_about(report, stacklevel=3)
    return report


def _expect_exact(moe: MixtureOfExperts) -> None:
    for k, expert in enumerate(moe.all_experts):
        if not isinstance(expert, ExactGP) or not isinstance(expert.likelihood, GaussianLikelihood):
            likelihood = f" with {type(expert.likelihood).__name__}" if isinstance(expert, ExactGP) else ""
            raise InputError(
                f"leaving one out needs `ExactGP` experts with one noise variance; expert {k} is a "
                f"{type(expert).__name__}{likelihood}. Fit such a mixture by `fit_mixture` alone."
            )


def _parameters(gate: object) -> list[torch.nn.Parameter]:
    return list(gate.parameters()) if isinstance(gate, torch.nn.Module) else []


def _left_out(expert: ExactGP, X: Tensor, y: Tensor, responsibilities: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each target given all others, noise included, ``(n,)``; differentiable."""
    noise = expert.likelihood.noise
    root = responsibilities.sqrt() * noise.rsqrt()
    K, prior_mean = dense_covariance(expert.covar_module, X, X), expert.mean_module(X)
    L = torch.linalg.cholesky(torch.eye(len(X)).to(X) + root.unsqueeze(-1) * K * root)
    inverse = torch.linalg.solve_triangular(L, torch.eye(len(X)).to(X), upper=False)
    explained = inverse @ (root.unsqueeze(-1) * K)
    kept = inverse.square().sum(0)
    mean = prior_mean + explained.mT @ (inverse @ (root * (y - prior_mean)))
    variance = K.diagonal() - explained.square().sum(0)
    share = root.square() * variance
    return (mean - share * y) / kept, variance / kept + noise
