"""Gaussian distributions of the inputs, one for each expert, that see past missing values.

    p(x | k) = N(x; m_k, S_k)

with a normal-inverse-Wishart prior, or, where S_k is diagonal, a normal-inverse-gamma prior for each input. A missing
input, NaN, is integrated out: a row counts by the inputs that it has. The fit is a step of expectation-maximisation
over what is missing, which is exact where nothing is.

| symbol | name in code | shape |
|---|---|---|
| m_k | `mean` | (k, d) |
| S_k | `covariance` | (k, d, d) |
| κ₀, Ψ₀ = ψ₀ I, m₀ = 0, ν₀ = d + 2 | `_KAPPA`, `_psi` | |
| E[x_n], cov[x_n] given what is seen and expert k | `filled`, `spread` | (n, d), (d, d) |

Source: Bishop (2006), sec. 9.2 and 12.2.1; the prior is Fraley and Raftery (2007), Bayesian regularization for normal
mixture estimation and model-based clustering; missing values are Ghahramani and Jordan (1994), Supervised
learning from incomplete data via an EM approach.
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from gpmoe.errors import InputError, NonFiniteError
from gpmoe.shapes import expect_shape

Covariance = Literal["full", "diagonal"]

_KAPPA = 0.01  # rows that the prior of the mean is worth


class GaussianInputs(torch.nn.Module):
    """One Gaussian of the inputs for each expert, at the mode of its posterior.

    The prior is for inputs of about zero mean and unit variance; without data an expert's Gaussian is the prior's
    mode, zero mean and a variance of ψ₀ = e^(-2/d), so that e experts fill the space, over ν₀ + d + 2 (full) or ν₀ + 3.

    Args:
        n_experts: k.
        n_features: d.
        covariance: "full" or "diagonal".
        effective: e, the number of experts expected to share the rows; k if None.

    Raises:
        InputError: for another kind of covariance.

    Example:
        >>> inputs = GaussianInputs(2, 1)
        >>> X = torch.tensor([[-1.0], [-1.1], [0.9], [1.0]], dtype=torch.float64)
        >>> inputs.fit_step(X, torch.eye(2, dtype=torch.float64).repeat_interleave(2, 0))
        >>> inputs.mean.round(decimals=1).squeeze(-1)
        tensor([-1.0000,  0.9000], dtype=torch.float64)
    """

    mean: Tensor
    covariance: Tensor

    def __init__(
        self, n_experts: int, n_features: int, covariance: Covariance = "full", *, effective: float | None = None
    ) -> None:
        super().__init__()
        if covariance not in ("full", "diagonal"):
            raise InputError(f"`covariance` must be 'full' or 'diagonal'; got {covariance!r}.")
        self.kind: Covariance = covariance
        self._least_rows = 2.0 * n_features + 4 if covariance == "full" else 6.0  # ν₀ + d + 2, ν₀ = d + 2; d = 1 each
        self.effective = float(n_experts) if effective is None else effective
        self._psi = self.effective ** (-2 / n_features)
        eye = torch.eye(n_features, dtype=torch.float64)
        self.register_buffer("mean", torch.zeros(n_experts, n_features, dtype=torch.float64))
        self.register_buffer("covariance", (self._psi / self._least_rows * eye).repeat(n_experts, 1, 1))

    @property
    def n_parameters(self) -> int:
        """Number of free parameters of one expert."""
        d = self.mean.shape[-1]
        return d + (d * (d + 1) // 2 if self.kind == "full" else d)

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Raise sum_nk r_nk log p(x_n | k) + log prior; to its maximum, if nothing is missing.

        Args:
            X: ``(n, d)``; NaN where a value is missing.
            responsibilities: ``(n, k)``.
        """
        self._expect(X)
        patterns = list(_patterns(X))
        sums = [self._moments(X, patterns, responsibilities[:, k], k) for k in range(len(self.mean))]
        count, first, second = (torch.stack(part) for part in zip(*sums, strict=True))
        weight = (_KAPPA + count).unsqueeze(-1)
        mean = first / weight
        scatter = second - weight.unsqueeze(-1) * mean.unsqueeze(-1) * mean.unsqueeze(-2)
        if self.kind == "diagonal":
            scatter = torch.diag_embed(scatter.diagonal(dim1=-2, dim2=-1))
        eye = torch.eye(X.shape[-1], dtype=X.dtype)
        scatter = 0.5 * (scatter + scatter.mT) + self._psi * eye
        self.mean, self.covariance = mean, scatter / (self._least_rows + count)[:, None, None]

    def log_density(self, X: Tensor) -> Tensor:
        """log N of what is seen of each row under each expert, ``(*batch, m, k)``; 0 where nothing is."""
        self._expect(X)
        flat = X.reshape(-1, X.shape[-1])
        pieces, order = [], []
        for rows, seen in _patterns(flat):
            pieces.append(self._log_density(flat[rows][:, seen], seen))
            order.append(rows)
        if not pieces:
            return X.new_zeros(*X.shape[:-1], len(self.mean))
        back = torch.cat(order).argsort()
        return torch.cat(pieces)[back].reshape(*X.shape[:-1], len(self.mean))

    def log_prior(self) -> Tensor:
        """Log density of the parameters under the prior, without its normaliser; a scalar, nats."""
        precision = torch.linalg.inv(self.covariance)
        fit = self._psi * precision.diagonal(dim1=-2, dim2=-1).sum(-1)
        fit = fit + _KAPPA * torch.einsum("ki,kij,kj->k", self.mean, precision, self.mean)
        return -0.5 * (self._least_rows * torch.logdet(self.covariance) + fit).sum()

    def of_experts(self, experts: Tensor) -> "GaussianInputs":
        """The Gaussians of some experts, given their indices."""
        part = GaussianInputs(len(experts), self.mean.shape[-1], self.kind, effective=self.effective)
        part.mean, part.covariance = self.mean[experts], self.covariance[experts]
        return part

    def _log_density(self, x: Tensor, seen: Tensor) -> Tensor:
        """``(m, k)`` of rows x ``(m, p)`` of which the inputs `seen` ``(p,)`` are there."""
        if len(seen) == 0:
            return x.new_zeros(len(x), len(self.mean))
        L = torch.linalg.cholesky(self.covariance[:, seen[:, None], seen])
        residual = (x - self.mean[:, seen].unsqueeze(1)).mT  # (k, p, m)
        z = torch.linalg.solve_triangular(L, residual, upper=False)
        log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        return (-0.5 * z.square().sum(-2) - log_det - 0.5 * len(seen) * math.log(2 * math.pi)).mT

    def _moments(
        self, X: Tensor, patterns: list[tuple[Tensor, Tensor]], weights: Tensor, k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over rows of r, r E[x] and r E[xx'] under expert k, shapes (), (d,) and (d, d)."""
        d = X.shape[-1]
        count, first, second = X.new_zeros(()), X.new_zeros(d), X.new_zeros(d, d)
        for rows, seen in patterns:
            filled, spread = self._fill(X[rows], seen, k)
            r = weights[rows]
            count = count + r.sum()
            first = first + r @ filled
            second = second + (filled.mT * r) @ filled + r.sum() * spread
        return count, first, second

    def _fill(self, x: Tensor, seen: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """E[x] ``(m, d)`` and cov[x] ``(d, d)`` given what is seen, under expert k."""
        d = x.shape[-1]
        spread = x.new_zeros(d, d)
        if len(seen) == d:
            return x, spread
        hidden = torch.tensor([i for i in range(d) if i not in set(seen.tolist())])
        S = self.covariance[k]
        slope = torch.linalg.solve(S[seen[:, None], seen], S[seen[:, None], hidden]).mT  # (d - p, p)
        filled = x.clone()
        filled[:, hidden] = self.mean[k, hidden] + (x[:, seen] - self.mean[k, seen]) @ slope.mT
        spread[hidden[:, None], hidden] = S[hidden[:, None], hidden] - slope @ S[seen[:, None], hidden]
        return filled, spread

    def _expect(self, X: Tensor) -> None:
        expect_shape("X", X, last=(-1, self.mean.shape[-1]))
        if bool(X.isinf().any()):
            raise NonFiniteError("`X` has infinite entries; inputs must be finite, or NaN where they are missing.")


def _patterns(X: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Groups of rows ``(m,)`` that miss the same inputs, each with the inputs that it has ``(p,)``."""
    missing = X.detach().isnan()
    if not bool(missing.any()):
        if len(X):
            yield torch.arange(len(X)), torch.arange(X.shape[-1])
        return
    kinds, kind = torch.unique(missing, dim=0, return_inverse=True)
    for i, hidden in enumerate(kinds):
        yield (kind == i).nonzero().squeeze(-1), (~hidden).nonzero().squeeze(-1)
