"""A gate that is the softmax of Gaussian processes, one for each expert and all alike.

    π = softmax(h),     h = U g,     g_j ~ GP(0, K),     j = 1, ..., k - 1

Softmax does not see what all logits share, so k GPs are k - 1 along orthonormal contrasts U. Böhning's bound of the log
normaliser has the same curvature ½(I - 11'/k) everywhere, which is ½ along each contrast: given the point ψ that it
touches at, q(g_j) is a GP regression with noise 2, and all of them share one Cholesky factor of K + 2I.

    log sum_k exp h_k <= lse(ψ) + (h - ψ)'p + ½ (h - ψ)'A(h - ψ),     p = softmax(ψ),     A = ½ (I - 11'/k)

| symbol | name in code | shape |
|---|---|---|
| U, orthonormal, orthogonal to 1 | `contrasts` | (k, k - 1) |
| U'ψ | `psi` | (n, k - 1) |
| z = U'ψ + 2 U'(r - p), pseudo-observations of g | `_pseudo` | (n, k - 1) |

Source: Böhning (1992), Multinomial logistic regression algorithm, sec. 2; as a variational bound, Khan et al. (2010),
Variational bounds for mixed-data factor analysis.
"""

import math

import torch
from gpytorch.kernels import Kernel
from torch import Tensor
from torch.quasirandom import SobolEngine

from gpmoe.gates.gp_posterior import GPPosterior, condition, factor, solve
from gpmoe.gates.latent_gate import LatentGate
from gpmoe.linalg.likelihood import gaussian_log_likelihood

_NOISE = 2.0  # of the pseudo-observations, one over the curvature
_STEPS = 10  # of ψ in each fit step; one costs O(n² k)
_DRAWS = 256  # quasi-random, of the predictive
_BLOCK = 2**22  # numbers that a block of predictions may hold


class GPSoftmaxGate(LatentGate):
    """Softmax of k Gaussian processes, with closed-form variational updates that treat all experts alike.

    Where `GPGate` breaks a stick, and so orders the experts, this gate does not; its bound is looser where the gate is
    certain. Predictions average softmax over q(g) by 256 fixed quasi-random draws, so that relabelling experts changes
    them by that average's error, about 1e-3; with two experts by less than 1e-5.

    Args:
        n_experts: k.
        n_features: d.
        kernel: a GPyTorch kernel, shared by the GPs; if None the one `GPGate` takes.

    Example:
        >>> X = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(-1)
        >>> gate = GPSoftmaxGate(2, 1)
        >>> gate.fit_step(X, torch.cat([X.abs() < 0.5, X.abs() >= 0.5], -1).double())
        >>> gate.log_probs(X)[[0, 10, 19]].argmax(-1).tolist()
        [1, 0, 1]
    """

    psi: Tensor

    def __init__(self, n_experts: int, n_features: int, kernel: Kernel | None = None) -> None:
        super().__init__(n_experts, n_features, kernel)
        self.register_buffer("psi", torch.zeros(0, n_experts - 1, dtype=torch.float64))
        self._posterior: GPPosterior | None = None

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Update q(g) and ψ in turn, a few times, with one factorisation."""
        if len(self.psi) != len(X):
            self.psi = X.new_zeros(len(X), self.n_experts - 1)
        self.X, self.responsibilities, self._posterior = X, responsibilities, None
        if self.n_experts == 1:
            return
        with torch.no_grad():
            L = factor(self.kernel, X, X.new_full((len(X),), _NOISE))
            for _ in range(_STEPS):
                z = self._pseudo(responsibilities)
                self.psi = z - _NOISE * solve(L, z)

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """Böhning's lower bound of E[log π], ``(n, k)``."""
        mean, variance = self._moments(X)
        U = contrasts(self.n_experts)
        off = mean - self.psi
        spread = 0.25 * (off.square().sum(-1) + (self.n_experts - 1) * variance)
        psi = self.psi @ U.mT
        slope = (off @ U.mT * psi.softmax(-1)).sum(-1)
        return mean @ U.mT - (torch.logsumexp(psi, -1) + slope + spread).unsqueeze(-1)

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`; differentiable in the kernel's parameters, with q(g) at its optimum for them."""
        psi = self.psi @ contrasts(self.n_experts).mT
        touching = (psi * psi.softmax(-1)).sum(-1) - torch.logsumexp(psi, -1) - 0.25 * self.psi.square().sum(-1)
        z = self._pseudo(responsibilities)
        noise = X.new_full((len(X),), _NOISE)
        total = touching.sum() + 0.5 * (z.square() / _NOISE + math.log(2 * math.pi * _NOISE)).sum()
        for column in z.mT:
            total = total + gaussian_log_likelihood(
                self.kernel, X, column.contiguous(), noise, workspace=self._workspace
            )
        return total

    def log_probs(self, X: Tensor) -> Tensor:
        """log E[π_k(x)], ``(*batch, m, k)``, by quasi-Monte Carlo."""
        flat = X.reshape(-1, X.shape[-1])
        if self.n_experts == 1:
            return X.new_zeros(*X.shape[:-1], 1)
        blocks = flat.split(max(1, _BLOCK // (_DRAWS * self.n_experts)))
        return torch.cat([self._average(block) for block in blocks]).reshape(*X.shape[:-1], self.n_experts)

    def _average(self, X: Tensor) -> Tensor:
        """log of the mean of softmax over draws of g, ``(m, k)``."""
        mean, variance = self._moments(X)
        g = mean.unsqueeze(1) + variance.sqrt()[:, None, None] * normal_draws(self.n_experts - 1, _DRAWS)
        return torch.logsumexp(torch.log_softmax(g @ contrasts(self.n_experts).mT, -1), 1) - math.log(_DRAWS)

    def _pseudo(self, responsibilities: Tensor) -> Tensor:
        U = contrasts(self.n_experts)
        return self.psi + _NOISE * (responsibilities - torch.softmax(self.psi @ U.mT, -1)) @ U

    def _moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Means of q(g) ``(m, k - 1)`` and their variance, one for all, ``(m,)``."""
        if self.n_experts == 1:
            return X.new_zeros(len(X), 0), X.new_zeros(len(X))
        if self._posterior is None:
            with torch.no_grad():
                noise = self.X.new_full((len(self.X),), _NOISE)
                self._posterior = condition(self.kernel, self.X, self._pseudo(self.responsibilities), noise)
        return self._posterior.moments(self.kernel, X)


def contrasts(k: int) -> Tensor:
    """Orthonormal columns that sum to zero (Helmert's), ``(k, k - 1)``."""
    U = torch.zeros(k, k - 1, dtype=torch.float64)
    for j in range(1, k):
        U[:j, j - 1] = 1.0
        U[j, j - 1] = -j
    return U / U.norm(dim=0)


def normal_draws(dimension: int, n: int) -> Tensor:
    """Fixed standard normal points in pairs of opposite sign, spread evenly, ``(n, dimension)``."""
    sobol = SobolEngine(dimension, scramble=True, seed=0).draw(n // 2, dtype=torch.float64)
    half = torch.special.ndtri(sobol.clamp(1e-9, 1 - 1e-9))
    return torch.cat([half, -half])
