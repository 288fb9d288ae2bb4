"""Bayesian linear regression as an expert of near-zero cost.

    y = a(x)'β + ε,  a(x) = [1, x],  β ~ N(0, s² I),  ε ~ N(0, σ²)

| symbol | name in code | shape |
|---|---|---|
| A, rows a(x_n) | `A` | (n, p) |
| G = A' diag(r) A, its eigenvalues λ and vectors U | `_eigenvalues`, `_vectors` | (p,), (p, p) |
| U' A' diag(r) y | `_projections` | (p,) |
| q(β) = N(b, S), S = (G/σ² + I/s²)⁻¹ | `mean`, `covariance` | (p,), (p, p) |

Source: Bishop (2006), Pattern Recognition and Machine Learning, eq. 3.53-3.54, 3.86 and 3.95.
"""

import math
from collections.abc import Sequence
from typing import Any

import gpytorch
import torch
from gpytorch.constraints import GreaterThan
from gpytorch.likelihoods import GaussianLikelihood
from torch import Tensor

from gpmoe.errors import InputError, ShapeError
from gpmoe.models.exact_gp import expect_one_data_set
from gpmoe.models.expert import Components, gaussian_expected_log_likelihood, left_out, one_component
from gpmoe.models.gaussian_model import expect_inputs

_NOISE_STEPS = 20
_NOISE_TOLERANCE = 1e-9  # relative change of the noise variance at which its updates stop


class LinearExpert(gpytorch.Module):
    """Linear in the inputs, with Gaussian noise: conjugate, O(n d²).

    Args:
        X: ``(n, d)``.
        y: ``(n,)``.
        prior_variance: of the intercept and of each slope, s²; large for a prior that is nearly flat.
        noise: the noise variance, fixed; learned if None.
        least_noise: what a learned noise variance doesn't go below.
        inputs: which columns of X it is linear in, all if None; ``inputs=[]`` makes a constant with noise, N(c, σ²).

    Attributes:
        coefficients: posterior mean of the intercept and the slopes, ``(p,)``.
        likelihood: the GPyTorch likelihood, which holds the noise variance.

    Raises:
        InputError: if a variance is not positive, or a column is not there.
        ShapeError, DtypeError, NonFiniteError: if X and y don't fit each other.

    Example:
        >>> import torch
        >>> X = torch.linspace(-1, 1, 50, dtype=torch.float64).unsqueeze(-1)
        >>> expert = LinearExpert(X, 2 + 3 * X.squeeze(-1), prior_variance=1e6)
        >>> expert.fit_step()
        >>> [round(value, 3) for value in expert.coefficients.tolist()]
        [2.0, 3.0]
    """

    X: Tensor
    y: Tensor
    weights: Tensor | None

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        *,
        prior_variance: float = 100.0,
        noise: float | None = None,
        least_noise: float = 1e-4,
        inputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"prior_variance": prior_variance, "noise": noise, "least_noise": least_noise}.items():
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"`{name}` is a variance and must be positive and finite; got {value}.")
        columns = list(range(X.shape[-1]) if inputs is None else inputs)
        if any(not 0 <= column < X.shape[-1] for column in columns):
            raise InputError(f"`inputs` must be columns of X, 0 to {X.shape[-1] - 1}; got {columns}.")
        self.columns = columns
        self.prior_variance = prior_variance
        self.learns_noise = noise is None
        floor = least_noise if noise is None else 0.0
        self.likelihood = GaussianLikelihood(noise_constraint=GreaterThan(floor)).to(X)
        self.likelihood.noise = X.new_tensor([max(0.1, 2 * floor) if noise is None else noise])
        self.likelihood.requires_grad_(False)
        for name in ("X", "y", "weights"):
            self.register_buffer(name, None)
        self._given: tuple[Tensor, Tensor] | None = None
        self.set_data(X, y)

    @property
    def noise(self) -> float:
        """σ²."""
        return float(self.likelihood.noise)

    @property
    def coefficients(self) -> Tensor:
        """Posterior mean of the intercept and the slopes, ``(p,)``."""
        return self._posterior()[0]

    def set_data(self, X: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """See `Expert`; the noise variance stays, coefficients that were given don't."""
        expect_one_data_set(X, y, weights, before=self.X)
        self.X, self.y, self.weights, self._given = X, y, weights, None
        A = self._design(X)
        weighted = A if weights is None else A * weights.unsqueeze(-1)
        self._count = float(len(y) if weights is None else weights.sum())
        self._square = float((y.square() if weights is None else weights * y.square()).sum())
        eigenvalues, self._vectors = torch.linalg.eigh(weighted.mT @ A)
        self._eigenvalues = eigenvalues.clamp_min(0)
        self._projections = self._vectors.mT @ (weighted.mT @ y)

    def set_coefficients(self, coefficients: Tensor, noise: float) -> None:
        """Take coefficients as certain and a noise variance, until data are set: where EM can start from.

        Args:
            coefficients: intercept and slopes, ``(p,)``.
            noise: the noise variance; at least the floor if it is learned.
        """
        p = len(self.columns) + 1
        if coefficients.shape != (p,):
            raise ShapeError(f"`coefficients` must have shape ({p},); got {tuple(coefficients.shape)}.")
        self._set_noise(noise)
        self._given = coefficients.to(self.X), self.X.new_zeros(p, p)

    def fit_step(self) -> None:
        """EM updates of the noise variance, σ² = E[sum_n r_n (y_n - a_n'β)²] / sum_n r_n, until it settles."""
        if not self.learns_noise:
            return
        noise, floor = self.noise, float(self.likelihood.noise_covar.raw_noise_constraint.lower_bound)
        values, projections, ridge = self._eigenvalues, self._projections, 1 / self.prior_variance
        for _ in range(_NOISE_STEPS):
            scale = 1 / (values + noise * ridge)
            b = projections * scale
            residual = self._square + float((b * (values * b - 2 * projections)).sum())
            new = (max(residual, 0.0) + noise * float((values * scale).sum())) / self._count
            settled = abs(new - noise) <= _NOISE_TOLERANCE * noise
            noise = max(new, floor)
            if settled or new < floor:
                break
        self._set_noise(noise)

    def evidence(self) -> Tensor:
        """See `Expert`: log of the integral over β of prod_n N(y_n | a_n'β, σ²)^r_n."""
        noise = self.noise
        curvature = self._eigenvalues / noise + 1 / self.prior_variance
        explained = (self._projections.square() / curvature).sum() / noise**2
        log_det = (curvature * self.prior_variance).log().sum()
        constant = self._count * math.log(2 * math.pi * noise) + self._square / noise
        return -0.5 * (constant - explained + log_det)

    def marginals(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of a(x)'β at ``(m, d)`` points, ``(m,)`` each."""
        expect_inputs(X, self.X)
        mean, covariance = self._posterior()
        A = self._design(X)
        return A @ mean, ((A @ covariance) * A).sum(-1).clamp_min(0)

    def expected_log_likelihood(self, X: Tensor, y: Tensor) -> Tensor:
        """See `Expert`."""
        return gaussian_expected_log_likelihood(y, *self.marginals(X), self.likelihood.noise)

    def components(self, X: Tensor, *, include_noise: bool = True) -> Components:
        """See `Expert`: one Gaussian."""
        mean, variance = self.marginals(X)
        return one_component(mean, variance + self.noise if include_noise else variance.clamp_min(1e-300))

    def components_left_out(self, X: Tensor, y: Tensor, weights: Tensor) -> Components:
        """See `Expert`."""
        mean, variance = left_out(y, *self.marginals(X), weights / self.noise)
        return one_component(mean, variance + self.noise)

    def latent(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """See `Expert`."""
        expect_inputs(X, self.X)
        mean, covariance = self._posterior()
        A = self._design(X)
        return A @ mean, A @ covariance @ A.mT

    def noise_variance(self, X: Tensor) -> Tensor:
        """See `Expert`."""
        return self.likelihood.noise

    def jitter_needed(self) -> float:
        """Zero: the prior makes the precision positive definite."""
        return 0.0

    def description(self) -> dict[str, Any]:
        """The arguments that make such an expert of given data, for a file."""
        return {
            "prior_variance": float(self.prior_variance),
            "noise": None if self.learns_noise else self.noise,
            "least_noise": float(self.likelihood.noise_covar.raw_noise_constraint.lower_bound),
            "inputs": self.columns,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any], X: Tensor, y: Tensor) -> "LinearExpert":
        """The inverse of `description`; parameters are set after it."""
        floor = float(description["least_noise"])
        noise = None if description["noise"] is None else float(description["noise"])
        expert = cls(
            X, y, prior_variance=float(description["prior_variance"]), noise=noise, inputs=description["inputs"]
        )
        exact = torch.tensor(floor, dtype=torch.float64)  # as it was, to the last bit
        expert.likelihood.noise_covar.register_constraint("raw_noise", GreaterThan(exact))
        return expert

    def _set_noise(self, noise: float) -> None:
        self.likelihood.noise = self.X.new_tensor([noise])

    def _design(self, X: Tensor) -> Tensor:
        chosen = X if len(self.columns) == X.shape[-1] else X[..., self.columns]
        return torch.cat([torch.ones_like(X[..., :1]), chosen], -1)

    def _posterior(self) -> tuple[Tensor, Tensor]:
        """b and S."""
        if self._given is not None:
            return self._given
        variances = 1 / (self._eigenvalues / self.noise + 1 / self.prior_variance)
        mean = self._vectors @ (variances * self._projections / self.noise)
        return mean, (self._vectors * variances) @ self._vectors.mT
