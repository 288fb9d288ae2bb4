"""What a gate must do to route inputs to experts in conjugate variational EM."""

from typing import Any, Protocol, Self

from torch import Tensor


class Gate(Protocol):
    """Probabilities of experts given inputs, with a share in the evidence bound.

    A gate contributes to the bound, for responsibilities r, the sum of ``r_nk E[log π_k(x_n)]`` (or a lower bound of
    it) and its log prior or negative KL divergence. `fit_step` may only raise that contribution.

    In conjugate EM `fit_step` is called with all rows. An engine that sees a few rows at a time follows the gradients
    of `log_probs` and `log_prior` where the gate has parameters, and calls `fit_step` with some rows where it has none.
    """

    n_experts: int

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Raise the gate's contribution to the bound, given X ``(n, d)`` and responsibilities ``(n, k)``.

        A row of responsibilities that sums to less than one counts for less.
        """

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """E[log π_k(x_n)], or its lower bound, at the rows of the last `fit_step`, ``(n, k)``."""

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """The gate's contribution to the bound, a scalar in nats."""

    def log_prior(self) -> Tensor:
        """The part of the bound that does not depend on responsibilities, a scalar in nats."""

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """What the bound leaves out of the evidence by taking a point estimate of the gate, a scalar in nats."""

    def log_probs(self, X: Tensor) -> Tensor:
        """log E[π_k(x)] at new inputs ``(*batch, m, d)``, ``(*batch, m, k)``; rows sum to one after exp."""

    def description(self) -> dict[str, Any]:
        """The arguments that make such a gate, as JSON-able data."""

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """The inverse of `description`, before its tensors are set."""
