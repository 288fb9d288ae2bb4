"""A gate of one expert that all groups share and one of each group's own.

    p(z = 0 | row of group g) = α_g,     p(z = 1 + g | row of group g) = 1 - α_g,     α_g ~ Beta(s π₀, s (1 - π₀))

A group with few rows keeps the share π₀ of the global expert, one with many the share that its rows ask for. Given
responsibilities q(α_g) is a Beta distribution in closed form. A row of no known group is the global expert's.

| symbol | name in code | shape |
|---|---|---|
| rows of group g that the global, the local expert holds | `counts` | (g, 2) |
| s, π₀ | `prior_rows`, `global_share` | |
"""

import math
from typing import Any

import gpytorch
import torch
from torch import Tensor
from torch.distributions import Beta, kl_divergence

from gpmoe.errors import InputError
from gpmoe.shapes import expect_shape

_NEVER = -690.0  # log probability of another group's expert: about the least that float64 keeps after exp


class GlobalLocalGate(gpytorch.Module):
    """One global expert and one for each group or site, shrunk to the global one where the group is small.

    Args:
        n_groups: g; the gate has 1 + g experts, the global one first.
        column: of X that holds the group, 0 to g - 1; NaN, or a number outside, is a group without an expert. Experts
            that should not see it take a kernel whose `active_dims` leave it out.
        prior_rows: s, how many rows of a group the prior is worth.
        global_share: π₀, prior mean of the global expert's share.

    Raises:
        InputError: for no groups, a strength that is not positive or a share outside (0, 1).

    Example:
        >>> gate = GlobalLocalGate(2, column=0)
        >>> X = torch.tensor([[0.0]] * 1 + [[1.0]] * 90, dtype=torch.float64)  # one row of group 0, 90 of group 1
        >>> local = torch.eye(3, dtype=torch.float64)[(1 + X[:, 0]).long()]
        >>> gate.fit_step(X, local)
        >>> gate.log_probs(X[[0, -1]]).exp().round(decimals=2)
        tensor([[0.8200, 0.1800, 0.0000],
                [0.0900, 0.0000, 0.9100]], dtype=torch.float64)
    """

    counts: Tensor

    def __init__(self, n_groups: int, column: int, prior_rows: float = 10.0, global_share: float = 0.9) -> None:
        super().__init__()
        if n_groups < 1:
            raise InputError(f"`n_groups` must be at least 1; got {n_groups}.")
        if not 0 < prior_rows < math.inf or not 0 < global_share < 1:
            raise InputError(
                f"`prior_rows` must be positive and `global_share` between 0 and 1; got {prior_rows}, {global_share}."
            )
        self.n_experts, self.column = 1 + n_groups, column
        self.prior_rows, self.global_share = prior_rows, global_share
        self.register_buffer("counts", torch.zeros(n_groups, 2, dtype=torch.float64))

    def groups(self, X: Tensor) -> Tensor:
        """The group of each row, ``(*batch, m)``; -1 where it has no expert.

        Raises:
            InputError: if the column has a number that is not whole.
            ShapeError: if X has no such column.
        """
        expect_shape("X", X, last=(-1, -1))
        if not -X.shape[-1] <= self.column < X.shape[-1]:
            expect_shape("X", X, last=(-1, self.column + 1))
        codes = X[..., self.column].detach()
        known = codes.isfinite()
        broken = codes[known & (codes != codes.round())]
        if len(broken):
            raise InputError(
                f"column {self.column} of `X` must hold groups 0 to {len(self.counts) - 1}, as whole numbers; got "
                f"{float(broken[0])}: leave that column unscaled."
            )
        known &= (codes >= 0) & (codes < len(self.counts))
        return torch.where(known, codes, -1.0).long()

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Set q(α) to its optimum: the counts of each group."""
        groups = self.groups(X)
        known = groups >= 0
        groups, held = groups[known], responsibilities[known]
        both = torch.stack([held[:, 0], held.gather(-1, 1 + groups.unsqueeze(-1)).squeeze(-1)], -1)
        self.counts = torch.zeros_like(self.counts).index_add(0, groups, both.to(self.counts))

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """E[log α_g] and E[log (1 - α_g)]; -690 for other groups' experts, ``(n, 1 + g)``."""
        a, b = self._beta()
        both = torch.digamma(a + b)
        return self._place(X, torch.digamma(a) - both, torch.digamma(b) - both)

    def log_prior(self) -> Tensor:
        """-KL(q(α) || p(α)), a scalar in nats."""
        a, b = self._beta()
        prior = Beta(torch.full_like(a, self._prior[0]), torch.full_like(b, self._prior[1]))
        return -kl_divergence(Beta(a, b), prior).sum()

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`."""
        return (responsibilities * self.expected_log_probs(X)).sum() + self.log_prior()

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """Zero: the bound integrates over the shares already."""
        return X.new_zeros(())

    def log_probs(self, X: Tensor) -> Tensor:
        """log E[α_g] and log E[1 - α_g]; -690 for other groups' experts, ``(*batch, m, 1 + g)``."""
        a, b = self._beta()
        return self._place(X, (a / (a + b)).log(), (b / (a + b)).log())

    def description(self) -> dict[str, Any]:
        """The arguments that make such a gate."""
        return {
            "n_groups": len(self.counts),
            "column": self.column,
            "prior_rows": self.prior_rows,
            "global_share": self.global_share,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "GlobalLocalGate":
        """The inverse of `description`."""
        return cls(**description)

    @property
    def _prior(self) -> tuple[float, float]:
        return self.prior_rows * self.global_share, self.prior_rows * (1 - self.global_share)

    def _beta(self) -> tuple[Tensor, Tensor]:
        """The parameters of q(α), ``(g,)`` each."""
        return self._prior[0] + self.counts[:, 0], self._prior[1] + self.counts[:, 1]

    def _place(self, X: Tensor, of_global: Tensor, of_local: Tensor) -> Tensor:
        """Log probabilities of each row's two experts in their columns."""
        groups = self.groups(X)
        known = groups >= 0
        index = groups.clamp_min(0)
        out = self.counts.new_full((*groups.shape, self.n_experts), _NEVER)
        out[..., 0] = torch.where(known, of_global[index], 0.0)
        local = torch.where(known, of_local[index], _NEVER)
        return out.scatter(-1, 1 + index.unsqueeze(-1), local.unsqueeze(-1))
