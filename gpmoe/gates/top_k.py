"""A linear gate that gives each input to its K most probable experts alone.

    π_k(x) = exp(ℓ_k) / sum_{j in T} exp(ℓ_j) for k in T, the K largest; 0 for all others,     ℓ = W'[1, x]

| symbol | name in code | shape |
|---|---|---|
| W | `dense.weights` | (d + 1, k) |
| T | `selected` | (*batch, m, k) |

For K = 1 the probabilities are 1 and 0, and have no gradient: the boundary is learned by the dense gate of the same
weights, a logistic regression on the responsibilities that it and the experts' likelihoods give, and inputs are routed
by its largest logit.

Source: Nguyen, Akbarian, Yan and Ho (2024), Statistical perspective of top-K sparse softmax gating mixture of experts,
eq. 1-2.
"""

from typing import Any, Literal, get_args

import gpytorch
import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.gates.softmax import SoftmaxGate
from gpmoe.linalg.minimise_parameters import minimise_parameters

SelectOn = Literal["logit", "score"]

_NEVER = -746.0  # a finite log probability that is zero in float64: an expert that is not selected weighs nothing
_STEPS = 30


class TopKGate(gpytorch.Module):
    """Sparse softmax of K out of k experts.

    Args:
        n_experts: k.
        n_features: d.
        n_active: K, from 1 to k; k is the dense gate.
        select_on: "logit" to choose by ℓ; "score" by its part that depends on x, without the offset.
        precision: of the Gaussian prior on the weights, see `SoftmaxGate`.

    Raises:
        InputError: for a K out of range or another selection.

    Example:
        >>> X = torch.linspace(-1, 1, 8, dtype=torch.float64).unsqueeze(-1)
        >>> gate = TopKGate(2, 1, n_active=1)
        >>> gate.fit_step(X, torch.cat([X < 0, X >= 0], -1).double())
        >>> gate.log_probs(X[[0, -1]]).exp()
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """

    def __init__(
        self,
        n_experts: int,
        n_features: int,
        n_active: int = 1,
        select_on: SelectOn = "logit",
        precision: float = 0.01,
    ) -> None:
        super().__init__()
        if not 1 <= n_active <= n_experts:
            raise InputError(f"`n_active` must be between 1 and n_experts={n_experts}; got {n_active}.")
        if select_on not in get_args(SelectOn):
            raise InputError(f"`select_on` must be one of {get_args(SelectOn)}; got {select_on!r}.")
        self.n_experts, self.n_active, self.select_on = n_experts, n_active, select_on
        self.dense = SoftmaxGate(n_experts, n_features, precision)

    def selected(self, X: Tensor) -> Tensor:
        """Which experts each input is given to, bool ``(*batch, m, k)``."""
        return self._selected(X, self.dense.weights)

    def log_probs(self, X: Tensor) -> Tensor:
        """log π_k(x), ``(*batch, m, k)``; -746 for experts that are not selected."""
        return self._log_probs(X, self.dense.weights)

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """log π at the point estimate, ``(n, k)``; for K = 1 the dense gate's, by which the boundary is learned."""
        return self.dense.log_probs(X) if self.n_active == 1 else self.log_probs(X)

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Newton's method on the dense gate for K = 1; else L-BFGS on the sparse one, from where it stands."""
        if self.n_active in (1, self.n_experts):
            self.dense.fit_step(X, responsibilities)
            return
        weights = self.dense.weights.clone().requires_grad_()
        minimise_parameters([weights], lambda: -self._bound(X, responsibilities, weights), steps=_STEPS)
        self.dense.weights = weights.detach()

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`."""
        if self.n_active == 1:
            return self.dense.bound(X, responsibilities)
        return self._bound(X, responsibilities, self.dense.weights)

    def log_prior(self) -> Tensor:
        """See `Gate`."""
        return self.dense.log_prior()

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """See `SoftmaxGate`: that of the dense gate."""
        return self.dense.log_occam_factor(X)

    def description(self) -> dict[str, Any]:
        """See `Gate`."""
        return {**self.dense.description(), "n_active": self.n_active, "select_on": self.select_on}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "TopKGate":
        """See `Gate`."""
        names = ("n_experts", "n_features", "n_active", "select_on", "precision")
        return cls(**{name: description[name] for name in names})

    def _selected(self, X: Tensor, weights: Tensor) -> Tensor:
        score = X @ weights[1:] + (weights[0] if self.select_on == "logit" else 0.0)
        chosen = score.topk(self.n_active, dim=-1).indices
        return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, chosen, True)

    def _log_probs(self, X: Tensor, weights: Tensor) -> Tensor:
        logits = weights[0] + X @ weights[1:]
        selected = self._selected(X, weights.detach())
        sparse = torch.log_softmax(logits.masked_fill(~selected, -torch.inf), -1)
        return sparse.masked_fill(~selected, _NEVER)

    def _bound(self, X: Tensor, responsibilities: Tensor, weights: Tensor) -> Tensor:
        prior = -0.5 * self.dense.precision * weights.square().sum()
        return (responsibilities * self._log_probs(X, weights)).sum() + prior
