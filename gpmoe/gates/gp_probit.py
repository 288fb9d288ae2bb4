"""A gate of two experts that is the probit of one Gaussian process.

    π_1(x) = Φ(h(x)),     h ~ GP(0, K),     E[π_1(x)] = Φ(μ / sqrt(1 + v))

The curvature of log Φ lies between -1 and 0, so that a parabola of curvature -1 which touches it at ψ is below it
everywhere. Given ψ, q(h) is a GP regression with noise 1.

| symbol | name in code | shape |
|---|---|---|
| ψ, where the parabola touches | `psi` | (n,) |
| s = r_1 φ(ψ)/Φ(ψ) - r_2 φ(ψ)/Φ(-ψ) | `_slope` | (n,) |
| z = ψ + s | `z` | (n,) |

Source: Albert and Chib (1993), Bayesian analysis of binary and polychotomous response data, whose augmentation has the
same updates: Girolami and Rogers (2006), Variational Bayesian multinomial probit regression; the integral is
Rasmussen and Williams (2006), eq. 3.82.
"""

import math

import torch
from gpytorch.kernels import Kernel
from torch import Tensor
from torch.special import log_ndtr

from gpmoe.errors import InputError
from gpmoe.gates.gp_posterior import GPPosterior, condition, factor, solve
from gpmoe.gates.latent_gate import LatentGate
from gpmoe.linalg.likelihood import gaussian_log_likelihood

_STEPS = 10  # of ψ in each fit step; one costs O(n²)


class GPProbitGate(LatentGate):
    """Probit of a Gaussian process for two experts: predictions are closed form, both experts are treated alike.

    Args:
        n_features: d.
        kernel: a GPyTorch kernel; if None the one `GPGate` takes.
        n_experts: 2.

    Raises:
        InputError: for another number of experts; `GPSoftmaxGate` and `GPGate` take any.

    Example:
        >>> X = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(-1)
        >>> gate = GPProbitGate(1)
        >>> gate.fit_step(X, torch.cat([X.abs() < 0.5, X.abs() >= 0.5], -1).double())
        >>> gate.log_probs(X)[[0, 10, 19]].argmax(-1).tolist()
        [1, 0, 1]
    """

    psi: Tensor

    def __init__(self, n_features: int, kernel: Kernel | None = None, n_experts: int = 2) -> None:
        if n_experts != 2:
            raise InputError(f"a probit gate has two experts; got {n_experts}. GPSoftmaxGate and GPGate take any.")
        super().__init__(n_experts, n_features, kernel)
        self.register_buffer("psi", torch.zeros(0, dtype=torch.float64))
        self._posterior: GPPosterior | None = None

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Update q(h) and ψ in turn, a few times, with one factorisation."""
        if len(self.psi) != len(X):
            self.psi = X.new_zeros(len(X))
        self.X, self.responsibilities, self._posterior = X, responsibilities, None
        with torch.no_grad():
            L = factor(self.kernel, X, X.new_ones(len(X)))
            for _ in range(_STEPS):
                z = self.psi + _slope(self.psi, responsibilities)
                self.psi = z - solve(L, z)

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """The parabolas' lower bound of E[log π], ``(n, 2)``."""
        mean, variance = self._moments(X)
        off = mean - self.psi
        spread = 0.5 * (off.square() + variance)
        first = log_ndtr(self.psi) + off * _hazard(self.psi) - spread
        second = log_ndtr(-self.psi) - off * _hazard(-self.psi) - spread
        return torch.stack([first, second], -1)

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`; differentiable in the kernel's parameters, with q(h) at its optimum for them."""
        psi, slope = self.psi, _slope(self.psi, responsibilities)
        touching = (responsibilities * torch.stack([log_ndtr(psi), log_ndtr(-psi)], -1)).sum(-1)
        touching = touching - psi * slope - 0.5 * psi.square()
        z = psi + slope
        evidence = gaussian_log_likelihood(self.kernel, X, z, torch.ones_like(z), workspace=self._workspace)
        return evidence + (touching + 0.5 * (z.square() + math.log(2 * math.pi))).sum()

    def log_probs(self, X: Tensor) -> Tensor:
        """log Φ(±μ / sqrt(1 + v)), ``(*batch, m, 2)``."""
        mean, variance = self._moments(X.reshape(-1, X.shape[-1]))
        a = mean / (1 + variance).sqrt()
        return torch.stack([log_ndtr(a), log_ndtr(-a)], -1).reshape(*X.shape[:-1], 2)

    def _moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(h), ``(m,)`` each."""
        if self._posterior is None:
            with torch.no_grad():
                z = self.psi + _slope(self.psi, self.responsibilities)
                self._posterior = condition(self.kernel, self.X, z, torch.ones_like(z))
        return self._posterior.moments(self.kernel, X)


def _hazard(psi: Tensor) -> Tensor:
    """φ(ψ)/Φ(ψ), the slope of log Φ."""
    return (-0.5 * psi.square() - 0.5 * math.log(2 * math.pi) - log_ndtr(psi)).exp()


def _slope(psi: Tensor, responsibilities: Tensor) -> Tensor:
    return responsibilities[:, 0] * _hazard(psi) - responsibilities[:, 1] * _hazard(-psi)
