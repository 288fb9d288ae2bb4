"""A gate that asks cheap experts first and dear ones only where that pays.

    π_j(x) = g_j(x) prod_{i<j} (1 - g_i(x)),     g_j(x) = σ(w_j'[1, x, u_j(x)]),     the last expert takes the rest

Stage j sees what expert j and the one before it say, so dearer experts need not be asked:
u_j = (log σ_j, |μ_j - μ_{j-1}|, log σ_j - log σ_{j-1}). To stop at stage j costs C_j = sum_{i<=j} c_i. At a price of
λ nats for a unit of cost the E-step is r_nj ∝ π_j(x_n) p_j(y_n) exp(-λ C_j), whose limit of hard assignments is the
target argmin_j [loss_j + λ C_j] of JEI-DNN, and the M-step is one logistic regression a stage.

| symbol | name in code | shape |
|---|---|---|
| c, C | `costs`, `total_costs` | (k,) |
| λ | `price` | |
| w | `weights` | (k - 1, d + 4) |

Source: Regol, Chataoui and Coates (2024), Jointly-learned exit and inference for a dynamic neural network: JEI-DNN;
there with hard targets and the top probabilities of classifiers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import gpytorch
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gpmoe.errors import InputError, UnsupportedKernelError
from gpmoe.gates.expert_outputs import ExpertOutput, HeldOut, outputs_of
from gpmoe.gates.logistic_regression import fit_logistic, negative_hessian
from gpmoe.gates.stick_breaking import break_sticks, mass_left


class CascadeRoute(NamedTuple):
    """Where each row stopped, what was said there and what it cost.

    Attributes:
        stage: the expert that answers, ``(m,)``.
        mean: its mean, ``(m,)``.
        variance: its variance, ``(m,)``.
        cost: of all experts asked on the way, ``(m,)``.
    """

    stage: Tensor
    mean: Tensor
    variance: Tensor
    cost: Tensor


class CascadeGate(gpytorch.Module):
    """Stick-breaking from cheap to dear experts by how sure they are, at a price.

    As the gate of a `MixtureOfExperts` it weighs the experts' densities as any gate does; `route` asks, for each row,
    only the experts up to the first stage that is more likely to stop than not.

    Args:
        experts: from cheap to dear; each gives mean and variance of p(y | x, data) at X ``(m, d)``. They are called,
            not copied: after a refit of the experts fit the gate again.
        costs: of asking each expert, at least 0, in any unit.
        n_features: d.
        price: λ, nats that one unit of cost must gain at a row.
        precision: of the weights' prior, for inputs and targets of about unit variance.
        held_out: predictions of the training rows by experts that had not seen them; `fit_step` on these rows uses
            them instead of the experts' own (see `expert_outputs`).

    Raises:
        InputError: for no experts, a number of costs other than that of experts, negative costs or a negative price.
        ShapeError, NonFiniteError: see `HeldOut.check`.

    Example:
        >>> cheap = lambda X: (0 * X[:, 0], 0 * X[:, 0] + 1.0)
        >>> dear = lambda X: (X[:, 0].clamp_min(0), 0 * X[:, 0] + 0.01)
        >>> X = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(-1)
        >>> gate = CascadeGate([cheap, dear], [0.1, 1.0], 1)
        >>> gate.fit_step(X, torch.cat([X < 0, X >= 0], -1).double())
        >>> gate.route(X)[0][[0, -1]].tolist()
        [0, 1]
    """

    weights: Tensor
    costs: Tensor

    def __init__(
        self,
        experts: Sequence[ExpertOutput],
        costs: Sequence[float],
        n_features: int,
        *,
        price: float = 0.1,
        precision: float = 0.01,
        held_out: HeldOut | None = None,
    ) -> None:
        super().__init__()
        if not experts or len(costs) != len(experts):
            raise InputError(
                "a cascade needs at least one expert, and a cost for each; got "
                f"{len(experts)} experts and {len(costs)} costs."
            )
        if min(costs) < 0 or not 0 <= price < float("inf"):
            raise InputError(f"costs and price must not be negative; got {list(costs)} and {price}.")
        if held_out is not None:
            held_out.check(len(experts))
        self.n_experts, self.experts = len(experts), list(experts)
        self.price, self.precision, self.held_out = price, precision, held_out
        self.register_buffer("costs", torch.tensor(list(costs), dtype=torch.float64))
        self.register_buffer("weights", torch.zeros(len(experts) - 1, n_features + 4, dtype=torch.float64))

    @property
    def total_costs(self) -> Tensor:
        """C, what it costs to stop at each stage, ``(k,)``."""
        return self.costs.cumsum(0)

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """A logistic regression for each stage, on what reaches it."""
        A = self._learning_features(X)
        left = mass_left(responsibilities)
        fitted = []
        for j, weights in enumerate(self.weights):
            positive = responsibilities[:, j]
            fitted.append(fit_logistic(weights, A[:, j], positive, positive + left[:, j], self.precision))
        if fitted:
            self.weights = torch.stack(fitted)

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """log π_j - λ C_j, by held-out predictions at the rows that have them, ``(n, k)``."""
        return self._log_probs(self._learning_features(X)) - self.price * self.total_costs

    def log_prior(self) -> Tensor:
        """-½ λ_w ||w||², a scalar in nats, without its normaliser."""
        return -0.5 * self.precision * self.weights.square().sum()

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`; the expected cost is taken off at the price of the gate."""
        return (responsibilities * self.expected_log_probs(X)).sum() + self.log_prior()

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """What the weights' posterior is narrower than their prior, by Laplace's approximation at the gate's own π."""
        A = self._learning_features(X)
        probs = self._log_probs(A).exp()
        mass = probs[:, :-1] + mass_left(probs)
        total = X.new_zeros(())
        for j, weights in enumerate(self.weights):
            H = negative_hessian(weights, A[:, j], mass[:, j], self.precision)
            total = total - 0.5 * torch.linalg.slogdet(H / self.precision)[1]
        return total

    def log_probs(self, X: Tensor) -> Tensor:
        """log π_j(x), ``(*batch, m, k)``; asks all experts but the last."""
        mean, variance = outputs_of(self.experts[: max(1, self.n_experts - 1)], X)
        return self._log_probs(self._features(X, mean, variance))

    def expected_cost(self, X: Tensor) -> Tensor:
        """sum_j π_j(x) C_j, ``(*batch, m)``, in units of `costs`."""
        return (self.log_probs(X).exp() * self.total_costs).sum(-1)

    def route(self, X: Tensor) -> CascadeRoute:
        """Ask each row's experts in turn, until a stage is at least as likely to stop as to go on.

        Args:
            X: ``(m, d)``.

        Returns:
            For each row the stage, its mean and variance, and what it cost.
        """
        stage, rows = torch.zeros(len(X), dtype=torch.long), torch.arange(len(X))
        mean, variance = X.new_zeros(len(X)), X.new_ones(len(X))
        before: tuple[Tensor, Tensor] | None = None
        with torch.no_grad():
            for j, expert in enumerate(self.experts):
                if len(rows) == 0:
                    break
                now = expert(X[rows])
                mean[rows], variance[rows], stage[rows] = now[0], now[1], j
                if j == self.n_experts - 1:
                    break
                goes_on = _stage_features(X[rows], now, before) @ self.weights[j] < 0
                before = (now[0][goes_on], now[1][goes_on])
                rows = rows[goes_on]
        return CascadeRoute(stage, mean, variance, self.total_costs[stage])

    def description(self) -> dict[str, Any]:
        """Raises UnsupportedKernelError: experts given as functions can't be written to a file."""
        raise UnsupportedKernelError(
            "a cascade gate can't be written to a file, since its experts are functions; save the experts, make the "
            "gate again from them and fit it, or load its `state_dict`."
        )

    def _log_probs(self, A: Tensor) -> Tensor:
        h = (A * self.weights).sum(-1)
        return break_sticks(logsigmoid(h), logsigmoid(-h))

    def _learning_features(self, X: Tensor) -> Tensor:
        """Of each row and stage, ``(n, k - 1, p)``; of held-out predictions where X are the rows that have them."""
        if self.held_out is not None and self.held_out.holds(X):
            return self._features(X, self.held_out.mean, self.held_out.variance)
        return self._features(X, *outputs_of(self.experts[: max(1, self.n_experts - 1)], X))

    def _features(self, X: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        stages: list[Tensor] = []
        before = None
        for j in range(self.n_experts - 1):
            now = (mean[..., j], variance[..., j])
            stages.append(_stage_features(X, now, before))
            before = now
        if not stages:
            return X.new_zeros(*X.shape[:-1], 0, X.shape[-1] + 4)
        return torch.stack(stages, -2)


def _stage_features(X: Tensor, now: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor] | None) -> Tensor:
    """[1, x, log σ_j, |μ_j - μ_{j-1}|, log σ_j - log σ_{j-1}], ``(*batch, m, d + 4)``."""
    mean, log_scale = now[0], 0.5 * now[1].log()
    shift, shrinkage = torch.zeros_like(mean), torch.zeros_like(mean)
    if before is not None:
        shift, shrinkage = (mean - before[0]).abs(), log_scale - 0.5 * before[1].log()
    one = torch.ones_like(mean)
    return torch.cat([one.unsqueeze(-1), X, torch.stack([log_scale, shift, shrinkage], -1)], -1)
