"""A mixture of sparse variational GP experts with a probabilistic gate, learned from a few rows at a time.

    p(y | x) = Σ_k π_k(x) p(y | f_k(x)),   q(f_k) by inducing points Z_k

| symbol | name in code | shape |
|---|---|---|
| E_q log p(y_n | f_k(x_n)) | `expected` | (b, k) |
| log E_q p(y_n | f_k(x_n)) | `marginal` | (b, k) |
| r_nk ∝ π_k(x_n) exp(expected_nk) | `responsibilities` | (b, k) |

    log p(y) >= Σ_n log Σ_k exp(log π_k(x_n) + expected_nk) - Σ_k KL(q(v_k) || N(0, I))

Responsibilities are at their optimum for every row inside that sum, so that nothing is kept for a row, and n/b times
the sum over b random rows is an unbiased estimate.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, TypeVar, cast

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import Likelihood
from gpytorch.means import ConstantMean
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from gpmoe.distributions import Predictive
from gpmoe.errors import DtypeError, InputError, ShapeError
from gpmoe.gates import Gate
from gpmoe.kernels.dimension_scaled import expert_matern
from gpmoe.models.categorical_likelihood import CategoricalLikelihood
from gpmoe.models.gaussian_model import expect_inputs
from gpmoe.models.gaussian_noise import LEAST_SHARED_NOISE, gaussian_noise
from gpmoe.models.mixture_model import MixtureModel
from gpmoe.models.mixture_of_experts import gate_of
from gpmoe.models.stochastic_variational_gp import StochasticVariationalGP

_BLOCK = 4096  # rows at a time of passes over many
_Part = TypeVar("_Part", Tensor, Kernel, Likelihood)


class SparseMixtureOfExperts(gpytorch.Module, MixtureModel):
    """Sparse variational GP experts, each on the whole input space, mixed by a gate.

    `inference.fit_sparse_mixture` fits it by minibatches; `inference.hard_em` finds where to start. The experts stand
    side by side instead of in one batch: each has its own number of inducing points and its own likelihood, and takes
    the fused covariance pass, which has no batched form.

    Args:
        X: ``(n, d)``, float64, about unit variance; memory-mapped if it is large.
        y: ``(n,)``; class indices for a `CategoricalLikelihood`.
        Z: inducing points ``(p, d)`` with which every expert starts, or k of them.
        n_experts: k.
        kernel: a GPyTorch kernel for every expert (copied), or one for each; if None `kernels.expert_matern`, and for
            a single expert the default of `StochasticVariationalGP`.
        likelihood: a GPyTorch likelihood of one latent function or a `CategoricalLikelihood` for every expert
            (copied), or one for each; Gaussian with a learned noise variance, at least 1e-4 where there are several
            experts, if None.
        gate: a name of `mixture_of_experts.GATES`, or a `Gate` of k experts.

    Attributes:
        experts: k `StochasticVariationalGP`.
        gate: the gate.

    Raises:
        InputError: for an unknown gate or a number of experts below one.
        DtypeError, ShapeError, NonFiniteError: if X, y and Z don't fit each other.

    Source: Hensman, Matthews and Ghahramani (2015); collapsed responsibilities as in Nguyen and Bonilla (2014), Fast
        Allocation of Gaussian Process Experts, sec. 3.

    Example:
        >>> X = torch.linspace(-1, 1, 40, dtype=torch.float64).unsqueeze(-1)
        >>> moe = SparseMixtureOfExperts(X, X.abs().squeeze(-1), X[::8], n_experts=2)
        >>> moe.predictive(X[:3])
        Predictive(mixture of 2 Gaussians, n=3)
    """

    X: Tensor
    y: Tensor
    gate: Gate

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        Z: Tensor | Sequence[Tensor],
        *,
        n_experts: int = 2,
        kernel: Kernel | Sequence[Kernel] | None = None,
        likelihood: Likelihood | Sequence[Likelihood] | None = None,
        gate: str | Gate = "softmax",
    ) -> None:
        super().__init__()
        if n_experts < 1:
            raise InputError(f"`n_experts` must be at least 1; got {n_experts}.")
        if X.dtype != torch.float64:
            raise DtypeError(f"`X` must be float64 in a mixture; got {X.dtype}. Pass X.double().")
        if kernel is None and n_experts > 1:
            kernel = expert_matern(X.shape[-1])
        if likelihood is None and n_experts > 1:
            likelihood = gaussian_noise(None, least_noise=LEAST_SHARED_NOISE)
        parts = zip(
            _one_each("Z", Z, Tensor, n_experts),
            _one_each("kernel", kernel, Kernel, n_experts),
            _one_each("likelihood", likelihood, Likelihood, n_experts),
            strict=True,
        )
        self.register_buffer("X", X)
        self.register_buffer("y", y)
        self.experts = torch.nn.ModuleList(_expert(X, y, *part) for part in parts)
        self.gate = gate_of(gate, n_experts, X.shape[-1])

    @property
    def n_experts(self) -> int:
        """k."""
        return len(self.experts)

    @property
    def all_experts(self) -> list[StochasticVariationalGP]:
        """The experts, as what they are."""
        return [cast(StochasticVariationalGP, expert) for expert in self.experts]

    @property
    def batch_shape(self) -> torch.Size:
        """Empty: one data set."""
        return torch.Size()

    def natural_parameters(self) -> list[torch.nn.Parameter]:
        """Those of every q(v_k)."""
        return [parameter for expert in self.all_experts for parameter in expert.natural_parameters()]

    def elbo(self, rows: Tensor | None = None, responsibilities: Tensor | None = None) -> Tensor:
        """The lower bound on log p(y | X, gate), or an unbiased estimate of it.

        With a gate that has a posterior of its own, such as a GP gate, `gate.log_probs` is log E[π_k(x)], which is
        never below E[log π_k(x)] (Jensen): the value is then not strictly a bound.

        Args:
            rows: indices ``(b,)`` of the rows to use; all if None.
            responsibilities: of those rows, ``(b, k)``; at their optimum if None.

        Returns:
            A scalar in nats, differentiable once. Gradients that arrive in the parameters of q(v_k) are natural ones.
        """
        X, y = (self.X, self.y) if rows is None else (self.X[rows], self.y[rows])
        latents, divergence = self._latents(X)
        log_joint = self.gate.log_probs(X) + self._expected(y, latents)
        if responsibilities is None:
            of_rows = torch.logsumexp(log_joint, -1)
        else:
            r = responsibilities
            of_rows = (r * log_joint - torch.special.xlogy(r, r)).sum(-1)
        return of_rows.sum() * (len(self.y) / len(y)) - divergence

    def tight(self, rows: Tensor | None = None, *, divergence_weight: float = 1.0) -> Tensor:
        """Σ_n log Σ_k π_k(x_n) E_q p(y_n | f_k(x_n)) - β Σ_k KL_k: the sum over experts outside each expert's bound.

        Never below `elbo` for β = 1, but no bound itself: what is scored in prediction.

        Args:
            rows: indices ``(b,)`` of the rows to use; all if None.
            divergence_weight: β.

        Returns:
            A scalar in nats, differentiable once.

        Source: Jankowiak, Pleiss and Gardner (2020), Parametric Gaussian Process Regressors, eq. 10, for one expert.
        """
        X, y = (self.X, self.y) if rows is None else (self.X[rows], self.y[rows])
        latents, divergence = self._latents(X)
        marginal = [expert.likelihood.log_marginal(y, f) for expert, f in zip(self.all_experts, latents, strict=True)]
        of_rows = torch.logsumexp(self.gate.log_probs(X) + torch.stack(marginal, -1), -1)
        return of_rows.sum() * (len(self.y) / len(y)) - divergence_weight * divergence

    def responsibilities(self, X: Tensor, y: Tensor) -> Tensor:
        """Probability that expert k made each observation, by gate and expected log likelihood, ``(m, k)``.

        Args:
            X: ``(m, d)``; any number of rows.
            y: ``(m,)``.
        """
        expect_inputs(X, self.X)
        with torch.no_grad():
            blocks = zip(X.split(_BLOCK), y.split(_BLOCK), strict=True)
            return torch.cat([torch.softmax(self._log_joint(*block), -1) for block in blocks])

    def _log_joint(self, X: Tensor, y: Tensor) -> Tensor:
        latents = [_latent(*expert.marginals(X)) for expert in self.all_experts]
        return self.gate.log_probs(X) + self._expected(y, latents)

    def _latents(self, X: Tensor) -> tuple[list[MultivariateNormal], Tensor]:
        """q(f_k) at each row and the sum of all divergences, differentiable."""
        terms = [expert.bound_terms(X) for expert in self.all_experts]
        divergence = torch.stack([part.sum() for _, _, part in terms]).sum()
        return [_latent(mean, variance) for mean, variance, _ in terms], divergence

    def _expected(self, y: Tensor, latents: list[MultivariateNormal]) -> Tensor:
        pairs = zip(self.all_experts, latents, strict=True)
        return torch.stack([expert.likelihood.expected_log_prob(y, f) for expert, f in pairs], -1)

    def gate_probs(self, X: Tensor) -> Tensor:
        """π_k(x), ``(*batch, m, k)``."""
        return self.gate.log_probs(X).exp()

    def predictive(self, X: Tensor, *, include_noise: bool = True) -> Predictive:
        """The full mixture at each new point.

        Args:
            X: ``(m, d)``; any number of points.
            include_noise: p(y | data) if True, p(f | data) if not.

        Returns:
            A mixture of k Gaussians for each point.

        Raises:
            InputError: if noise is included and a likelihood is not Gaussian.
        """
        expect_inputs(X, self.X)
        with torch.no_grad():
            moments = [expert.marginals(X) for expert in self.all_experts]
            means = torch.stack([mean for mean, _ in moments], -1)
            variances = torch.stack([variance for _, variance in moments], -1)
            if include_noise:
                variances = variances + self._noise()
            probs = torch.cat([self.gate_probs(block) for block in X.split(_BLOCK)]) if len(X) else self.gate_probs(X)
            return Predictive.mixture(probs.numpy(), means.numpy(), variances.numpy())

    def class_probs(self, X: Tensor) -> Tensor:
        """Probability of each class at each new point, ``(m, c)``: Σ_k π_k(x) p(y = c | x, k); rows sum to one.

        Args:
            X: ``(m, d)``; any number of points.

        Raises:
            InputError: if the likelihood is neither Bernoulli nor categorical.
        """
        expect_inputs(X, self.X)
        with torch.no_grad():
            return torch.cat([self._class_probs(block) for block in X.split(_BLOCK)])

    def _class_probs(self, X: Tensor) -> Tensor:
        each = [_probs_of(expert.predictive(X)) for expert in self.all_experts]
        return (self.gate_probs(X).unsqueeze(-1) * torch.stack(each, -2)).sum(-2)

    def _noise(self) -> Tensor:
        """σ_k², ``(k,)``."""
        return torch.cat([expert.new_noise() for expert in self.all_experts])


def _expert(
    X: Tensor, y: Tensor, Z: Tensor, kernel: Kernel | None, likelihood: Likelihood | None
) -> StochasticVariationalGP:
    """One expert, with a latent function for each class where there are classes."""
    classes = (likelihood.n_classes,) if isinstance(likelihood, CategoricalLikelihood) else ()
    return StochasticVariationalGP(
        X,
        y,
        Z.expand(*classes, *Z.shape[-2:]),
        kernel=deepcopy(kernel),
        mean=ConstantMean(batch_shape=torch.Size(classes)),
        likelihood=deepcopy(likelihood),
    )


def _one_each(name: str, given: _Part | Sequence[_Part] | None, kind: type[_Part], n_experts: int) -> Sequence[Any]:
    parts: Sequence[Any] = [given] * n_experts if given is None or isinstance(given, kind) else list(given)
    if len(parts) != n_experts:
        raise ShapeError(f"`{name}` must be one or {n_experts}, one for each expert; got {len(parts)}.")
    return parts


def _latent(mean: Tensor, variance: Tensor) -> MultivariateNormal:
    return MultivariateNormal(mean, DiagLinearOperator(variance))


def _probs_of(predictive: torch.distributions.Distribution) -> Tensor:
    if isinstance(predictive, torch.distributions.Bernoulli):
        return torch.stack([1 - predictive.probs, predictive.probs], -1)
    if isinstance(predictive, torch.distributions.Categorical):
        return predictive.probs
    raise InputError(f"class probabilities need Bernoulli or categorical likelihoods; got a {type(predictive)}.")
