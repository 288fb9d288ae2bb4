"""A gate made of Gaussian processes.

Expert j is taken with probability π_j = σ(h_j) prod_{i<j} (1 - σ(h_i)), h_j ~ GP, the last one with what remains;
for two experts this is the logistic GP classifier. Given ξ the bound of Jaakkola and Jordan, which equals Pólya-Gamma
augmentation, is quadratic in h_j, so q(h_j) is a GP regression on z with noise 1/ω:

| symbol | name in code | shape |
|---|---|---|
| N_j = sum_{i>=j} r_i, mass that reaches stick j | `mass` | (n,) |
| ξ_j = sqrt(E h_j²) | `xi` | (n, k - 1) |
| ω = N tanh(ξ/2) / (2ξ), z = (r - N/2) / ω | `omega`, `z` | (n,) |

Source: Jaakkola and Jordan (2000), Bayesian parameter estimation via variational methods, sec. 2; Linderman, Johnson
and Adams (2015), Dependent multinomial models made easy, sec. 3.
"""

import math

import numpy as np
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.gates.gp_posterior import GPPosterior, condition
from gpmoe.gates.latent_gate import LatentGate
from gpmoe.gates.stick_breaking import break_sticks, even_sticks
from gpmoe.linalg.likelihood import gaussian_log_likelihood

_LEAST_MASS = 1e-12


class GPGate(LatentGate):
    """Logistic stick-breaking of k - 1 Gaussian processes, with closed-form variational updates.

    Args:
        n_experts: k.
        n_features: d.
        kernel: a GPyTorch kernel, shared by the sticks; Matérn-5/2 with one lengthscale and priors that keep the gate
            smooth if None.

    Example:
        >>> X = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(-1)
        >>> gate = GPGate(2, 1)
        >>> gate.fit_step(X, torch.cat([X.abs() < 0.5, X.abs() >= 0.5], -1).double())
        >>> gate.log_probs(X)[[0, 10, 19]].argmax(-1).tolist()
        [1, 0, 1]
    """

    prior_mean: Tensor
    xi: Tensor

    def __init__(self, n_experts: int, n_features: int, kernel: Kernel | None = None) -> None:
        super().__init__(n_experts, n_features, kernel)
        self.register_buffer("prior_mean", even_sticks(n_experts))
        self.register_buffer("xi", torch.zeros(0, n_experts - 1, dtype=torch.float64))
        self._sticks: list[GPPosterior] | None = None

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Update q(h) and ξ in turn, a few times."""
        if self.xi.shape[0] != X.shape[0]:
            self.xi = torch.ones(X.shape[0], self.n_experts - 1, dtype=X.dtype)
        self.X, self.responsibilities = X, responsibilities
        for _ in range(3):
            self._sticks = None
            mean, variance = self._moments(X)
            self.xi = (mean.square() + variance).sqrt()
        self._sticks = None

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """Jaakkola and Jordan's lower bound of E[log π], ``(n, k)``."""
        mean, variance = self._moments(X)
        second = mean.square() + variance
        xi = self.xi
        taken = torch.nn.functional.logsigmoid(xi) - xi / 2 + mean / 2 - _lambda(xi) * (second - xi.square())
        return break_sticks(taken, taken - mean)

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`; differentiable in the kernel's parameters, with q(h) at its optimum for them."""
        total = X.new_zeros(())
        for j in range(self.n_experts - 1):
            rows, z, omega, mass = self._pseudo(responsibilities, j)
            xi = self.xi[rows, j]
            mean = self.prior_mean[j]
            gaussian = gaussian_log_likelihood(self.kernel, X[rows], z - mean, 1 / omega, workspace=self._workspace)
            constant = mass * (torch.nn.functional.logsigmoid(xi) - xi / 2) + 0.5 * omega * xi.square()
            density = 0.5 * (2 * math.pi / omega).log() + 0.5 * omega * z.square()
            total = total + gaussian + (constant + density).sum()
        return total

    def log_probs(self, X: Tensor) -> Tensor:
        """log E[π_k(x)], by Gauss-Hermite quadrature of each stick; sticks are independent under q."""
        flat = X.reshape(-1, X.shape[-1])
        mean, variance = self._moments(flat)
        nodes, weights = np.polynomial.hermite_e.hermegauss(40)
        h = mean.unsqueeze(-1) + variance.sqrt().unsqueeze(-1) * torch.from_numpy(nodes)
        weight = torch.from_numpy(weights / weights.sum()).log()
        taken = torch.logsumexp(torch.nn.functional.logsigmoid(h) + weight, -1)
        passed = torch.logsumexp(torch.nn.functional.logsigmoid(-h) + weight, -1)
        return break_sticks(taken, passed).reshape(*X.shape[:-1], self.n_experts)

    def _pseudo(self, responsibilities: Tensor, j: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows that reach stick j, and their z, ω and mass."""
        mass = responsibilities[:, j:].sum(-1)
        rows = (mass > _LEAST_MASS).nonzero().squeeze(-1)
        mass = mass[rows]
        omega = 2 * mass * _lambda(self.xi[rows, j])
        return rows, (responsibilities[rows, j] - mass / 2) / omega, omega, mass

    def _moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(h) at X ``(m, d)``, ``(m, k - 1)`` each."""
        if self.n_experts == 1:
            return X.new_zeros(len(X), 0), X.new_zeros(len(X), 0)
        if self._sticks is None:
            with torch.no_grad():
                self._sticks = [self._solve(j) for j in range(self.n_experts - 1)]
        moments = [stick.moments(self.kernel, X) for stick in self._sticks]
        means = [prior_mean + mean for prior_mean, (mean, _) in zip(self.prior_mean, moments, strict=True)]
        return torch.stack(means, -1), torch.stack([variance for _, variance in moments], -1)

    def _solve(self, j: int) -> GPPosterior:
        rows, z, omega, _ = self._pseudo(self.responsibilities, j)
        return condition(self.kernel, self.X[rows], z - self.prior_mean[j], 1 / omega)


def _lambda(xi: Tensor) -> Tensor:
    """tanh(ξ/2) / (4ξ), 1/8 at ξ = 0."""
    safe = xi.clamp_min(1e-6)
    return torch.tanh(safe / 2) / (4 * safe)
