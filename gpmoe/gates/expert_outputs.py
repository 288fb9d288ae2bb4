"""What experts say, as gates that look at it take it.

An expert is a function from X ``(m, d)`` to the mean and the variance of its p(y | x, data), ``(m,)`` each, noise
included. What experts say at the rows that they were fitted on is too sure: a gate learns from held-out predictions,
those of cross-validation or the leave-one-out ones of a fitted mixture `moe`:

    loo = moe.leave_one_out()
    held_out = HeldOut(moe.X, moe.y, torch.from_numpy(loo.component_means), torch.from_numpy(loo.component_variances))
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gpmoe.errors import ShapeError
from gpmoe.gates.gate import Gate
from gpmoe.shapes import expect_finite

ExpertOutput = Callable[[Tensor], tuple[Tensor, Tensor]]


class HeldOut(NamedTuple):
    """Rows with the predictions of k experts that had not seen them.

    Attributes:
        X: ``(n, d)``.
        y: ``(n,)``.
        mean: of p(y | x, other rows) by each expert, ``(n, k)``.
        variance: noise included, ``(n, k)``.
    """

    X: Tensor
    y: Tensor
    mean: Tensor
    variance: Tensor

    def log_density(self) -> Tensor:
        """log p_k(y_n | x_n, other rows), ``(n, k)``, nats."""
        z2 = (self.y.unsqueeze(-1) - self.mean).square() / self.variance
        return -0.5 * (z2 + (2 * math.pi * self.variance).log())

    def check(self, n_experts: int) -> None:
        """Raise ShapeError if the shapes do not fit, NonFiniteError if a number is not finite."""
        n = len(self.X)
        shapes = {"y": (n,), "mean": (n, n_experts), "variance": (n, n_experts)}
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                got = tuple(getattr(self, name).shape)
                raise ShapeError(f"`held_out.{name}` must have shape {shape}, for n rows and k experts; got {got}.")
        for name in ("X", *shapes):
            expect_finite(f"held_out.{name}", getattr(self, name))

    def holds(self, X: Tensor) -> bool:
        """Whether X are these rows."""
        return X.shape == self.X.shape and torch.equal(X, self.X)


def outputs_of(experts: Sequence[ExpertOutput], X: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of all experts at X ``(*batch, m, d)``, ``(*batch, m, k)`` each."""
    flat = X.reshape(-1, X.shape[-1])
    outputs = [expert(flat) for expert in experts]
    shape = (*X.shape[:-1], len(outputs))
    mean = torch.stack([mean for mean, _ in outputs], -1)
    variance = torch.stack([variance for _, variance in outputs], -1)
    return mean.reshape(shape), variance.reshape(shape)


def learn_from_held_out(
    gate: Gate, held_out: HeldOut, *, max_iterations: int = 100, tolerance: float = 1e-6
) -> list[float]:
    """Fit any gate, in place, to experts that stay as they are, by expectation-maximisation.

    It climbs sum_n log sum_k exp(E[log π_k(x_n)] + log p_k(y_n | other rows)) + log prior: stacking of predictive
    densities with weights that depend on the input.

    Args:
        gate: any gate of as many experts.
        held_out: rows that the experts had not seen.
        max_iterations: the most.
        tolerance: nats a row by which an iteration must gain to go on.

    Returns:
        The objective after each iteration, nats; it never falls.

    Raises:
        ShapeError, NonFiniteError: see `HeldOut.check`.

    Source: Yao, Pirš, Vehtari and Gelman (2022), Bayesian hierarchical stacking, eq. 5; EM as Jordan and Jacobs (1994).
    """
    held_out.check(gate.n_experts)
    log_density = held_out.log_density()
    responsibilities = log_density.softmax(-1)
    trace: list[float] = []
    with torch.no_grad():
        for _ in range(max_iterations):
            gate.fit_step(held_out.X, responsibilities)
            joint = gate.expected_log_probs(held_out.X) + log_density
            responsibilities = joint.softmax(-1)
            value = gate.bound(held_out.X, responsibilities) + torch.special.entr(responsibilities).sum()
            trace.append(float(value + (responsibilities * log_density).sum()))
            if len(trace) > 1 and trace[-1] - trace[-2] < tolerance * len(held_out.y):
                break
    return trace
