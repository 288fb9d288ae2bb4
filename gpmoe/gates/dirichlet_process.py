"""A gate that breaks a stick, so that experts which data do not ask for fade away.

    π_j = v_j prod_{i<j} (1 - v_i),     v_j ~ Beta(1, α),     j = 1, ..., k - 1, the last takes what remains

and π_k(x) ∝ π_k N(x; m_k, S_k) where the gate looks at inputs. Given responsibilities q(v_j) is a Beta distribution in
closed form. Which expert gets which stick is part of the fit: larger ones go first, by an exchange argument, but for
the last, which has no stick of its own and is found by trying each.

| symbol | name in code | shape |
|---|---|---|
| N_k = sum_n r_nk | `counts` | (k,) |
| expert on stick j | `order` | (k,) |
| q(v_j) = Beta(1 + N_j, α + sum_{i>j} N_i) | `_sticks` | (k - 1,) |

Source: Blei and Jordan (2006), Variational inference for Dirichlet process mixtures, sec. 3; the order is Kurihara,
Welling and Teh (2007), Collapsed variational Dirichlet process mixture models.
"""

import math
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.gates.gaussian_inputs import Covariance, GaussianInputs
from gpmoe.gates.stick_breaking import break_sticks, mass_left

_IN_USE = 1.0  # rows that an expert must hold to count as in use


class DirichletProcessGate(gpytorch.Module):
    """A truncated Dirichlet process over experts: give it more than are needed, and it keeps those that are.

    With inputs, experts are kept that only say where rows lie: a cloud that is not Gaussian may keep several. Without,
    targets alone decide.

    Args:
        n_experts: the truncation, k.
        n_features: d, if each expert is to have a Gaussian of the inputs (which may then be missing, as NaN); None for
            proportions that do not look at the input.
        concentration: α; about α log(n/α) experts are expected of n rows.
        covariance: of the Gaussians, "full" or "diagonal".

    Attributes:
        counts: rows that each expert held at the last `fit_step`, ``(k,)``.
        in_use: which experts held at least one row, ``(k,)``.

    Raises:
        InputError: for a concentration that is not positive, or another kind of covariance.

    Example:
        >>> gate = DirichletProcessGate(4)
        >>> gate.fit_step(torch.zeros(6, 1), torch.eye(4, dtype=torch.float64)[[2, 2, 2, 2, 0, 0]])
        >>> gate.in_use.tolist(), gate.n_in_use
        ([True, False, True, False], 2)
        >>> gate.pruned().n_experts
        2
    """

    counts: Tensor
    order: Tensor

    def __init__(
        self,
        n_experts: int,
        n_features: int | None = None,
        concentration: float = 1.0,
        covariance: Covariance = "full",
    ) -> None:
        super().__init__()
        if not 0 < concentration < math.inf:
            raise InputError(f"`concentration` must be positive and finite; got {concentration}.")
        self.n_experts, self.concentration = n_experts, concentration
        self.inputs: GaussianInputs | None = None
        if n_features is not None:  # 1 + α is the inverse of E[sum π_k²], the effective number under the prior
            self.inputs = GaussianInputs(n_experts, n_features, covariance, effective=1 + concentration)
        self.register_buffer("counts", torch.zeros(n_experts, dtype=torch.float64))
        self.register_buffer("order", torch.arange(n_experts))
        self.register_buffer("log_density_of_inputs", torch.zeros((), dtype=torch.float64))

    @property
    def in_use(self) -> Tensor:
        """Experts that held at least one row's worth of responsibility, ``(k,)``, boolean."""
        return self.counts >= _IN_USE

    @property
    def n_in_use(self) -> int:
        """Number of experts in use."""
        return int(self.in_use.sum())

    def pruned(self) -> "DirichletProcessGate":
        """A gate of the experts in use alone, in the same order of labels; of all, if none is."""
        kept = self.in_use.nonzero().squeeze(-1)
        if len(kept) in (0, self.n_experts):
            kept = torch.arange(self.n_experts)
        gate = DirichletProcessGate(len(kept), concentration=self.concentration)
        if self.inputs is not None:
            gate.inputs = self.inputs.of_experts(kept)
        gate.counts = self.counts[kept]
        gate.order = gate._best_order(gate.counts)
        return gate

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Give each expert its stick, set q(v) to its optimum, and the Gaussians to their posterior mode."""
        counts = responsibilities.sum(0)
        self.order = self._best_order(counts)
        self.counts = counts
        if self.inputs is not None:
            self.inputs.fit_step(X, responsibilities)
            self.log_density_of_inputs = self._log_density(X).sum()

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """E[log π_k] + log N(x; m_k, S_k) - log p(x), at most the log of E[π_k(x)], ``(n, k)``."""
        a, b = self._sticks()
        both = torch.digamma(a + b)
        log_weights = self._by_expert(break_sticks(torch.digamma(a) - both, torch.digamma(b) - both))
        if self.inputs is None:
            return log_weights.expand(*X.shape[:-1], self.n_experts)
        return log_weights + self.inputs.log_density(X) - self._log_density(X).unsqueeze(-1)

    def log_prior(self) -> Tensor:
        """-KL(q(v) || p(v)), and with inputs log p(θ | X) of their Gaussians up to its normaliser; nats."""
        total = -self._divergence()
        return total if self.inputs is None else total + self.inputs.log_prior() + self.log_density_of_inputs

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`."""
        total = (responsibilities * self.expected_log_probs(X)).sum() - self._divergence()
        return total if self.inputs is None else total + self.inputs.log_prior() + self._log_density(X).sum()

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """Zero without inputs, since the bound integrates over the sticks; else as that of `GaussianMixtureGate`."""
        if self.inputs is None:
            return X.new_zeros(())
        free = (max(self.n_in_use, 1) - 1) * self.inputs.n_parameters
        return -self._log_density(X).sum() - self.inputs.log_prior() - 0.5 * free * math.log(len(X))

    def log_probs(self, X: Tensor) -> Tensor:
        """log of E[π_k], or of E[π_k] N(x; m_k, S_k) normalised, ``(*batch, m, k)``."""
        log_weights = self._log_mean_weights()
        if self.inputs is None:
            return log_weights.expand(*X.shape[:-1], self.n_experts)
        return torch.log_softmax(log_weights + self.inputs.log_density(X), -1)

    def description(self) -> dict[str, Any]:
        """The arguments that make such a gate."""
        return {
            "n_experts": self.n_experts,
            "n_features": None if self.inputs is None else self.inputs.mean.shape[-1],
            "concentration": self.concentration,
            "covariance": "full" if self.inputs is None else self.inputs.kind,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "DirichletProcessGate":
        """The inverse of `description`."""
        return cls(**description)

    def _sticks(self) -> tuple[Tensor, Tensor]:
        """The parameters of q(v), ``(k - 1,)`` each."""
        held = self.counts[self.order]
        return 1 + held[:-1], self.concentration + mass_left(held)

    def _by_expert(self, of_sticks: Tensor) -> Tensor:
        """From the order of sticks to that of experts, ``(k,)``."""
        return of_sticks[torch.argsort(self.order)]

    def _log_mean_weights(self) -> Tensor:
        """log E[π_k], ``(k,)``: the sticks are independent under q."""
        a, b = self._sticks()
        return self._by_expert(break_sticks((a / (a + b)).log(), (b / (a + b)).log()))

    def _log_density(self, X: Tensor) -> Tensor:
        """log p(x), ``(n,)``; only with inputs."""
        density = X.new_zeros(()) if self.inputs is None else self.inputs.log_density(X)
        return torch.logsumexp(self._log_mean_weights() + density, -1)

    def _divergence(self) -> Tensor:
        """KL of q(v) from p(v), a scalar."""
        a, b = self._sticks()
        alpha = self.concentration
        both = torch.digamma(a + b)
        slope = (a - 1) * (torch.digamma(a) - both) + (b - alpha) * (torch.digamma(b) - both)
        return (slope - _log_beta(a, b) - math.log(alpha)).sum()  # log B(1, α) = -log α

    def _best_order(self, counts: Tensor) -> Tensor:
        """The order of sticks with the largest evidence: for each choice of the last expert, the others by size."""
        largest_first = torch.argsort(counts, descending=True, stable=True)
        others = (largest_first[largest_first != last] for last in largest_first)
        orders = [torch.cat([first, last.view(1)]) for first, last in zip(others, largest_first, strict=True)]
        return max(reversed(orders), key=lambda order: float(self._evidence(counts[order])))

    def _evidence(self, held: Tensor) -> Tensor:
        """log E[prod_n π_{z_n}] under the prior for counts in the order of sticks, up to a constant."""
        return _log_beta(1 + held[:-1], self.concentration + mass_left(held)).sum()


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
