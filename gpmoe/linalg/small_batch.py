"""Thousands of small exact Gaussian processes of different sizes at once.

| symbol | name in code | shape |
|---|---|---|
| X, y of all problems, one after another | `X`, `y` | (total, d), (total,) |
| where each problem begins | `offsets` | (B + 1,) |
| scaled inputs, transposed | `Z` | (d, total) |
| C = s k(r²) + diag(noise) of one problem, its inverse | `A` | see `small_dense` |
| α = C⁻¹(y - m) | `alpha` | (total,) |

    log p(y) = -½ (α'(y - m) + log|C| + n log 2π),     d log p / dC = ½ (αα' - C⁻¹)

One compiled pass (Numba; float64, CPU) goes through the problems, each in the cache of its core, and leaves value and
gradient; threads are plain Python threads around it, as in `fused`, and results don't depend on their number. Anything
else, float32, other devices or no Numba, takes padded batches of problems of similar size through torch.

Source: Rasmussen and Williams (2006), eq. 2.25-2.26, 5.8-5.9.
"""

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.errors import InputError, ShapeError
from gpmoe.linalg.ragged import Ragged
from gpmoe.linalg.small_likelihoods import Likelihoods
from gpmoe.linalg.small_padded import padded_likelihoods, padded_posteriors
from gpmoe.linalg.small_posteriors import Posteriors
from gpmoe.linalg.small_problems import SmallProblems
from gpmoe.shapes import expect_finite, expect_floating, expect_shape

Family = Literal["rbf", "matern12", "matern32", "matern52", "rational_quadratic"]

Array = NDArray[np.float64]


class SmallGPs:
    """B Gaussian processes, each with its own rows, on hyperparameters of their own or shared by all.

    Args:
        X: inputs of all problems, one after another, ``(total, d)``, float64 or float32.
        y: targets, ``(total,)``.
        offsets: integers ``(B + 1,)`` from 0 to total: problem b has the rows ``offsets[b]:offsets[b + 1]``. A problem
            may have none.
        family: "rbf", "matern12", "matern32", "matern52" or "rational_quadratic".
        lengthscale: ``(d,)`` or ``(1,)`` for all problems, ``(B, d)`` or ``(B, 1)`` for each.
        outputscale: the latent function's prior variance, ``()`` or ``(B,)``.
        noise: the noise variance, ``()`` or ``(B,)``.
        mean: the prior mean, ``()`` or ``(B,)``; 0 if None.
        shape: the rational quadratic's α, ``()`` or ``(B,)``; only for that family.
        weights: how many observations each row stands for, ``(total,)``, positive: its noise variance is divided by
            its weight. One each if None.

    Every tensor may carry a gradient, and every result backpropagates (once) to those that do.

    Attributes:
        jitter: what the last evaluation added to each problem's diagonal to make it positive definite, ``(B,)``;
            zeros as a rule.

    Raises:
        ShapeError, DtypeError, NonFiniteError, InputError: if the arguments don't fit each other.

    Example:
        >>> import torch
        >>> X = torch.linspace(0, 6, 30, dtype=torch.float64).unsqueeze(-1)
        >>> one, noise = X.new_ones(1), X.new_tensor([1e-4, 1e-2]).requires_grad_()
        >>> gps = SmallGPs(X, X.sin().squeeze(-1), torch.tensor([0, 18, 30]), lengthscale=one, noise=noise)
        >>> value = gps.log_marginal_likelihood()
        >>> value.sum().backward()
        >>> value.shape, noise.grad.shape
        (torch.Size([2]), torch.Size([2]))
        >>> mean, variance = gps.posterior(X[:2] + 0.1, torch.tensor([0, 2, 2]))
        >>> bool((mean - (X[:2, 0] + 0.1).sin()).abs().max() < 0.01)
        True
    """

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        offsets: Tensor,
        *,
        lengthscale: Tensor,
        noise: Tensor,
        outputscale: Tensor | None = None,
        mean: Tensor | None = None,
        shape: Tensor | None = None,
        family: Family = "matern52",
        weights: Tensor | None = None,
    ) -> None:
        _check_data(X, y, weights)
        self.X, self.y, self.weights = X, y, weights
        self.ragged = Ragged.of(offsets, rows=len(y), device=X.device)
        self.family = _family(family, shape)
        count = len(self.ragged)
        self.lengthscale = _lengthscales(lengthscale, X, count)
        self.noise = _each("noise", noise, X, count, positive=True)
        self.outputscale = _each("outputscale", X.new_ones(()) if outputscale is None else outputscale, X, count, True)
        self.shape = _each("shape", X.new_ones(()) if shape is None else shape, X, count, True)
        self.mean = _each("mean", X.new_zeros(()) if mean is None else mean, X, count)
        self.jitter: Array = np.zeros(count)

    def log_marginal_likelihood(self) -> Tensor:
        """log p(y | X) of each problem, exact; ``(B,)``, nats, 0 for a problem without rows.

        Raises:
            NotPositiveDefiniteError, NonFiniteError: naming the first problem that can't be factorised.
        """
        problem = SmallProblems(self.ragged, self.family)
        parts = (self._scaled(self.X, self.ragged), self.shape, self.outputscale, *self._observations())
        value = Likelihoods.apply(*parts, problem) if problem.compiled(self.X) else padded_likelihoods(parts, problem)
        self.jitter = problem.jitter
        return value

    def posterior(self, X_new: Tensor, new_offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of each problem's latent function at new inputs of its own.

        Args:
            X_new: new inputs of all problems, one after another, ``(total_new, d)``.
            new_offsets: ``(B + 1,)``, as `offsets`.

        Returns:
            Mean and variance of p(f | data), ``(total_new,)`` each; add a problem's noise for p(y | data).
        """
        expect_floating("X_new", X_new, like=self.X)
        expect_shape("X_new", X_new, ndim=2, last=(self.X.shape[-1],))
        expect_finite("X_new", X_new)
        new = Ragged.of(new_offsets, rows=len(X_new), device=X_new.device, name="new_offsets")
        if len(new) != len(self.ragged):
            raise ShapeError(
                f"`new_offsets` must have {len(self.ragged) + 1} entries, as `offsets`; got {len(new) + 1}."
            )
        problem = SmallProblems(self.ragged, self.family, new)
        parts = (self._scaled(self.X, self.ragged), self.shape, self.outputscale, *self._observations())
        Z_new = self._scaled(X_new, new)
        posterior = Posteriors.apply if problem.compiled(self.X) else padded_posteriors
        shift, variance = posterior(Z_new, *parts, problem)
        self.jitter = problem.jitter
        return self.mean[new.owner] + shift, variance

    def _scaled(self, X: Tensor, ragged: Ragged) -> Tensor:
        """Centred and scaled inputs, ``(d, rows)``; centring keeps the lengthscale's gradient free of cancellation."""
        detached, owner = self.X.detach(), self.ragged.owner
        center = detached.new_zeros(len(self.ragged), X.shape[-1]).index_add_(0, owner, detached)
        center /= torch.bincount(owner, minlength=len(self.ragged)).clamp_min(1).unsqueeze(-1)
        scaled = (X - center[ragged.owner]) / self.lengthscale[ragged.owner]
        return scaled.mT.contiguous()

    def _observations(self) -> tuple[Tensor, Tensor]:
        """Residual and noise variance of each row."""
        owner = self.ragged.owner
        noise = self.noise[owner]
        return self.y - self.mean[owner], noise if self.weights is None else noise / self.weights


def _check_data(X: Tensor, y: Tensor, weights: Tensor | None) -> None:
    expect_floating("X", X)
    expect_shape("X", X, ndim=2, last=(-1, -1))
    expect_finite("X", X)
    for name, tensor in (("y", y), ("weights", weights)):
        if tensor is not None:
            expect_floating(name, tensor, like=X)
            expect_shape(name, tensor, ndim=1, last=(len(X),))
            expect_finite(name, tensor)
    if weights is not None and not bool((weights > 0).all()):
        raise InputError(f"`weights` must be positive; got a minimum of {float(weights.min())}.")


def _family(family: Family, shape: Tensor | None) -> int:
    known = get_args(Family)
    if family not in known:
        raise InputError(f"`family` must be one of {', '.join(known)}; got {family!r}.")
    if (shape is None) != (family != "rational_quadratic"):
        raise InputError(f'`shape` belongs to family "rational_quadratic" and to no other; the family is {family!r}.')
    return known.index(family)


def _lengthscales(lengthscale: Tensor, X: Tensor, count: int) -> Tensor:
    """``(B, d)`` of any form that the class takes."""
    expect_floating("lengthscale", lengthscale, like=X)
    d = X.shape[-1]
    if (
        lengthscale.dim() not in (1, 2)
        or lengthscale.shape[-1] not in (1, d)
        or lengthscale.shape[:-1] not in ((), (count,))
    ):
        raise ShapeError(
            f"`lengthscale` must have shape ({d},), (1,), ({count}, {d}) or ({count}, 1); "
            f"got {tuple(lengthscale.shape)}."
        )
    _expect_positive("lengthscale", lengthscale)
    return lengthscale.expand(count, d)


def _each(name: str, tensor: Tensor, X: Tensor, count: int, positive: bool = False) -> Tensor:
    """``(B,)`` of a number for all problems or one for each."""
    expect_floating(name, tensor, like=X)
    if tensor.shape not in ((), (count,)):
        raise ShapeError(f"`{name}` must have shape () or ({count},); got {tuple(tensor.shape)}.")
    if positive:
        _expect_positive(name, tensor)
    return tensor.expand(count)


def _expect_positive(name: str, tensor: Tensor) -> None:
    if not bool(((tensor > 0) & tensor.isfinite()).all()):
        raise InputError(f"`{name}` must be positive and finite; got a minimum of {float(tensor.min())}.")
