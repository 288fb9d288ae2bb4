"""What experts say, as gates that look at it take it.

An expert is a function from X ``(m, d)`` to the mean and the variance of its p(y | x, data), ``(m,)`` each, noise
included. What experts say at the rows that they were fitted on is too sure: a gate learns from held-out predictions,
those of cross-validation or the leave-one-out ones of a fitted mixture `moe`:

    loo = moe.leave_one_out()
    held_out = HeldOut(moe.X, moe.y, torch.tensor(loo.component_means), torch.tensor(loo.component_variances))
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gpmoe.errors import ShapeError
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
