"""What a model must do to be an expert of a mixture that variational EM fits.

An expert holds each training point with a weight, its responsibility r: it stands for r observations, so Gaussian noise
σ² acts as σ²/r. The bound of a mixture is a sum over experts of

    evidence = max_q sum_n r_n E_q[log p(y_n | f_n)] - KL(q || prior)
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gpmoe.errors import ShapeError

Components = tuple[Tensor, Tensor, Tensor]  # weights, means and variances of Gaussians, (m, c) each


class Expert(Protocol):
    """A GPyTorch module that explains weighted points.

    What it learns by gradient are its parameters that want one; `fit_step` is for updates in closed form. Both may
    only raise `evidence` plus the log priors.
    """

    def set_data(self, X: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Replace the training data: X ``(n, d)``, y ``(n,)`` and positive weights ``(n,)``, one each if None.

        Parameters stay. What q holds for each point is set from the present q, so that the evidence of new weights is
        at least what `expected_log_likelihood` promised for them.
        """

    def fit_step(self) -> None:
        """Raise the evidence by closed-form updates of what has no gradient; nothing for an expert without such."""

    def evidence(self) -> Tensor:
        """The expert's share of the bound, a scalar in nats, differentiable once in the parameters."""

    def expected_log_likelihood(self, X: Tensor, y: Tensor) -> Tensor:
        """E_q[log p(y_n | f(x_n))], ``(n,)``, nats; at the best q for the point where q holds something for each."""

    def components(self, X: Tensor, *, include_noise: bool = True) -> Components:
        """The predictive density at X ``(m, d)`` as a mixture of c Gaussians.

        Args:
            X: ``(m, d)``.
            include_noise: p(y | data) if True, p(f | data) if not.

        Returns:
            Weights whose rows sum to one, means and variances, ``(m, c)`` each; c is one for Gaussian noise.
        """

    def components_left_out(self, X: Tensor, y: Tensor, weights: Tensor) -> Components:
        """p(y_n | all other training points) at training points held with weights ``(n,)``, zero allowed."""

    def latent(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Joint posterior of f at X ``(*batch, q, d)``: mean ``(*batch, q)`` and covariance ``(*batch, q, q)``."""

    def noise_variance(self, X: Tensor) -> Tensor:
        """Variance of an observation beyond f's at X ``(*batch, q, d)``; broadcasts to ``(*batch, q)``."""

    def jitter_needed(self) -> float:
        """What a covariance needs on its diagonal to have a factor; 0 as a rule."""


def gaussian_expected_log_likelihood(y: Tensor, mean: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
    """E[log N(y_n | f_n, noise_n)] for f_n ~ N(mean_n, variance_n), ``(n,)``, nats."""
    return -0.5 * ((2 * torch.pi * noise).log() + ((y - mean).square() + variance) / noise)


def left_out(y: Tensor, mean: Tensor, variance: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of f_n given all other points.

    The point's own Gaussian term of precision w is divided out: the variance is v/(1 - vw), the mean
    (μ - vwy)/(1 - vw).

    Args:
        y: what the point's term is centred on, ``(n,)``.
        mean, variance: of f_n given all points, ``(n,)``.
        precision: w, ``(n,)``; zero for a point that is not held.

    Returns:
        Mean and variance, ``(n,)``.

    Source: Rasmussen and Williams (2006), eq. 3.56.
    """
    share = (variance * precision).clamp_max(1 - 1e-9)
    return (mean - share * y) / (1 - share), variance / (1 - share)


def expect_sites(sites: dict[str, Tensor], names: Sequence[str], y: Tensor) -> None:
    """Check what q of an expert holds for each training point.

    Raises:
        ShapeError: if a name is missing, or something is not ``(n,)`` and of y's dtype.
    """
    for name in names:
        if name not in sites or sites[name].shape != y.shape or sites[name].dtype != y.dtype:
            got = f"{tuple(sites[name].shape)}, {sites[name].dtype}" if name in sites else "nothing"
            raise ShapeError(f"`{name}` must have shape {tuple(y.shape)}, {y.dtype}; got {got}.")


def one_component(mean: Tensor, variance: Tensor) -> Components:
    """A Gaussian as a mixture of one."""
    return torch.ones_like(mean).unsqueeze(-1), mean.unsqueeze(-1), variance.unsqueeze(-1)
