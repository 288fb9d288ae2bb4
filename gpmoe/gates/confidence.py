"""A gate that trusts each expert by what it and the others say, learned on rows that they had not seen.

    π(x) = softmax(W'[1, u(x)]),     u = (log σ_k(x), |μ_k(x) - mean_j μ_j(x)|, log ρ_k(x)),     k = 1, ..., K

ρ_k(x) is the local mean, over held-out rows around x, of expert k's share of their leave-one-out densities,
p_k(y_i) / sum_j p_j(y_i). An expert is then flattened towards the prior as far as the gate distrusts it:

    p(y | x) = sum_k π_k [(1 - λ_k) p_k(y | x) + λ_k p_0(y)],     λ_k = 1 - π_k

| symbol | name in code | shape |
|---|---|---|
| p_k(y_i) / sum_j p_j(y_i) | `shares` | (n, k) |
| u, centred and scaled by its held-out mean and deviation | `features` | (n, 3k) |

Source: Atzmon and Chechik (2019), Adaptive confidence smoothing for generalized zero-shot learning, with
Gaussian experts for classifiers and densities for their top probabilities.
"""

from collections.abc import Sequence
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gpmoe.distributions import Predictive
from gpmoe.errors import InputError, UnsupportedKernelError
from gpmoe.gates.expert_outputs import ExpertOutput, HeldOut, outputs_of
from gpmoe.gates.softmax import SoftmaxGate
from gpmoe.gates.stacking import learn_from_held_out

_NEIGHBOURS = 10  # the bandwidth is the median distance to so many
_LEAST_SHARE = 1e-3  # of a density, so that its logarithm stays a feature of order one
_BLOCK = 2**22  # distances held at a time


class ConfidenceGate(gpytorch.Module):
    """Multinomial logistic regression on how sure experts are, how they differ and how well each does nearby.

    Where one of the experts is the prior (a "null" expert), its probability is that of being outside what the others
    know: seen region against out-of-distribution. To use the gate, fit the experts, make it with their held-out
    predictions, call `learn`, and set it as the `gate` of the `MixtureOfExperts`; or predict with `flattened`. For m
    rows the local shares cost O(m n d) at n held-out ones.

    Args:
        experts: each gives mean and variance of p(y | x, data) at X ``(m, d)``. They are called, not copied: after a
            refit of the experts make the gate again.
        held_out: predictions for rows that the experts had not seen, at least two.
        precision: of the prior of W, on features of unit variance.

    Raises:
        InputError: for fewer than two held-out rows.
        ShapeError, NonFiniteError: see `HeldOut.check`.

    Example:
        >>> sure = lambda X: (X[:, 0], 0 * X[:, 0] + 0.1)
        >>> prior = lambda X: (0 * X[:, 0], 0 * X[:, 0] + 1.0)
        >>> X = torch.linspace(-2, 2, 40, dtype=torch.float64).unsqueeze(-1)
        >>> y = torch.where(X > 0, X, -X)[:, 0]  # the first expert is right on one side
        >>> mean, variance = outputs_of([sure, prior], X)
        >>> gate = ConfidenceGate([sure, prior], HeldOut(X, y, mean, variance))
        >>> trace = gate.learn()
        >>> gate.log_probs(X[[0, -1]]).argmax(-1).tolist()
        [1, 0]
    """

    shares: Tensor
    centre: Tensor
    scale: Tensor
    held_out_features: Tensor

    def __init__(self, experts: Sequence[ExpertOutput], held_out: HeldOut, *, precision: float = 0.1) -> None:
        super().__init__()
        self.n_experts, self.experts, self.held_out = len(experts), list(experts), held_out
        held_out.check(self.n_experts)
        if len(held_out.y) < 2:
            raise InputError(f"a confidence gate needs at least 2 held-out rows; got {len(held_out.y)}.")
        self.softmax = SoftmaxGate(self.n_experts, 3 * self.n_experts, precision)
        self._bandwidth = _bandwidth(held_out.X)
        self.register_buffer("shares", held_out.log_density().softmax(-1))
        raw = _features(held_out.mean, held_out.variance, self._local_shares(held_out.X, leave_out_self=True))
        self.register_buffer("centre", raw.mean(0))
        self.register_buffer("scale", raw.std(0, unbiased=False).clamp_min(1e-3))
        self.register_buffer("held_out_features", (raw - self.centre) / self.scale)

    def learn(self, max_iterations: int = 100) -> list[float]:
        """Fit to the held-out rows, with the experts as they are; returns the objective, nats, after each iteration.

        See `learn_from_held_out`.
        """
        return learn_from_held_out(self, self.held_out, max_iterations=max_iterations)

    def features(self, X: Tensor) -> Tensor:
        """u at new inputs ``(*batch, m, d)``, centred and scaled, ``(*batch, m, 3k)``."""
        mean, variance = outputs_of(self.experts, X)
        shares = self._local_shares(X.reshape(-1, X.shape[-1])).reshape(mean.shape)
        return (_features(mean, variance, shares) - self.centre) / self.scale

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """The posterior mode of W; from held-out features where X are the held-out rows, else as of new rows."""
        self.softmax.fit_step(self._learning_features(X), responsibilities)

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """log π, by held-out features where X are the held-out rows, ``(n, k)``."""
        return self.softmax.log_probs(self._learning_features(X))

    def log_prior(self) -> Tensor:
        """-½ precision ||W||², a scalar in nats, without its normaliser."""
        return -0.5 * self.softmax.precision * self.softmax.weights.square().sum()

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`."""
        return (responsibilities * self.expected_log_probs(X)).sum() + self.log_prior()

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """As that of `SoftmaxGate`, on the features."""
        return self.softmax.log_occam_factor(self._learning_features(X))

    def log_probs(self, X: Tensor) -> Tensor:
        """log π_k(x), ``(*batch, m, k)``."""
        return self.softmax.log_probs(self.features(X))

    def flattened(self, X: Tensor, prior_mean: float = 0.0, prior_variance: float = 1.0) -> Predictive:
        """p(y | x) with each expert mixed with the prior by λ_k = 1 - π_k.

        Args:
            X: ``(m, d)``.
            prior_mean: of p_0, units of y.
            prior_variance: of p_0, noise included, units of y squared.

        Returns:
            A mixture of k + 1 Gaussians for each row; the last is the prior, with weight 1 - sum_k π_k².
        """
        with torch.no_grad():
            mean, variance = outputs_of(self.experts, X)
            kept = self.log_probs(X).exp().square()
            rest = (1 - kept.sum(-1, keepdim=True)).clamp_min(0.0)
            weights = torch.cat([kept, rest], -1)
            means = torch.cat([mean, torch.full_like(rest, prior_mean)], -1)
            variances = torch.cat([variance, torch.full_like(rest, prior_variance)], -1)
            return Predictive.mixture(weights.numpy(), means.numpy(), variances.numpy())

    def description(self) -> dict[str, Any]:
        """Raises UnsupportedKernelError: experts given as functions can't be written to a file."""
        raise UnsupportedKernelError(
            "a confidence gate can't be written to a file, since its experts are functions; save the experts and the "
            "held-out predictions, make the gate again from them, and `learn`."
        )

    def _learning_features(self, X: Tensor) -> Tensor:
        return self.held_out_features if self.held_out.holds(X) else self.features(X)

    def _local_shares(self, X: Tensor, *, leave_out_self: bool = False) -> Tensor:
        """ρ ``(m, k)`` at X ``(m, d)``: a Gaussian-weighted mean over held-out rows, the row itself left out."""
        pieces = []
        for rows in torch.arange(len(X)).split(max(1, _BLOCK // len(self.shares))):
            d2 = (X[rows].unsqueeze(1) - self.held_out.X).square().sum(-1)
            log_weight = -0.5 * d2 / self._bandwidth**2
            if leave_out_self:
                own = torch.zeros_like(log_weight, dtype=torch.bool)
                own[torch.arange(len(rows)), rows] = True
                log_weight = log_weight.masked_fill(own, -torch.inf)
            pieces.append(log_weight.softmax(-1) @ self.shares)
        return torch.cat(pieces) if pieces else X.new_zeros(0, self.n_experts)


def _features(mean: Tensor, variance: Tensor, shares: Tensor) -> Tensor:
    """``(*batch, m, 3k)``, not yet scaled."""
    difference = (mean - mean.mean(-1, keepdim=True)).abs()
    return torch.cat([0.5 * variance.log(), difference, shares.clamp_min(_LEAST_SHARE).log()], -1)


def _bandwidth(X: Tensor) -> float:
    """Median distance to the tenth nearest other row, or to the furthest of fewer."""
    some = X[:: max(1, len(X) // 1000)]  # a thousand rows are enough for a median
    distances = torch.cdist(some, X)
    nearest = distances.kthvalue(min(_NEIGHBOURS + 1, len(X)), -1).values
    return max(float(nearest.median()), 1e-6)
