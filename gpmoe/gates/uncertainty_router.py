"""A neural router that knows how sure it is, by dropout on its input.

    ℓ^(m)(x) = V tanh(W (x ∘ mask_m) / (1 - p) + b) + c,     m = 1, ..., M
    π(x) = softmax(μ / sqrt(1 + π s² / 8)),     μ, s² = mean and variance of ℓ^(m)(x) over passes

The M masks are drawn once and kept, so that the router is an ordinary function: its fit, its gradient and its
predictions are free of chance, and all passes go as one product.

| symbol | name in code | shape |
|---|---|---|
| mask_m / (1 - p) | `masks` | (M, d) |
| μ, s² | `logit_moments` | (m, k) |

Source: dropout as approximate inference, Gal and Ghahramani (2016), sec. 4; the correction, MacKay (1992), The evidence
framework applied to classification networks; for routing, Zhang et al. (2024), Efficient deweather mixture-of-experts
(MoFME), whose released router has no dropout and so no uncertainty.
"""

import math
from typing import Any

import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.gates.balance import routing_entropy
from gpmoe.gates.parametric_gate import ParametricGate


class UncertaintyRouter(ParametricGate):
    """One hidden layer behind dropout masks, its logits shrunk by their variance over passes.

    Args:
        n_experts: k.
        n_features: d.
        width: units of the hidden layer.
        dropout: p, the probability that a pass does not see an input.
        passes: M.
        precision: of the Gaussian prior on the weights, for inputs of about unit variance.
        seed: of masks and of the hidden layer's start.

    Raises:
        InputError: for a dropout outside [0, 1) or fewer than two passes.

    Example:
        >>> X = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(-1)
        >>> router = UncertaintyRouter(2, 1)
        >>> router.fit_step(X, torch.cat([X.abs() < 0.5, X.abs() >= 0.5], -1).double())
        >>> router.log_probs(X)[[0, 10, 19]].argmax(-1).tolist()
        [1, 0, 1]
    """

    masks: Tensor

    def __init__(
        self,
        n_experts: int,
        n_features: int,
        width: int = 16,
        dropout: float = 0.1,
        passes: int = 16,
        precision: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(n_experts)
        if not 0 <= dropout < 1 or passes < 2:
            raise InputError(f"`dropout` must be in [0, 1) and `passes` at least 2; got {dropout} and {passes}.")
        self.dropout, self.precision, self.seed = dropout, precision, seed
        generator = torch.Generator().manual_seed(seed)
        draw = torch.rand(passes, n_features, dtype=torch.float64, generator=generator)
        self.register_buffer("masks", (draw >= dropout).double() / (1 - dropout))
        hidden = torch.randn(width, n_features + 1, dtype=torch.float64, generator=generator)
        self.hidden = torch.nn.Parameter(hidden / math.sqrt(n_features))
        self.output = torch.nn.Parameter(torch.zeros(n_experts, width + 1, dtype=torch.float64))

    def pass_logits(self, X: Tensor) -> Tensor:
        """ℓ of every pass, ``(M, *batch, m, k)``."""
        W, b = self.hidden[:, :-1], self.hidden[:, -1]
        masked = self.masks.unsqueeze(1) * W  # (M, width, d)
        shape = (len(self.masks), *[1] * (X.dim() - 2), *masked.shape[1:])
        features = torch.tanh(X @ masked.reshape(shape).mT + b)
        return features @ self.output[:, :-1].mT + self.output[:, -1]

    def logit_moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the logits over passes, ``(*batch, m, k)`` each."""
        logits = self.pass_logits(X)
        return logits.mean(0), logits.var(0)

    def logits(self, X: Tensor) -> Tensor:
        """μ / sqrt(1 + π s² / 8), ``(*batch, m, k)``."""
        mean, variance = self.logit_moments(X)
        return mean / (1 + math.pi * variance / 8).sqrt()

    def routing_entropy(self, X: Tensor) -> Tensor:
        """Entropy of the mean probabilities over passes, all that is not known of the expert, ``(*batch, m)``, nats."""
        return routing_entropy(self._mean_log_probs(self.pass_logits(X)))

    def mutual_information(self, X: Tensor) -> Tensor:
        """What the passes disagree on: that entropy less their mean entropy, at least 0, ``(*batch, m)``, nats.

        Source: Houlsby et al. (2011), Bayesian active learning for classification, eq. 2.
        """
        logits = self.pass_logits(X)
        known = routing_entropy(torch.log_softmax(logits, -1)).mean(0)
        return (routing_entropy(self._mean_log_probs(logits)) - known).clamp_min(0.0)

    def log_prior(self) -> Tensor:
        """-½ precision ||weights||², a scalar in nats, without its normaliser."""
        return -0.5 * self.precision * (self.hidden.square().sum() + self.output.square().sum())

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """-½ p log n for the p weights of the output layer that logits can differ by, a lower guess for a network."""
        free = (self.n_experts - 1) * self.output.shape[-1]
        return X.new_tensor(-0.5 * free * math.log(len(X)))

    def description(self) -> dict[str, Any]:
        """The arguments that make such a gate."""
        return {
            "n_experts": self.n_experts,
            "n_features": self.masks.shape[-1],
            "width": len(self.hidden),
            "dropout": self.dropout,
            "passes": len(self.masks),
            "precision": self.precision,
            "seed": self.seed,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "UncertaintyRouter":
        """The inverse of `description`."""
        return cls(**description)

    def _mean_log_probs(self, logits: Tensor) -> Tensor:
        """log of the mean probabilities over passes."""
        return torch.logsumexp(torch.log_softmax(logits, -1), 0) - math.log(len(logits))
